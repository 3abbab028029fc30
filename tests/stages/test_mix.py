from __future__ import annotations

import numpy as np
import pytest

from refinery.errors import ConfigError
from refinery.hashing import key_prefix_uint64, keyed_uint64
from refinery.shards.manifest import load_manifest
from refinery.shards.order import rows_for
from refinery.shards.plan import load_plan
from refinery.stages.workspace import need_stage
from tests.stages.runs import files_of, fork, run_stages, whole_table

pytestmark = pytest.mark.spark

BUDGETS = (12_000, 20_000, 60_000)


@pytest.fixture(scope="module")
def budgets(spark, done, tmp_path_factory):
    """Runs of one corpus with rising budgets: values by budget."""
    made = {}
    for budget in BUDGETS:
        values = fork(done, tmp_path_factory.mktemp("mix") / str(budget))
        values["mix"] = {**done["mix"], "budget_tokens": budget}
        run_stages(spark, values)
        made[budget] = values
    return made


def _rows(workdir):
    """Return doc_key, would-be train stream, tokens, selected stream of all documents that reached the mix."""
    keys = whole_table(workdir, "ingest", "documents", ["doc_key", "domain", "role", "split"]).to_pylist()
    tokens = whole_table(workdir, "tokenize", "tokens", ["num_tokens"]).column("num_tokens").to_pylist()
    streams = whole_table(workdir, "mix", "selection", ["stream"]).column("stream").to_pylist()
    return [{**k, "tokens": t, "stream": s} for k, t, s in zip(keys, tokens, streams, strict=True) if t is not None]


def test_a_budget_keeps_the_smallest_keys(budgets):
    cut = 0
    for values in budgets.values():
        ceilings = {
            s["stream"]: min(s["tokens"], s["unique_tokens"])
            for s in need_stage(values["workdir"], "mix").facts["streams"]
        }
        for domain in ("law", "web", "news", "general"):
            rows = [r for r in _rows(values["workdir"]) if r["domain"] == domain and r["split"] == "train"]
            draws = keyed_uint64(values["seed"], "mix", key_prefix_uint64([r["doc_key"] for r in rows]))
            ordered = [rows[i] for i in np.argsort(draws)]
            taken = [r["stream"] is not None for r in ordered]
            count = sum(taken)
            assert taken == [True] * count + [False] * (len(taken) - count), "a prefix in key order"
            stream = next(r["stream"] for r in ordered if r["stream"])
            tokens = [r["tokens"] for r in ordered]
            assert sum(tokens[:count]) >= ceilings[stream] > sum(tokens[: count - 1]), "and the shortest that suffices"
            cut += count < len(taken)
    assert cut >= 4


def test_budgets_are_nested(budgets):
    chosen = [{r["doc_key"] for r in _rows(budgets[b]["workdir"]) if r["stream"]} for b in BUDGETS]
    assert chosen[0] < chosen[1] < chosen[2]


def test_validation_goes_in_whole(budgets):
    for values in budgets.values():
        assert all(r["stream"] for r in _rows(values["workdir"]) if r["split"] == "validation")


def test_a_budget_redoes_mix_and_pack_only(budgets, done):
    """A copied folder keeps its times, so what is younger than in the original was made for the budget."""
    for values in budgets.values():
        before, after = files_of(done["workdir"]), files_of(values["workdir"])
        assert {n.split("/")[0] for n, t in after.items() if before.get(n) != t} == {"mix", "pack"}


def test_shares_are_realised_in_the_plan(budgets):
    for budget, values in budgets.items():
        root = _root(values)
        manifest, plan = load_manifest(root), load_plan(root / "plan" / "main.json")
        refs = rows_for(plan, manifest, 0, plan.total_rows)
        counts = np.bincount(refs.stream_index, minlength=len(manifest.streams))
        per_row = [s.total("loss_tokens") / s.rows for s in manifest.streams]
        read = {
            s.name.split("/")[0]: float(c * p) for s, c, p in zip(manifest.streams, counts, per_row, strict=True) if c
        }
        total = sum(read.values())
        wanted = {**values["mix"]["stages"][0]["domains"], "general": values["mix"]["stages"][0]["replay"]}
        assert not any(s.name.endswith("validation") and c for s, c in zip(manifest.streams, counts, strict=True))
        assert total == pytest.approx(budget, rel=0.03)
        for domain, share in wanted.items():
            assert read[domain] / total == pytest.approx(share, abs=0.02), domain


def _root(values):
    from pathlib import Path

    return Path(values["workdir"], "pack", "shards")


