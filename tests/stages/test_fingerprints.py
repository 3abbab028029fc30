from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from refinery.io import parts as part_files
from refinery.stages.workspace import need_stage
from tests.stages.corpus import recipe_values, write_jsonl
from tests.stages.runs import DATA_STAGES, files_of, fork, parts_of, run_stages, shard_hash, whole_table

pytestmark = pytest.mark.spark


def _changed(before, after):
    return {name for name, time in after.items() if before.get(name) != time}


def _folder(name):
    return "/".join(name.split("/")[:2])


def test_second_run_writes_nothing(spark, done, tmp_path):
    values = fork(done, tmp_path / "run")
    before = files_of(values["workdir"])
    run_stages(spark, values)
    assert files_of(values["workdir"]) == before


def test_second_run_needs_no_session(done, tmp_path):
    from refinery.recipe import parse_recipe
    from refinery.stages.pipeline import run_stage
    from refinery.stages.workspace import Run

    run = Run(parse_recipe(fork(done, tmp_path / "run")))
    for stage in DATA_STAGES:
        run_stage(run, stage)
    assert run._spark is None


def test_threshold_redoes_decisions_and_what_depends_on_them(spark, done, tmp_path):
    preset = tmp_path / "short.yaml"
    rule = {"name": "longer", "signal": "num_words", "min": 118, "scripts": "spaced", "source": "test"}
    preset.write_text(yaml.safe_dump({"name": "short", "doc": "test", "rules": [rule]}), encoding="utf-8")
    values = fork(done, tmp_path / "run")
    values["rules"] = {"presets": ["gopher", str(preset)]}
    before = files_of(values["workdir"])
    run_stages(spark, values)
    changed = _changed(before, files_of(values["workdir"]))
    assert not any(name.startswith("ingest/") for name in changed)
    assert not any(_folder(name) == "rules/signals" for name in changed), "signals are facts"
    assert sum(_folder(name) == "rules/decisions" for name in changed) == len(parts_of(values["workdir"]))
    assert {name.split("/")[0] for name in changed} >= {"rules", "dedup_documents", "tokenize", "mix", "pack"}
    law = next(p for p in parts_of(values["workdir"]) if _sources(values["workdir"], p) == {"laws"})
    assert f"dedup_documents/bands/part-{law:08d}.parquet" not in changed, "no decision of this part changed"
    fresh = {**values, "workdir": str(tmp_path / "fresh")}
    run_stages(spark, fresh, DATA_STAGES[:3])
    assert _dedup_hash(values) == _dedup_hash(fresh) != _dedup_hash(done)
    run_stages(spark, {**values, "rules": done["rules"]}, DATA_STAGES[:3])
    assert _dedup_hash(values) == _dedup_hash(done), "and back again"


def _dedup_hash(values):
    return need_stage(values["workdir"], "dedup_documents").content_hash


def _sources(workdir, part):
    return set(part_files.read_part(workdir, "ingest", "documents", part, ["source"]).column("source").to_pylist())


def _parts_from(workdir, source):
    return {p for p in parts_of(workdir) if _sources(workdir, p) == {source}}


def test_touched_file_redoes_only_its_parts(spark, own_corpus, tmp_path):
    values = recipe_values(own_corpus, tmp_path / "run")
    stages = DATA_STAGES[:2]
    old = run_stages(spark, values, stages)
    before = files_of(values["workdir"])
    os.utime(own_corpus.root / "news.jsonl", ns=(1, 1))
    new = run_stages(spark, values, stages)
    redone = _changed(before, files_of(values["workdir"])) - {"ingest/_stage.json"}
    wanted = {f"ingest/documents/part-{p:08d}.parquet" for p in _parts_from(values["workdir"], "news")}
    assert redone == wanted, "same content: rules have nothing to do"
    assert {s: m.content_hash for s, m in new.items()} == {s: m.content_hash for s, m in old.items()}


def test_changed_file_redoes_only_its_parts_downstream(spark, own_corpus, tmp_path):
    values = recipe_values(own_corpus, tmp_path / "run")
    stages = DATA_STAGES[:2]
    run_stages(spark, values, stages)
    before = files_of(values["workdir"])
    path = own_corpus.root / "news.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("Vertrag", "Betrieb", 3), encoding="utf-8")
    run_stages(spark, values, stages)
    redone = {n for n in _changed(before, files_of(values["workdir"])) if n.endswith(".parquet")}
    news = _parts_from(values["workdir"], "news")
    assert redone
    assert {int(n[-16:-8]) for n in redone} <= news
    assert {_folder(n) for n in redone} == {"ingest/documents", "rules/signals", "rules/words", "rules/decisions"}


def test_fewer_parts_leave_no_trace_in_results(spark, own_corpus, tmp_path):
    """Part files of an earlier, longer plan stay on disk and are not read."""
    values = recipe_values(own_corpus, tmp_path / "run")
    values = {k: v for k, v in values.items() if k not in ("tokenizer", "mix", "pack")}
    values["inputs"] = values["inputs"][1:2]
    stages = DATA_STAGES[:3]
    run_stages(spark, values, stages)
    (own_corpus.root / "web" / "b.jsonl").unlink()
    shrunk = run_stages(spark, values, stages)
    fresh = run_stages(spark, {**values, "workdir": str(tmp_path / "fresh")}, stages)
    assert {s: m.content_hash for s, m in shrunk.items()} == {s: m.content_hash for s, m in fresh.items()}


