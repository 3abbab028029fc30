"""fastText classifiers: preparation of text, training, the model file with its card, scoring.

**Preparation** (`preparation`) is part of a model: the card beside the file records its name and version, and
`open_classifier` refuses a model whose card says another version than this code.

**Determinism.** fastText trains with one thread and a seed; lines are first put into the order of their hashes, so the
model does not depend on the order in which they come. Same lines, same build, same CPU type: same file. One trap stands
in the way: with ``thread=1`` fastText (0.9.2, 0.9.3) draws only the first tenth of its input matrix and leaves the rest
as malloc returned it. Matrices over 32 MB come as zero pages; smaller ones hold old memory, and training gives another
model each time or stops with NaN. `_zeroed_memory` makes every new block zero (glibc).

Prediction goes through the library's C++ object: its Python ``predict(str)`` fails under numpy 2, and builds arrays.
What stands in a model file, and how one is opened: `fasttext_file`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refinery.errors import ConfigError, DataError, IntegrityError, SchemaError
from refinery.kernels.fasttext_file import fasttext_library, file_sha256, load_model
from refinery.kernels.preparation import (
    PREPARATIONS,
    check_preparation,
    iterate_lines,
    preparation_digest,
    prepare,
)
from refinery.kernels.text import TextViews

CARD_VERSION = 1
LABEL_PREFIX = "__label__"
EMPTY_SCORE = 0.0
"""Score of a document without tokens: nothing speaks for it."""

_M_PERTURB = -6  # malloc.h
_NUM_SORT_FILES = 64


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """Settings of one supervised training; names as in fastText where it has them.

    Defaults follow DCLM (lr 0.1, epoch 5, word pairs, min_count 1) with 64 dimensions and 200,000 pair buckets instead
    of 100 and 2,000,000: 51 MB and not 800 MB, enough for up to some 100,000 training documents.
    """

    dim: int = 64
    epoch: int = 5
    lr: float = 0.1
    word_ngrams: int = 2
    bucket: int = 200_000
    min_count: int = 1
    seed: int = 0
    threads: int = 1
    """More than one gives another model each time."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What must be known to use a model file; stored beside it as ``FILE.json``."""

    card_version: int
    sha256: str
    num_bytes: int
    preparation: str
    preparation_version: int
    unicode_digest: str
    """Of the character table that ``words`` reads, which changes with the Unicode version of Python, and for
    ``segmented`` of the dictionary too."""
    num_lines: dict[str, int]
    """Label -> training lines; its keys are the labels."""
    settings: dict[str, float]


class Classifier(NamedTuple):
    """An open model; opened once per task, never pickled."""

    model: Any
    """The library's C++ object: ``predict(text, k, threshold, on_unicode_error)``."""
    labels: tuple[str, ...]
    positive_label: str
    preparation: str
    sha256: str
    label_values: tuple[tuple[str, float], ...] = ()
    """(label, value): where given, the score is the expected value and not the probability of `positive_label`."""


