"""quality, first half: draw training text, train or open the models, and know what each is for."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import CountRow, fingerprint_of
from refinery.contracts.tables import TRAINING
from refinery.errors import DataError
from refinery.hashing import key_prefix_uint64, keyed_uniform
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.io.read_labelled import read_labelled
from refinery.io.survivors import Survivors, read_survivors
from refinery.kernels.clean import clean_text, text_hash
from refinery.kernels.fasttext_model import (
    Classifier,
    TrainSettings,
    open_classifier,
    open_declared,
    score,
    train_classifier,
)
from refinery.kernels.preparation import preparation_digest, prepare
from refinery.kernels.text import TextViews, text_views, views_of
from refinery.recipe import Quality, QualityClassifier
from refinery.stages.chinese_words import boundaries_of, with_words
from refinery.stages.decisions import located
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.workspace import Run

FORMAT_VERSION = 2
"""Changes with any change to what a training part holds."""
STAGE = "quality"
HOLDOUT_FRAC = 0.1
HARD_NEGATIVE_CANDIDATES = 4
"""Negatives looked through for hard ones, as a multiple of those that are trained on."""
MAX_LINE_BYTES = 8192
"""Text of one document that training reads; scoring reads all of it."""
POSITIVE, NEGATIVE = "positive", "negative"
_UNKNOWN = ("", "und")


@dataclass(frozen=True)
class Member:
    """One fastText model of a classifier: its only one, or that of one language."""

    name: str
    column: str
    """Name of the classifier."""
    settings: dict[str, Any]
    """The classifier's section of the recipe."""
    languages: tuple[str, ...]
    preparation: str
    rates: dict[str, float]
    """Source -> share of its documents that are drawn, to train on or to judge by."""
    path: str = ""
    sha256: str = ""

    @property
    def trained(self) -> bool:
        """Whether this run trains it."""
        return self.settings["model"] is None


@dataclass(frozen=True)
class TrainingTask:
    """Everything a part task of the draw needs."""

    workdir: str
    seed: int
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]
    members: tuple[Member, ...]


def plan_members(section: Quality, counts: Sequence[CountRow]) -> tuple[Member, ...]:
    """Return every model that the recipe asks for, with the share of each source that is drawn for it.

    Raises:
        DataError: a class has no document left, or the pool lacks the languages of a classifier.
    """
    members = []
    for one in section.each():
        languages: list[tuple[str, ...]] = [(lang,) for lang in one.languages] if one.per_language else [one.languages]
        for langs in languages:
            name = f"{one.name}-{langs[0]}" if one.per_language else one.name
            _check_languages(one, langs, counts)
            rates = _rates(one, name, langs, counts)
            members.append(Member(name, one.name, one.model_dump(mode="json"), langs, one.prepared_as(), rates))
    return tuple(members)


def _check_languages(one: QualityClassifier, langs: tuple[str, ...], counts: Sequence[CountRow]) -> None:
    pool = {c.lang for c in counts if c.kind == "kept" and c.role == "pool"}
    lacking = sorted(set(langs) - pool)
    if langs and len(lacking) == len(langs) and not pool <= set(_UNKNOWN):
        raise DataError(
            f"classifier {one.name} is for {', '.join(langs)}, the pool has {_listed(pool)}; name languages of the "
            "pool, or leave the classifier out"
        )
    good = {c.lang for c in counts if c.kind == "kept" and c.source in one.positives} - set(_UNKNOWN)
    if good and not pool & {*_UNKNOWN} and not good & pool and pool:
        raise DataError(
            f"the positives of classifier {one.name} are in {_listed(good)}, the pool in {_listed(pool)}: it would "
            "only tell languages apart; name positives in a language of the pool"
        )


def _listed(langs: set[str]) -> str:
    return ", ".join(sorted(lang or "und" for lang in langs)) or "nothing"


