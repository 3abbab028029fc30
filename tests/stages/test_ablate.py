from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from refinery.errors import ConfigError
from refinery.recipe import parse_recipe
from refinery.shards.manifest import load_manifest
from refinery.shards.plan import load_plan
from refinery.shards.reader import ShardReader
from refinery.stages.ablate import Ablation, ablate_folder, run_ablation
from refinery.stages.ablate_arms import parse_arms, shared_beginnings
from refinery.stages.workspace import Run
from tests.stages.corpus import recipe_values, write_jsonl
from tests.stages.runs import files_of, whole_table

pytestmark = pytest.mark.spark

ARMS = "raw,rules,+dedup_documents"
TRAINED = 3
"""raw, raw again for the noise, +dedup_documents; rules packs the same rows as raw."""


def _values(corpus, workdir):
    values = recipe_values(corpus, workdir)
    values["train"] = {"batch_tokens": 1024, "learning_rate": 4e-3, "schedule": "constant", "checkpoint_every": 5,
                       "options": {"evaluate": {"at_start": True}}}  # shows the weights that pairs start from
    values["mix"]["max_epochs"] = {"law": 8, "web": 8, "news": 8, "replay": 8}
    return values


def _recipe(values):
    return parse_recipe(values)


@pytest.fixture(scope="module")
def own_set(corpus, tmp_path_factory):
    """A set of the user's: new text, and one document that also stands in the pool."""
    folder = tmp_path_factory.mktemp("own")
    pooled = [json.loads(line) for line in (corpus.root / "web" / "a.jsonl").read_text().splitlines()]
    copied = next(row for row in pooled if row["id"].startswith("w") and not row["id"].endswith("near"))
    rows = [{"id": f"own{n}", "text": " ".join(f"clause{n} party{i} agrees" for i in range(60))} for n in range(3)]
    write_jsonl(folder / "own.jsonl", [*rows, {"id": "copied", "text": copied["text"]}])
    return folder / "own.jsonl", copied["text"]


@pytest.fixture(scope="module")
def ablated(spark, corpus, own_set, tmp_path_factory):
    from refinery.recipe import Input

    values = _values(corpus, tmp_path_factory.mktemp("ablate") / "run")
    recipe = _recipe(values)
    own = Input(source="heldout-mine", domain="mine", format="jsonl", paths=(str(own_set[0]),))
    asked = Ablation(parse_arms(ARMS, recipe), seeds=1, tokens=5_120, jobs=2, heldout_rows=8, own=(own,))
    result = run_ablation(_lent(recipe, spark), asked)
    return values, asked, result


def _lent(recipe, spark):
    """A run in the session of the tests, which it does not stop."""

    class Lent(Run):
        def stop_session(self):
            pass

    run = Lent(recipe)
    run.use_session(spark)
    return run


def test_arms_differ_in_documents_and_in_nothing_else(ablated):
    values, asked, result = ablated
    root = ablate_folder(_recipe(values))
    manifests = {a.name: load_manifest(root / "arms" / a.folder / "data") for a in asked.arms}
    assert len({m.tokenizer.sha256 for m in manifests.values()}) == 1
    held = {
        name: sorted((p.path, sorted((k, f.sha256) for k, f in p.files.items()))
                     for s in m.streams if s.key.split == "validation" for p in s.parts)
        for name, m in manifests.items()
    }  # fmt: skip
    assert held["raw"]
    assert len({str(h) for h in held.values()}) == 1
    assert manifests["raw"].content_hash != manifests["+dedup_documents"].content_hash
    assert {r.record.tokens for r in result.runs} == {5_120}
    shares = [facts["domain_tokens"] for facts in result.facts["arms"].values()]
    assert all(share == shares[0] for share in shares)
    documents = [facts["documents"] for facts in result.facts["arms"].values()]
    assert documents == sorted(documents, reverse=True)
    assert len(set(documents)) == 3


