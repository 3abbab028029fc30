"""The recipe's sections on choosing text: quality classifiers and importance resampling."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from refinery.recipe_sections import Frac, Section

Share = Annotated[float, Field(gt=0, le=1)]


class ModelPreset(NamedTuple):
    """Label and preparation of a published family of models."""

    label_values: dict[str, float]
    preparation: str
    threshold: float | None
    """As published."""


MODEL_PRESETS = {
    "dclm": ModelPreset({"hq": 1.0, "cc": 0.0}, "one_line", 0.018112),
    "fineweb_edu": ModelPreset({str(grade): grade / 5 for grade in range(6)}, "one_line", None),
    "redpajama": ModelPreset({"cc": 0.0, "*": 1.0}, "one_line", None),
}
"""DCLM's OpenHermes and ELI5 classifier; fastText models of FineWeb-Edu's grades 0 to 5 (the expected grade over 5);
RedPajama-V2's Wikipedia, reference and book classifiers, where everything but ``cc`` is wanted."""


class LabelledFiles(Section):
    """JSON lines with a text and a label each."""

    paths: tuple[str, ...] = Field(min_length=1, description="JSON lines files, packed or not")
    text_field: str = Field("text", description="field that holds the text")
    label_field: str = Field("label", description="field that holds the label")
    positive_labels: tuple[str, ...] = Field(min_length=1, description="labels of good text; every other one is bad")


class QualityClassifier(Section):
    """One fastText classifier, trained here or loaded."""

    name: str = Field("model", pattern=r"^[a-z][a-z0-9_]{0,39}$", description="its name in `combine` and in tables")
    positives: tuple[str, ...] = Field((), description="sources of good text to train on, or to judge a model by")
    negatives: tuple[str, ...] = Field((), description="sources of ordinary or bad text, drawn by hash")
    labelled: LabelledFiles | None = Field(None, description="files of labelled text to train on as well")
    hard_negative_frac: Frac = Field(
        0.0, description="share of the negatives that a first model finds most like the positives"
    )
    negatives_per_positive: float | None = Field(
        None, gt=0, description="class balance; documents of the class in excess are left out by hash"
    )
    languages: tuple[str, ...] = Field((), description="languages that it is for; others get no score from it")
    per_language: bool = Field(False, description="one model for each of `languages`")
    model: str | None = Field(None, description="an existing fastText model instead of training one")
    model_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="hash that the model must have")
    preset: Literal["dclm", "fineweb_edu", "redpajama"] | None = Field(
        None, description="label values and preparation of a published family"
    )
    positive_label: str = Field("positive", description="label whose probability is the score")
    label_values: dict[str, Frac] = Field(
        default_factory=dict, description="label -> value, for the expected value instead; `*` is every other label"
    )
    preparation: str = Field(
        "segmented", description="how text is prepared: segmented (Chinese in words), words (in characters) or one_line"
    )
    max_train_docs: int = Field(20_000, ge=10, description="documents per class to train on, chosen by hash")
    dim: int = Field(64, ge=2, le=512, description="length of a word vector")
    epoch: int = Field(5, ge=1, le=100, description="passes over the training lines; 25 for a thousand documents")
    learning_rate: float = Field(0.1, gt=0, description="fastText's lr; 0.5 for a thousand documents")
    word_ngrams: int = Field(2, ge=1, le=5, description="longest word n-gram that is a feature")
    pair_buckets: int = Field(200_000, ge=1, le=2**31 - 1, description="hash buckets of word n-grams")
    threads: int = Field(1, ge=1, le=256, description="training threads; more than one gives another model each time")

    @model_validator(mode="after")
    def _complete(self) -> QualityClassifier:
        _check_classifier(self)
        return self

    def scored_labels(self) -> str | dict[str, float]:
        """Return the label whose probability is the score, or the value of each label."""
        if self.preset is not None:
            return MODEL_PRESETS[self.preset].label_values
        return self.label_values or self.positive_label

    def prepared_as(self) -> str:
        """Return the name of the preparation."""
        return MODEL_PRESETS[self.preset].preparation if self.preset is not None else self.preparation


def _check_classifier(given: QualityClassifier) -> None:
    learns = (given.positives and given.negatives) or given.labelled
    if given.model is None and not learns:
        raise ValueError(
            f"classifier {given.name}: name positives and negatives (sources), labelled files, or an existing model"
        )
    if bool(given.positives) != bool(given.negatives):
        raise ValueError(f"classifier {given.name} has positives or negatives, but not both; name sources of both")
    both = sorted(set(given.positives) & set(given.negatives))
    if both:
        raise ValueError(f"classifier {given.name}: sources {both} are both positives and negatives; name each once")
    if given.model is None and (given.preset or given.label_values or given.model_sha256):
        raise ValueError(f"classifier {given.name}: preset, label_values and model_sha256 are about an existing model")
    if given.model is not None and (given.per_language or given.labelled or given.hard_negative_frac):
        raise ValueError(
            f"classifier {given.name} loads a model; per_language, labelled and hard_negative_frac are about training"
        )
    if given.per_language and (not given.languages or given.labelled):
        raise ValueError(
            f"classifier {given.name}: per_language wants languages, and sources instead of labelled files"
        )