def _rates(one: QualityClassifier, name: str, langs: tuple[str, ...], counts: Sequence[CountRow]) -> dict[str, float]:
    """Return the share of each source's documents that is drawn, classes bounded alike."""
    docs: dict[str, int] = {}
    for row in counts:
        if row.kind == "kept" and row.split == "train" and (not langs or row.lang in langs):
            docs[row.source] = docs.get(row.source, 0) + row.docs
    rates: dict[str, float] = {}
    for label, sources in ((POSITIVE, one.positives), (NEGATIVE, one.negatives)):
        total = sum(docs.get(s, 0) for s in sources)
        if sources and total == 0 and not (one.model is None and one.labelled):
            of = f" in {', '.join(langs)}" if langs else ""
            raise DataError(
                f"classifier {name}: its {label}s ({', '.join(sources)}) have 0 training documents{of} left after the "
                "stages before; loosen those or name other sources"
            )
        many = HARD_NEGATIVE_CANDIDATES if label == NEGATIVE and one.hard_negative_frac else 1
        rates |= dict.fromkeys(sources, min(1.0, many * one.max_train_docs / max(total, 1)))
    return rates


def make_models(run_: Run, task: TrainingTask) -> tuple[tuple[Member, ...], dict[str, Any]]:
    """Train or open every model; return the members with their files, and what is known of each.

    Raises:
        ConfigError: a model, its label or preparation is missing. IntegrityError: a model is damaged or was made for
            another preparation. DataError: a class has no text.
    """
    trained = [m for m in task.members if m.trained]
    prints: list[str] = []
    if any(m.rates for m in trained):
        made = run_part_tasks(run_.spark, sorted(task.upstream), functools.partial(training_part, task))
        prints = [r["training"]["content_hash"] for r in made]
    members, facts = [], {}
    for member in task.members:
        opened = _trained(task, member, fingerprint_of(prints)) if member.trained else _declared(member)
        path = str(_model_path(task, member)) if member.trained else str(member.settings["model"])
        members.append(Member(**{**member.__dict__, "path": path, "sha256": opened.sha256}))
        facts[member.name] = {
            "classifier": member.column,
            "sha256": opened.sha256,
            "preparation": member.preparation,
            "languages": list(member.languages),
            "trained_here": member.trained,
        }
    return tuple(members), facts


def open_member(member: Member) -> Classifier:
    """Open a model whose file is known, and check that it is still that file."""
    if member.trained:
        return open_classifier(Path(member.path), POSITIVE)
    return _declared(member)


def _declared(member: Member) -> Classifier:
    given = QualityClassifier(**member.settings)
    sha256 = member.sha256 or given.model_sha256
    return open_declared(Path(str(given.model)), given.scored_labels(), member.preparation, sha256)


def _model_path(task: TrainingTask, member: Member) -> Path:
    return storage.local_path(storage.join(task.workdir, STAGE)) / f"{member.name}.bin"


def training_part(task: TrainingTask, part: int) -> dict[str, Any]:
    """Write the prepared training lines of one part."""
    path = part_files.part_path(task.workdir, STAGE, "training", part)
    drawn = [
        [m.name, m.rates, m.preparation, preparation_digest(m.preparation), list(m.languages), m.settings["positives"]]
        for m in task.members
    ]
    print_ = fingerprint_of("training", FORMAT_VERSION, task.seed, drawn, task.upstream[part])
    found = part_files.found_part(path, print_)
    if found is None:
        tables = [TRAINING.empty_table()]
        columns = ["doc_id", "source", "split", "lang", "text_hash", "text"]
        segmented = any(m.preparation == "segmented" for m in task.members)
        columns = with_words(task.workdir, part, columns, task.upto, wanted=segmented)
        for piece in read_survivors(task.workdir, part, columns, task.upto, task.slice_rows):
            tables += [_lines_of(task, member, piece) for member in task.members if member.trained]
        found = part_files.write_part(path, pa.concat_tables(tables), TRAINING, print_)
    return {"training": located(part, found)}


def drawn_rows(seed: int, rates: Mapping[str, float], table: pa.Table, languages: Sequence[str]) -> np.ndarray:
    """Return bool, shape (rows,): documents of split train that a classifier draws, hold-out included."""
    keys = key_prefix_uint64(table.column("text_hash").to_pylist())
    wanted = np.array([rates.get(s, 0.0) for s in table.column("source").to_pylist()])
    train = pc.equal(table.column("split"), "train").to_numpy(zero_copy_only=False)
    drawn = train & (keyed_uniform(seed, "quality.sample", keys) < wanted)
    if languages:
        drawn &= pc.is_in(table.column("lang"), pa.array(languages, pa.string())).to_numpy(zero_copy_only=False)
    return drawn