def test_seeds_pair_and_the_first_arm_is_trained_twice(ablated):
    values, asked, result = ablated
    assert [(r.arm, r.seed, r.again) for r in sorted(result.runs, key=lambda r: (r.arm, r.again, r.seed))] == [
        ("+dedup_documents", 1, False), ("raw", 1, False), ("raw", 1, True), ("rules", 1, False),
    ]  # fmt: skip
    root = ablate_folder(_recipe(values))
    plans = {a.name: load_plan(root / "arms" / a.folder / "data" / "plan" / "tiny-seed-1.json") for a in asked.arms}
    assert {p.seed for p in plans.values()} == {1}
    assert {p.total_rows for p in plans.values()} == {5_120 // 64}
    starts = {}
    for run in result.runs:
        losses = {p.stream: p.loss_nats for p in run.record.points if p.step == 0}
        assert losses
        starts.setdefault((run.seed, run.again), []).append(losses)
    for same in starts.values():
        assert all(one == same[0] for one in same)
    assert starts[1, False][0] != starts[1, True][0]


def test_an_arm_that_packs_the_same_rows_is_not_trained_again(ablated):
    _, _, result = ablated
    assert {a: f["trained_as"] for a, f in result.facts["arms"].items()} == {
        "raw": "raw", "rules": "raw", "+dedup_documents": "+dedup_documents",
    }  # fmt: skip
    records = {(r.arm, r.seed): r.record for r in result.runs if not r.again}
    assert records["rules", 1] is records["raw", 1]


def test_no_arm_has_seen_what_it_is_measured_on(ablated, own_set):
    values, _, _ = ablated
    root = ablate_folder(_recipe(values))
    trained = {r["text"] for r in whole_table(str(root / "train"), "ingest", "documents", ["text"]).to_pylist()}
    held = whole_table(str(root / "heldout"), "ingest", "documents", ["text", "source", "split"]).to_pylist()
    assert {r["split"] for r in held} == {"validation"}
    assert not trained & {r["text"] for r in held}
    assert own_set[1] not in trained
    assert own_set[1] in {r["text"] for r in held if r["source"] == "heldout-mine"}
    folder = root / "arms" / "raw" / "data"
    manifest = load_manifest(folder)
    reader = ShardReader(folder, manifest)
    keys = {"train": set(), "validation": set()}
    for index, stream in enumerate(manifest.streams):
        keys[stream.key.split] |= set(reader.segments(index, np.arange(stream.rows)).doc_hash.tolist()) - {0}
    assert keys["validation"]
    assert not keys["train"] & keys["validation"]


def test_near_twins_of_held_out_text_leave_the_raw_arm(ablated, corpus):
    values, _, _ = ablated
    root = ablate_folder(_recipe(values))
    sides = {}
    for side in ("train", "heldout"):
        rows = whole_table(str(root / side), "ingest", "documents", ["text"]).to_pylist()
        sides[side] = {r["text"] for r in rows}
    texts = {}
    for name in ("a", "b"):
        for line in (corpus.root / "web" / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            texts[row["id"]] = row["text"]
    split = [p for p in corpus.near if (texts[p[0]] in sides["heldout"]) or (texts[p[1]] in sides["heldout"])]
    assert split, "the corpus has to plant a pair that the split divides"
    for pair in split:
        assert not any(texts[one] in sides["train"] for one in pair)


def test_shared_stages_run_once_and_a_second_call_does_nothing(spark, ablated):
    values, asked, result = ablated
    root = ablate_folder(_recipe(values))
    assert list(shared_beginnings(asked.arms)) == [("rules",), ("rules", "dedup_documents")]
    assert (root / "arms" / "rules-dedup_documents" / "rules").resolve() == (root / "stages" / "rules" / "rules")
    stages = [p for p in root.iterdir() if p.name != "arms"]
    before = {str(p): files_of(p) for p in stages}
    runs = sorted(root.glob("arms/*/runs/*/run.json"))
    times = [p.stat().st_mtime_ns for p in runs]
    told: list[str] = []
    again = run_ablation(_lent(_recipe(values), spark), asked, told.append)
    assert {str(p): files_of(p) for p in stages} == before
    assert [p.stat().st_mtime_ns for p in runs] == times
    assert sum("stood already" in line for line in told) == TRAINED
    assert [r.record.final_losses() for r in again.runs] == [r.record.final_losses() for r in result.runs]


def test_a_run_that_is_missing_is_trained_again_to_the_same_losses(spark, ablated):
    values, asked, _ = ablated
    root = ablate_folder(_recipe(values))
    lost = root / "arms" / "rules-dedup_documents" / "runs" / "tiny-seed-1"
    old = json.loads((lost / "run.json").read_text())["points"]
    for path in sorted(lost.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    told: list[str] = []
    run_ablation(_lent(_recipe(values), spark), asked, told.append)
    assert sum("stood already" in line for line in told) == TRAINED - 1
    new = json.loads((lost / "run.json").read_text())["points"]
    assert [p["loss_nats"] for p in new] == pytest.approx([p["loss_nats"] for p in old], rel=1e-6)


def test_an_arm_that_cannot_give_the_budget_is_named(spark, ablated):
    values, asked, _ = ablated
    with pytest.raises(ConfigError, match=r"arm \S+ holds at most [\d,]+ tokens .* 90,000,000 are asked"):
        run_ablation(_lent(_recipe(values), spark), Ablation(asked.arms, tokens=90_000_000, own=asked.own))


def test_bad_arms_are_refused(corpus, tmp_path):
    recipe = _recipe(_values(corpus, tmp_path / "run"))
    for text, message in [
        ("raw", "1 arms are nothing to compare"),
        ("raw,rule", "did you mean rules"),
        ("raw,quality", "needs section quality"),
        ("raw,rules,+rules", "run the same stages"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_arms(text, recipe)


def test_arms_read_as_written(corpus, tmp_path):
    values = _values(corpus, tmp_path / "run")
    values["screen"] = {"languages": ["zh", "en", "de"]}
    recipe = _recipe(values)
    arms = parse_arms("raw, rules, +dedup_documents, dedup_documents", recipe)
    assert [a.stages for a in arms] == [
        (), ("screen", "rules"), ("screen", "rules", "dedup_documents"), ("dedup_documents",),
    ]  # fmt: skip
    assert [a.stages for a in parse_arms("raw,screen,+rules", recipe)] == [(), ("screen",), ("screen", "rules")]


def test_a_name_that_the_recipe_has_is_refused(corpus, tmp_path):
    from refinery.recipe import Input

    recipe = _recipe(_values(corpus, tmp_path / "run"))
    own = Input(source="heldout-law", domain="law", format="jsonl", paths=("x.jsonl",))
    with pytest.raises(ConfigError, match="the recipe has that domain"):
        run_ablation(Run(recipe), Ablation(parse_arms(ARMS, recipe), own=(own,)))
    without = {k: v for k, v in _values(corpus, tmp_path / "run").items() if k not in ("pack", "mix", "train")}
    with pytest.raises(ConfigError, match="needs section mix, pack"):
        run_ablation(Run(_recipe(without)), Ablation(parse_arms(ARMS, recipe)))


def test_folders(ablated):
    values, _, _ = ablated
    assert Path(values["workdir"], "ablate", "vocabulary", "tokenize", "tokenizer", "tokenizer.json").is_file()


def test_mixtures_are_plans_over_the_same_shards(spark, corpus, tmp_path):
    from refinery.stages.ablate_mix import MixSearch, mixture_data, train_mixtures

    values = _values(corpus, tmp_path / "run")
    del values["train"]["options"]
    recipe = _recipe(values)
    asked = MixSearch(tokens=2_048, bounds={"law": (0.1, 0.5)}, heldout_rows=4)
    data = mixture_data(_lent(recipe, spark), asked)
    assert data.recipe_shares == pytest.approx({"law": 0.3, "web": 0.4, "news": 0.2, "replay": 0.1})
    assert data.bounds["law"] == (0.1, pytest.approx(0.5))
    assert data.targets == ("law",)
    shares = {"a": data.recipe_shares, "b": {"law": 0.1, "web": 0.2, "news": 0.3, "replay": 0.4}}
    runs = train_mixtures(data, asked, shares)
    assert [r.arm for r in runs] == ["a", "b"]
    for run in runs:
        total = sum(run.record.stream_tokens.values())
        seen = {s.split("/")[0]: n / total for s, n in run.record.stream_tokens.items()}
        assert seen["law"] == pytest.approx(shares[run.arm]["law"], abs=0.1)
        assert {p.step for p in run.record.points} == {run.record.steps}  # only the end is compared
    assert len({r.record.data["content_hash"] for r in runs}) == 1
    with pytest.raises(ConfigError, match="packed for"):
        train_mixtures(data, asked, {"c": {"law": 0.9, "web": 0.1}})
    with pytest.raises(ConfigError, match="bounds name mail"):
        mixture_data(_lent(recipe, spark), MixSearch(tokens=2_048, bounds={"mail": (0.1, 0.5)}))


@pytest.mark.parametrize(
    ("count", "jobs", "groups"),
    [(21, 2, [(18, 2), (3, 3)]), (20, 2, [(20, 2)]), (3, 2, [(3, 3)]), (1, 2, [(1, 2)]), (0, 4, [(0, 4)]),
     (20, 8, [(8, 8), (12, 12)])],
)  # fmt: skip
def test_the_last_trainings_share_the_machine_where_the_user_leaves_it_to_us(count, jobs, groups):
    from refinery.stages.ablate_train import groups_of_runs

    assert groups_of_runs(count, jobs, share_last=True) == groups
    assert groups_of_runs(count, jobs, share_last=False) == [(count, jobs)]