def train_classifier(
    lines: Iterable[tuple[str, bytes]],
    out_path: Path,
    settings: TrainSettings | None = None,
    preparation: str = "words",
) -> ModelCard:
    """Train a supervised model and write it with its card; both appear by rename, the card last.

    Args:
        lines: (label, prepared line); any order, any length: they pass through files beside `out_path`.
        out_path: the model file; the card is ``out_path`` + ``.json``.
        settings: see `TrainSettings`.
        preparation: how the lines were prepared.
    Returns: the card.

    Raises:
        ConfigError: settings out of bounds, or no fastText that can train.
        DataError: fewer than two labels have lines.
        SchemaError: a label holds white space, or a line a line feed.
    """
    settings = settings or TrainSettings()
    _check_settings(settings)
    check_preparation(preparation)
    library = fasttext_library()
    with tempfile.TemporaryDirectory(prefix=f".{out_path.name}.", dir=out_path.parent) as folder:
        train_file, model_file = Path(folder, "lines.txt"), Path(folder, "model.bin")
        num_lines = _write_in_hash_order(lines, Path(folder), train_file)
        if len(num_lines) < 2:
            raise DataError(
                f"training needs two labels with text, found {num_lines or 'none'}; "
                "name positives and negatives that keep documents after the rules"
            )
        _train(library, train_file, settings).save_model(str(model_file))
        card = ModelCard(
            card_version=CARD_VERSION,
            sha256=file_sha256(model_file),
            num_bytes=model_file.stat().st_size,
            preparation=preparation,
            preparation_version=PREPARATIONS[preparation],
            unicode_digest=preparation_digest(preparation),
            num_lines=num_lines,
            settings=dataclasses.asdict(settings),
        )
        card_file = Path(folder, "card.json")
        card_file.write_text(json.dumps(dataclasses.asdict(card), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _card_path(out_path).unlink(missing_ok=True)  # never an old card beside a new model
        for source, target in ((model_file, out_path), (card_file, _card_path(out_path))):
            with source.open("rb") as written:
                os.fsync(written.fileno())
            source.replace(target)
    return card


def read_card(path: Path) -> ModelCard:
    """Read the card of a model file.

    Raises:
        ConfigError: there is no card.
        IntegrityError: the card cannot be read or is of another version.
    """
    card_path = _card_path(path)
    if not card_path.is_file():
        raise ConfigError(
            f"{path} has no card {card_path.name}; train it with this pipeline, "
            "or declare label and preparation of a third-party model"
        )
    try:
        card = ModelCard(**json.loads(card_path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"{card_path} is not a model card ({error}); train the model again") from error
    if card.card_version != CARD_VERSION:
        raise IntegrityError(
            f"{card_path} has card_version {card.card_version}, this code reads {CARD_VERSION}; retrain"
        )
    return card


def open_classifier(path: Path, positive_label: str) -> Classifier:
    """Open a model that `train_classifier` wrote.

    Raises:
        ConfigError: the file or its card is missing, or it has no such label.
        IntegrityError: the file is damaged, or was trained on text prepared in another way.
    """
    card = read_card(path)
    _check_card(path, card)
    return open_external_classifier(path, positive_label, card.preparation, card.sha256)


def _check_card(path: Path, card: ModelCard) -> None:
    current = PREPARATIONS.get(card.preparation)
    if current != card.preparation_version:
        raise IntegrityError(
            f"{path} was trained on preparation {card.preparation!r} version {card.preparation_version}, "
            f"this code has {current}; train it again"
        )
    if card.preparation != "one_line" and card.unicode_digest != preparation_digest(card.preparation):
        raise IntegrityError(
            f"{path} was trained under another Unicode version or dictionary (digest {card.unicode_digest}, here "
            f"{preparation_digest(card.preparation)}); train it again with this Python"
        )


def open_external_classifier(
    path: Path, positive_label: str, preparation: str = "one_line", sha256: str | None = None
) -> Classifier:
    """Open any fastText ``.bin`` or ``.ftz``: DCLM, RedPajama, FineWeb-Edu-style classifiers.

    Args:
        path: the model file.
        positive_label: the label whose probability is the score, with or without ``__label__``.
        preparation: how its training text was prepared, a name of `PREPARATIONS`.
        sha256: expected hash of the file; None accepts any.

    Raises:
        ConfigError: the file, the label, the preparation or fastText is missing.
        IntegrityError: not a fastText model, or another file than the hash says.
    """
    check_preparation(preparation)
    model, found = load_model(path, sha256)
    labels = tuple(label.removeprefix(LABEL_PREFIX) for label in model.getLabels("strict")[0])
    wanted = positive_label.removeprefix(LABEL_PREFIX)
    if wanted not in labels:
        raise ConfigError(f"{path} has no label {wanted!r}; it has {', '.join(labels[:20])}")
    return Classifier(model, labels, wanted, preparation, found)


def open_declared(
    path: Path, labels: str | Mapping[str, float], preparation: str, sha256: str | None = None
) -> Classifier:
    """Open a model by what a recipe declares of it; a card beside the file must say the same.

    Args:
        path: the model file.
        labels: the label whose probability is the score, or label -> value in [0, 1], for the expected value;
            ``*`` stands for the labels that are not named.
        preparation: a name of `PREPARATIONS`.
        sha256: expected hash of the file; None accepts any.

    Raises:
        ConfigError: as `open_external_classifier`, or a value is outside [0, 1].
        IntegrityError: as `open_classifier`, or the card names another preparation than is declared.
    """
    if _card_path(path).is_file():
        card = read_card(path)
        if card.preparation != preparation:
            raise IntegrityError(
                f"{path} was trained on text prepared as {card.preparation!r} (its card says so), the recipe declares "
                f"{preparation!r}; set preparation: {card.preparation}"
            )
        _check_card(path, card)
        sha256 = sha256 or card.sha256
    if isinstance(labels, str):
        return open_external_classifier(path, labels, preparation, sha256)
    model, found = load_model(path, sha256)
    known = tuple(label.removeprefix(LABEL_PREFIX) for label in model.getLabels("strict")[0])
    given = {label.removeprefix(LABEL_PREFIX): value for label, value in labels.items()}
    unknown = sorted(set(given) - {*known, "*"})
    lacking = [] if "*" in given else sorted(set(known) - set(given))
    bad = sorted(label for label, value in given.items() if not 0.0 <= value <= 1.0)
    if unknown or lacking or bad:
        raise ConfigError(
            f"{path} has labels {', '.join(known[:20])}; label_values must give each a value in [0, 1] "
            f"(unknown: {unknown}, missing: {lacking}, out of bounds: {bad}; '*' stands for the rest)"
        )
    check_preparation(preparation)
    values = tuple((label, float(given.get(label, given.get("*", 0.0)))) for label in known)
    return Classifier(model, known, "", preparation, found, values)


def score(classifier: Classifier, lines: TextViews, wanted_D: np.ndarray | None = None) -> np.ndarray:
    """Return the probability of the positive label, or the expected label value, for prepared lines.

    Args:
        classifier: an open model.
        lines: D lines from `prepare` with the classifier's preparation.
        wanted_D: bool, shape (D,): lines to score, `EMPTY_SCORE` for the others; None scores all.
    Returns: float32, shape (D,), in [0, 1]; `EMPTY_SCORE` for an empty line. The library adds 1e-5 to every
        probability; published thresholds contain that, so it stays.
    """
    scores_D = np.full(lines.num_docs, EMPTY_SCORE, dtype=np.float32)
    predict, wanted = classifier.model.predict, LABEL_PREFIX + classifier.positive_label
    num_labels = len(classifier.labels)
    if classifier.label_values:
        values = {LABEL_PREFIX + label: value for label, value in classifier.label_values}
        for index, line in iterate_lines(lines, wanted_D):
            found = predict(line, num_labels, 0.0, "strict")
            scores_D[index] = sum(probability * values[label] for probability, label in found)
        return np.clip(scores_D, 0.0, 1.0)
    for index, line in iterate_lines(lines, wanted_D):
        for probability, label in predict(line, num_labels, 0.0, "strict"):
            if label == wanted:
                scores_D[index] = probability
                break
    return np.clip(scores_D, 0.0, 1.0)


def score_documents(classifier: Classifier, views: TextViews) -> np.ndarray:
    """Prepare and score documents: float32, shape (D,). See `score`."""
    return score(classifier, prepare(views, classifier.preparation))


def _train(library: Any, train_file: Path, settings: TrainSettings) -> Any:
    try:
        with _zeroed_memory():
            return library.train_supervised(
                input=str(train_file),
                dim=settings.dim,
                epoch=settings.epoch,
                lr=settings.lr,
                wordNgrams=settings.word_ngrams,
                bucket=settings.bucket,
                minCount=settings.min_count,
                seed=settings.seed,
                minn=0,
                maxn=0,
                thread=settings.threads,
                verbose=0,
            )
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"fastText training failed ({error}) with lr {settings.lr}, min_count {settings.min_count}; "
            "lower lr if it met NaN, lower min_count if no word is left"
        ) from error


@contextmanager
def _zeroed_memory() -> Iterator[None]:
    """Let malloc hand out zeroed blocks; where the C library has no ``mallopt`` (not glibc), change nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_PERTURB, 0xFF)  # blocks are filled with the complement
    try:
        yield
    finally:
        if mallopt is not None:
            mallopt(_M_PERTURB, 0)


def _write_in_hash_order(lines: Iterable[tuple[str, bytes]], folder: Path, out: Path) -> dict[str, int]:
    """Write labelled lines sorted by hash: a radix pass to 64 files, then one file at a time in memory."""
    num_lines: dict[str, int] = {}
    parts = [folder / f"sort-{k:02d}" for k in range(_NUM_SORT_FILES)]
    with ExitStack() as stack:
        files = [stack.enter_context(part.open("wb")) for part in parts]
        for label, line in lines:
            if not label or label.split() != [label]:
                raise SchemaError(f"label {label!r} is empty or holds white space; use one word")
            if b"\n" in line:
                raise SchemaError(f"a line of label {label!r} holds a line feed; pass text through prepare()")
            if not line:
                continue
            num_lines[label] = num_lines.get(label, 0) + 1
            row = b"%b%b %b\n" % (LABEL_PREFIX.encode(), label.encode(), line)
            files[hashlib.sha256(row).digest()[0] * _NUM_SORT_FILES // 256].write(row)
    with out.open("wb") as target:
        for part in parts:
            rows = part.read_bytes().split(b"\n")[:-1]
            rows.sort(key=lambda row: hashlib.sha256(row + b"\n").digest())
            target.writelines(row + b"\n" for row in rows)
            part.unlink()
    return dict(sorted(num_lines.items()))


def _card_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _check_settings(settings: TrainSettings) -> None:
    bounds = {
        "dim": (1, 2048),
        "epoch": (1, 1000),
        "word_ngrams": (1, 10),
        "bucket": (1, 2**31 - 1),
        "min_count": (1, 2**31 - 1),
        "threads": (1, 256),
    }
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ConfigError(f"classifier setting {name} is {value}, outside {low}..{high}")
    if not 0 < settings.lr <= 10:
        raise ConfigError(f"classifier setting lr is {settings.lr}, outside (0, 10]; 0.1 to 1 are usual")