def held_out(seed: int, keys: np.ndarray) -> np.ndarray:
    """Return bool: documents that judge and never teach; a document is held out of every classifier alike."""
    return keyed_uniform(seed, "quality.holdout", keys) < HOLDOUT_FRAC


def _lines_of(task: TrainingTask, member: Member, piece: Survivors) -> pa.Table:
    table = piece.table
    keys = key_prefix_uint64(table.column("text_hash").to_pylist())
    drawn = np.flatnonzero(drawn_rows(task.seed, member.rates, table, member.languages) & ~held_out(task.seed, keys))
    chosen = table.take(pa.array(drawn))
    views, boundaries = prepared_from(Survivors(piece.rows[drawn], chosen), member.preparation)
    lines = _shortened(prepare(views, member.preparation, boundaries))
    positives = set(member.settings["positives"])
    labels = [POSITIVE if s in positives else NEGATIVE for s in chosen.column("source").to_pylist()]
    columns = {
        "doc_id": chosen.column("doc_id"),
        "classifier": pa.array([member.name] * len(drawn), pa.string()),
        "label": pa.array(labels, pa.string()),
        "key": pa.array(keys[drawn].view(np.int64)),
        "line": _binary(lines),
    }
    return pa.table(columns).cast(TRAINING)


def prepared_from(piece: Survivors, preparation: str) -> tuple[TextViews, np.ndarray | None]:
    """Return the text of a slice and, for a preparation that wants them, its word boundaries."""
    if preparation == "segmented":
        return boundaries_of(piece)
    return text_views(piece.table.column("text")), None


def _shortened(lines: TextViews) -> TextViews:
    """Cut training lines to `MAX_LINE_BYTES` at a blank: a book must not outweigh a hundred pages, nor take as long."""
    kept = bytearray()
    offsets = [0]
    for start, end in zip(lines.offsets[:-1].tolist(), lines.offsets[1:].tolist(), strict=True):
        line = lines.data[start:end].tobytes()
        if len(line) > MAX_LINE_BYTES:
            line = (
                line[: max(line.rfind(b" ", 0, MAX_LINE_BYTES), 0)]
                or line[:MAX_LINE_BYTES].decode("utf-8", "ignore").encode()
            )
        kept += line
        offsets.append(len(kept))
    return TextViews(np.array(offsets, dtype=np.int64), np.frombuffer(bytes(kept), dtype=np.uint8))


def _binary(lines: TextViews) -> pa.Array:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(lines.offsets)), pa.py_buffer(np.ascontiguousarray(lines.data))]
    return pa.Array.from_buffers(pa.large_binary(), lines.num_docs, buffers)


def labelled_sample(seed: int, given: QualityClassifier) -> list[tuple[bool, int, str]]:
    """Return (good, key, text) of labelled files: of each class those with the smallest draws, hold-out included."""
    if given.labelled is None:
        return []
    heaps: dict[bool, list[tuple[float, int, str]]] = {True: [], False: []}
    good_labels = set(given.labelled.positive_labels)
    files = given.labelled
    for label, raw in read_labelled(files.paths, files.text_field, files.label_field):
        text = clean_text(raw)
        key = key_prefix_uint64([text_hash(text)])
        draw = float(keyed_uniform(seed, "quality.sample", key)[0])
        heap = heaps[label in good_labels]
        heapq.heappush(heap, (-draw, int(key[0]), text))
        if len(heap) > given.max_train_docs:
            heapq.heappop(heap)
    return [(good, key, text) for good, heap in heaps.items() for _, key, text in sorted(heap, reverse=True)]


def _trained(task: TrainingTask, member: Member, parts_print: str) -> Classifier:
    """Train a member where its model does not stand yet, and open it."""
    given = QualityClassifier(**member.settings)
    labelled = [
        (POSITIVE if good else NEGATIVE, key, text)
        for good, key, text in labelled_sample(task.seed, given)
        if not held_out(task.seed, np.array([key], dtype=np.uint64))[0]
    ]
    settings = TrainSettings(
        dim=given.dim,
        epoch=given.epoch,
        lr=given.learning_rate,
        word_ngrams=given.word_ngrams,
        bucket=given.pair_buckets,
        seed=task.seed % 2**31,
        threads=given.threads,
    )
    path = _model_path(task, member)
    marker = path.with_name(f"{path.name}.fingerprint")
    chosen = [given.hard_negative_frac, given.negatives_per_positive, [(label, key) for label, key, _ in labelled]]
    wanted = fingerprint_of(parts_print, asdict(settings), member.preparation, member.name, chosen)
    if not (path.is_file() and marker.is_file() and marker.read_text(encoding="utf-8") == wanted):
        path.parent.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        extra = [
            (label, key, prepare(views_of([text]), member.preparation).data.tobytes()[:MAX_LINE_BYTES])
            for label, key, text in labelled
        ]
        lines = _Lines(task, member, extra)
        train_classifier(lines.chosen(_selection(lines, given, settings, path)), path, settings, member.preparation)
        storage.write_atomic(str(marker), wanted.encode())
    return open_classifier(path, POSITIVE)