class Quality(QualityClassifier):
    """fastText quality classifiers over pool documents: one, or several and how to combine them."""

    classifiers: tuple[QualityClassifier, ...] = Field(
        (), description="several classifiers, instead of the keys of one"
    )
    combine: str | None = Field(None, description="expression over the names of several classifiers")
    keep_token_frac: float | None = Field(None, gt=0, le=1, description="share of the pool's text to keep, best first")
    threshold: Frac | None = Field(None, description="lowest score that is kept")
    precision: float | None = Field(None, gt=0, le=1, description="share of positives among the kept of the hold-out")
    pareto_alpha: float | None = Field(
        None, gt=0, description="keep where a Pareto draw of this shape exceeds 1 - score; GPT-3: 9"
    )
    cut_by: tuple[Literal["domain", "lang"], ...] = Field(
        (), description="cut each domain, each language or each pair apart"
    )
    by_group: dict[str, Frac] = Field(
        default_factory=dict, description="another value of the cut for single groups, such as {zh: 0.5}"
    )
    exempt_domains: tuple[str, ...] = Field((), description="domains that are scored but never cut")

    @model_validator(mode="after")
    def _complete(self) -> Quality:
        alone = {name for name in QualityClassifier.model_fields if getattr(self, name) != _default_of(name)}
        if self.classifiers and alone:
            raise ValueError(f"classifiers are given, so {', '.join(sorted(alone))} must stand in one of them")
        if not self.classifiers:
            _check_classifier(self)
        names = [c.name for c in self.each()]
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"classifiers must be named once each; repeated: {', '.join(repeated)}")
        if len(names) > 1 and self.combine is None:
            raise ValueError(
                f"say how to combine {', '.join(names)}, such as combine: 0.5 * {names[0]} + 0.5 * {names[1]}"
            )
        cuts = [
            n for n in ("keep_token_frac", "threshold", "precision", "pareto_alpha") if getattr(self, n) is not None
        ]
        if len(cuts) != 1:
            raise ValueError("give exactly one of keep_token_frac, threshold, precision and pareto_alpha")
        if self.by_group and (not self.cut_by or self.pareto_alpha is not None):
            raise ValueError("by_group wants cut_by, and a cut by share, threshold or precision")
        return self

    def each(self) -> tuple[QualityClassifier, ...]:
        """Return the classifiers, also where the section describes just one."""
        if self.classifiers:
            return self.classifiers
        return (QualityClassifier(**{name: getattr(self, name) for name in QualityClassifier.model_fields}),)

    def sources(self) -> set[str]:
        """Return every source that a classifier learns from or is judged by."""
        return {s for c in self.each() for s in (*c.positives, *c.negatives)}


def _default_of(name: str) -> object:
    return QualityClassifier.model_fields[name].get_default(call_default_factory=True)


class Select(Section):
    """Importance resampling (DSIR) of pool documents towards a target domain."""

    target: str | None = Field(None, description="domain whose documents of role target are aimed at")
    targets: dict[str, Share] = Field(
        default_factory=dict, description="several target domains, each with its share of what is kept"
    )
    keep_frac: float | None = Field(
        None, gt=0, le=1, description="share of the pool's bytes to keep; default: what mix needs"
    )
    keep_docs: int | None = Field(None, ge=1, description="documents to keep, instead of a share of the bytes")
    oversample: float = Field(2.0, ge=1.0, description="times what mix needs, so that dedup may still take some")
    compat: Literal["dsir"] | None = Field(
        None, description="dsir: tokens, hash and sums of data-selection 1.0.3 instead of our own features"
    )
    segment_chinese: bool = Field(True, description="words of Chinese are those of the segmentation, not characters")
    num_buckets: int = Field(10_000, ge=16, description="hash buckets of word uni- and bigrams")
    target_pseudo_count: float = Field(
        0.0, ge=0, description="added to each bucket's count of the target (Laplace); 1 for a small target"
    )
    min_words: int = Field(0, ge=0, description="shorter documents are dropped; data-selection's default is 100")
    chunk_words: int | None = Field(
        None, ge=1, description="weigh long documents like an average stretch of so many words; 128 as in the paper"
    )
    length: Literal["sum", "mean"] = Field(
        "sum",
        description="sum: n-grams add up, as in DSIR, so longer documents lie farther from zero; mean: divided by the "
        "number of n-grams, so length does not decide, on the scale of chunk_words words (128 where not set)",
    )
    temperature: float = Field(1.0, ge=0, description="scale of the Gumbel noise; 0 ranks by weight alone")
    exempt_domains: tuple[str, ...] = Field((), description="domains that are weighed but never cut")

    @model_validator(mode="after")
    def _consistent(self) -> Select:
        if (self.target is None) == (not self.targets):
            raise ValueError("give exactly one of target (a domain) and targets (domain -> share)")
        total = sum(self.targets.values())
        if self.targets and abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares of targets sum to {total:.6f}, not 1 ± 1e-6")
        if self.keep_frac is not None and self.keep_docs is not None:
            raise ValueError("give keep_frac or keep_docs, not both")
        return self

    def target_shares(self) -> dict[str, float]:
        """Return target domain -> share of what is kept, in the order of their names."""
        return dict(sorted(self.targets.items())) or {str(self.target): 1.0}