@pytest.mark.parametrize(
    ("stage", "table", "part"),
    [
        ("ingest", "documents", 3), ("rules", "signals", 0), ("rules", "words", 1), ("rules", "decisions", 2),
        ("dedup_documents", "decisions", 4), ("tokenize", "tokens", 1), ("mix", "selection", 5),
    ],
)  # fmt: skip
def test_deleted_part_is_made_again(spark, done, tmp_path, stage, table, part):
    values = fork(done, tmp_path / "run")
    path = Path(part_files.part_path(values["workdir"], stage, table, part))
    bytes_before, hash_before = path.read_bytes(), need_stage(done["workdir"], stage).content_hash
    path.unlink()
    before = files_of(values["workdir"])
    run_stages(spark, values)
    changed = {n for n in _changed(before, files_of(values["workdir"])) if n.endswith(".parquet")}
    assert path.read_bytes() == bytes_before
    assert need_stage(values["workdir"], stage).content_hash == hash_before
    found_anew = ("clusters", "edges", "candidate_pairs", "copies", "flips", "candidates")  # small
    working = {f"dedup_documents/{t}" for t in found_anew}
    redone = {n for n in changed if _folder(n) not in working}
    assert str(path.relative_to(values["workdir"])) in redone
    assert {(n.split("/")[0], n[-16:-8]) for n in redone} == {(stage, f"{part:08d}")}


def test_deleted_shard_is_packed_again(spark, done, tmp_path):
    values = fork(done, tmp_path / "run")
    shard = next(Path(values["workdir"], "pack", "shards", "law").rglob("*.bin"))
    data = shard.read_bytes()
    shard.unlink()
    before = files_of(values["workdir"], ["pack"])
    run_stages(spark, values)
    assert shard.read_bytes() == data
    assert shard_hash(values) == shard_hash(done)
    others = {n for n in _changed(before, files_of(values["workdir"], ["pack"])) if n.endswith(".bin")}
    assert others == {str(shard.relative_to(values["workdir"]))}


@pytest.mark.parametrize("stage", ["ingest", "rules", "dedup_documents", "tokenize", "mix", "pack"])
def test_force_makes_every_file_again(spark, done, tmp_path, stage):
    values = fork(done, tmp_path / "run")
    damaged = next(p for p in sorted(Path(values["workdir"], stage).rglob("*")) if p.suffix in (".parquet", ".bin"))
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1000] + b"\0" + data[-999:])
    before = files_of(values["workdir"], [stage])
    run_stages(spark, values, [stage], force=[stage])
    kinds = (".parquet", ".bin", ".idx", ".seg")
    untouched = {n for n, t in files_of(values["workdir"], [stage]).items() if before.get(n) == t and n.endswith(kinds)}
    assert not untouched
    assert damaged.read_bytes() == data
    assert need_stage(values["workdir"], stage).content_hash == need_stage(done["workdir"], stage).content_hash


def test_repeated_keys_do_not_remember_earlier_inputs(spark, tmp_path):
    """A document keeps the key of a repeat only as long as another one has its id."""
    text = "one and another line of the text number {}"
    root = tmp_path / "in"

    def write(name, ids):
        write_jsonl(root / name, [{"id": i, "text": text.format(f"{name}{i}")} for i in ids])

    write("a.jsonl", ["x", "y", "y"])
    write("b.jsonl", ["x", "x", "z"])
    source = {"source": "s", "domain": "d", "format": "jsonl", "paths": [str(root)]}
    values = {"name": "n", "workdir": str(tmp_path / "run"), "inputs": [source], "ingest": {"part_bytes": 1024}}
    source["paths"] = [str(root / "a.jsonl"), str(root / "b.jsonl")]
    values["inputs"] = [{**source, "source": "s"}]
    first = run_stages(spark, values, ["ingest"])["ingest"]
    keys = whole_table(values["workdir"], "ingest", "documents", ["doc_key"]).column("doc_key").to_pylist()
    assert len(set(keys)) == 6
    for ids in (["w", "y", "v"], ["x", "y", "y"], ["w", "x", "x"]):
        write("a.jsonl", ids)
        again = run_stages(spark, values, ["ingest"])["ingest"]
        fresh = run_stages(spark, {**values, "workdir": str(tmp_path / f"fresh-{'-'.join(ids)}")}, ["ingest"])
        assert again.content_hash == fresh["ingest"].content_hash, ids
        if ids == ["x", "y", "y"]:
            assert again.content_hash == first.content_hash


def test_recipe_facts_that_are_no_results_redo_nothing(spark, done, tmp_path):
    values = fork(done, tmp_path / "run")
    values["spark"] = {"master": "local[1]", "shuffle_partitions": 9, "driver_memory": "2g"}
    values["report"] = {"samples": 3}
    values["name"] = "other"
    before = files_of(values["workdir"])
    run_stages(spark, values)
    assert files_of(values["workdir"]) == before
    assert json.loads(json.dumps(values)) == values