class _Lines:
    """Training lines of one member, read part by part: labels and draws fit the driver, lines need not."""

    def __init__(self, task: TrainingTask, member: Member, extra: Sequence[tuple[str, int, bytes]]) -> None:
        self._task, self._member, self._extra = task, member, extra
        rows = list(self._read(["label", "key"]))
        self.positive = np.array([label == POSITIVE for label, _ in rows], dtype=bool)
        keys = np.array([key % 2**64 for _, key in rows], dtype=np.uint64)
        self.draws = keyed_uniform(task.seed, "quality.sample", keys)
        self.keys = keys

    def _read(self, columns: list[str]) -> Iterator[tuple[Any, ...]]:
        for part in sorted(self._task.upstream) if self._member.rates else ():
            table = part_files.read_part(self._task.workdir, STAGE, "training", part, ["classifier", *columns])
            mine = table.filter(pc.equal(table.column("classifier"), self._member.name))
            yield from zip(*(mine.column(c).to_pylist() for c in columns), strict=True)
        places = {"label": 0, "key": 1, "line": 2}
        for row in self._extra:
            yield tuple(row[places[c]] for c in columns)

    def chosen(self, mask: np.ndarray) -> Iterator[tuple[str, bytes]]:
        """Yield (label, line) of the chosen rows."""
        for wanted, (label, line) in zip(mask.tolist(), self._read(["label", "line"]), strict=True):
            if wanted:
                yield label, line


def _selection(lines: _Lines, given: QualityClassifier, settings: TrainSettings, path: Path) -> np.ndarray:
    """Return which lines the model learns from: hard negatives in place of easy ones, then the class balance."""
    mask = np.ones(len(lines.draws), dtype=bool)
    if given.hard_negative_frac > 0:
        mask = _with_hard_negatives(lines, given, settings, path)
    if given.negatives_per_positive is not None:
        good, bad = np.flatnonzero(mask & lines.positive), np.flatnonzero(mask & ~lines.positive)
        most_bad = round(given.negatives_per_positive * len(good))
        most_good = round(len(bad) / given.negatives_per_positive)
        for rows, most in ((bad, most_bad), (good, most_good)):
            surplus = rows[np.lexsort((lines.keys[rows], lines.draws[rows]))][max(most, 1) :]
            mask[surplus] = False
    return mask


def _with_hard_negatives(lines: _Lines, given: QualityClassifier, settings: TrainSettings, path: Path) -> np.ndarray:
    """Put negatives that a first model takes for positives in the place of as many others."""
    negatives = np.flatnonzero(~lines.positive)
    order = negatives[np.lexsort((lines.keys[negatives], lines.draws[negatives]))]
    num_base = min(len(order), max(1, -(-len(order) // HARD_NEGATIVE_CANDIDATES)))
    base, candidates = order[:num_base], order[num_base:]
    mask = lines.positive.copy()
    mask[base] = True
    num_hard = min(round(given.hard_negative_frac * num_base), len(candidates))
    if not num_hard:
        return mask
    first = path.with_name(f"{path.stem}.first.bin")
    train_classifier(lines.chosen(mask), first, settings, given.prepared_as())
    wanted = np.zeros(len(mask), dtype=bool)
    wanted[candidates] = True
    model = open_classifier(first, POSITIVE)
    scores = np.zeros(len(mask))
    rows = np.flatnonzero(wanted)
    batch = pa.array([line for _, line in lines.chosen(wanted)], pa.large_binary())
    scores[rows] = score(model, text_views(batch))
    hardest = candidates[np.lexsort((lines.keys[candidates], -scores[candidates]))][:num_hard]
    mask[base[num_base - num_hard :]] = False
    mask[hardest] = True
    return mask