def test_rows_of_the_plan_exist_and_epochs_keep_to_the_cap(budgets, done):
    for values in [*budgets.values(), done]:
        realised = need_stage(values["workdir"], "pack").facts["realised"]
        assert all(r["epochs"] <= 4.2 for r in realised)
        planned = need_stage(values["workdir"], "mix").facts["streams"]
        assert all(s["epochs"] <= 4 + 1e-3 for s in planned)


def test_phases_take_their_shares_in_order(spark, done, tmp_path):
    values = fork(done, tmp_path / "run")
    values["mix"] = {
        "budget_tokens": 20_000,
        "stages": [
            {"share": 0.75, "domains": {"web": 0.9}, "replay": 0.1},
            {"share": 0.25, "domains": {"law": 0.8, "news": 0.2}},
        ],
    }
    run_stages(spark, values)
    root = _root(values)
    manifest, plan = load_manifest(root), load_plan(root / "plan" / "main.json")
    refs = rows_for(plan, manifest, 0, plan.total_rows)
    names = np.array([s.name.split("/")[0] for s in manifest.streams])[refs.stream_index]
    edge = int(np.flatnonzero(~np.isin(names, ["web", "general"]))[0])
    assert set(names[:edge]) == {"web", "general"}
    assert set(names[edge:]) == {"law", "news"}
    assert edge / len(names) == pytest.approx(0.75, abs=0.03)


def test_an_infeasible_budget_is_refused_with_remedies(spark, done, tmp_path):
    values = fork(done, tmp_path / "run")
    values["mix"] = {**done["mix"], "budget_tokens": 10_000_000}
    with pytest.raises(ConfigError) as refused:
        run_stages(spark, values)
    message = str(refused.value)
    assert "a budget of 10,000,000 tokens is infeasible" in message
    for domain in ("law", "web", "news", "replay"):
        assert f"{domain} is " in message
    assert "lower the share to" in message
    assert "raise max_epochs to" in message
    largest = int(message.rpartition("set budget_tokens to ")[2].partition(", the most")[0].replace(",", ""))
    values["mix"]["budget_tokens"] = largest
    run_stages(spark, values, ["mix"])


def test_a_domain_without_a_share_is_not_packed(spark, done, tmp_path):
    values = fork(done, tmp_path / "run")
    values["mix"] = {"stages": [{"domains": {"law": 0.5, "web": 0.5}}]}
    run_stages(spark, values)
    dropped = {(c.reason, c.domain) for c in need_stage(values["workdir"], "mix").counts if c.kind == "dropped"}
    assert dropped == {("mix.no_share", "news"), ("mix.no_share", "general")}


def test_duplicate_clusters_become_weight_buckets_that_are_read_more_often(spark, done, tmp_path):
    values = fork(done, tmp_path / "run")
    values["mix"] = {
        "budget_tokens": 20_000,
        "upsample": {"web": {1: 1, 2: 3}},
        "stages": [{"domains": {"law": 0.4, "web": 0.6}}],
    }
    run_stages(spark, values)
    workdir = values["workdir"]
    sizes = {r["doc_id"]: r["size"] for r in whole_table(workdir, "dedup_documents", "clusters").to_pylist()}
    assert sizes
    columns = ["doc_id", "domain", "split"]
    documents = {r["doc_id"]: r for r in whole_table(workdir, "ingest", "documents", columns).to_pylist()}
    chosen = whole_table(workdir, "mix", "selection", ["doc_id", "stream"]).to_pylist()
    for row in chosen:
        doc = documents[row["doc_id"]]
        if row["stream"]:
            copies = 3 if sizes.get(row["doc_id"], 1) >= 2 else 1
            bucket = copies if doc["domain"] == "web" and doc["split"] == "train" else 0
            assert f"/w{bucket}/" in row["stream"]
    facts = need_stage(workdir, "mix").facts
    epochs = {s["stream"].split("/w")[1][0]: s["epochs"] for s in facts["streams"] if s["domain"] == "web"}
    assert epochs["3"] == pytest.approx(3 * epochs["1"], rel=0.01)
    root = _root(values)
    realised = {s.name: s.rows for s in load_manifest(root).streams}
    assert {name.split("/")[3] for name in realised if name.startswith("web/")} == {"w0", "w1", "w3"}
    assert facts["packed_tokens"] == {s.name: s.total("tokens") for s in load_manifest(root).streams}
    assert sum(facts["available_tokens"].values()) == sum(
        c.tokens for c in need_stage(workdir, "tokenize").counts if c.kind == "kept"
    )


def test_licences_of_what_is_packed_are_counted_in_tokens(done):
    facts = need_stage(done["workdir"], "mix").facts
    packed = sum(facts["packed_tokens"].values())
    assert sum(t for found in facts["licences"].values() for t in found.values()) == packed > 0
