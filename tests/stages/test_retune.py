"""retune: what it foretells is what the stage then does, and foretelling writes nothing."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import yaml
from typer.testing import CliRunner

from refinery.cli import app
from refinery.errors import ConfigError
from refinery.io import parts as part_files
from refinery.recipe import parse_recipe
from refinery.stages.retune import plan_retune
from refinery.stages.workspace import Run, need_stage
from tests.stages.runs import decisions, documents, files_of, fork, parts_of, run_stages, whole_table

pytestmark = pytest.mark.spark


@pytest.fixture
def retuned(done, tmp_path):
    """A finished run, forked, whose recipe now has one rule more."""
    preset = tmp_path / "short.yaml"
    rule = {"name": "longer", "signal": "num_words", "min": 118, "scripts": "spaced", "source": "test"}
    preset.write_text(yaml.safe_dump({"name": "short", "doc": "test", "rules": [rule]}), encoding="utf-8")
    values = fork(done, tmp_path / "run")
    return {**values, "rules": {"presets": ["gopher", str(preset)]}}


def test_foretold_is_what_the_stage_does(spark, done, retuned):
    before_files = files_of(retuned["workdir"])
    found = plan_retune(parse_recipe(retuned))
    assert files_of(retuned["workdir"]) == before_files, "planning writes nothing"
    old_hashes = need_stage(retuned["workdir"], "rules").part_hashes("decisions")
    run_stages(spark, retuned, ["rules"])
    new_hashes = need_stage(retuned["workdir"], "rules").part_hashes("decisions")
    assert set(found.changed_parts) == {p for p in new_hashes if new_hashes[p] != old_hashes[p]} != set()

    docs = {row["doc_id"]: row for row in documents(done["workdir"]).values()}
    old, new = decisions(done["workdir"], "rules"), decisions(retuned["workdir"], "rules")
    stored = {r["doc_id"]: r["num_tokens"] for r in whole_table(done["workdir"], "tokenize", "tokens").to_pylist()}
    groups: Counter = Counter()
    sizes: Counter = Counter()
    tokens: dict[tuple, list] = {}
    for doc_id, was in old.items():
        if was["drop_reason"] != new[doc_id]["drop_reason"]:
            key = (docs[doc_id]["source"], was["drop_reason"], new[doc_id]["drop_reason"])
            groups[key] += 1
            sizes[key] += docs[doc_id]["num_bytes"]
            tokens.setdefault(key, []).append(stored[doc_id])
    assert {c[:3]: c.docs for c in found.changes} == groups
    assert {c[:3]: c.bytes for c in found.changes} == sizes
    counted = {key: sum(of) for key, of in tokens.items() if None not in of}
    assert counted, "some group was tokenized whole"
    assert {c[:3]: c.tokens for c in found.changes if c[:3] in counted} == counted
    assert all(c.tokens is not None for c in found.changes), "the others are estimated from their source"
    assert found.num_docs == len(docs)
    assert sum(c.docs for c in found.changes if c.after == "short.longer") > 5
    assert found.total(kept=False)[0] == sum(n for (_, was, _), n in groups.items() if was is None)


def test_stages_to_redo_are_those_that_stand(retuned):
    found = plan_retune(parse_recipe(retuned))
    assert [r.stage for r in found.redo] == ["dedup_documents", "tokenize", "mix", "pack"]
    assert {r.stage for r in found.redo if r.whole} == {"dedup_documents", "mix", "pack"}
    assert all(r.parts == found.changed_parts for r in found.redo)


def test_same_recipe_changes_nothing(done):
    found = plan_retune(parse_recipe(done))
    assert found.changes == found.changed_parts == found.redo == ()


def test_signals_of_other_documents_are_refused(done, tmp_path):
    values = fork(done, tmp_path / "run")
    part = parts_of(values["workdir"])[0]
    path = part_files.part_path(values["workdir"], "rules", "signals", part)
    table = part_files.read_part(values["workdir"], "rules", "signals", part)
    part_files.write_part(path, table, table.schema, "another fingerprint")
    with pytest.raises(ConfigError, match="run `refinery rules RECIPE` once"):
        plan_retune(parse_recipe(values))


def test_rules_that_were_never_run_are_refused(own_corpus, tmp_path):
    from tests.stages.corpus import recipe_values

    with pytest.raises(ConfigError, match="rules"):
        plan_retune(parse_recipe(recipe_values(own_corpus, tmp_path / "run")))


def test_command_shows_and_commits(spark, retuned, tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(retuned), encoding="utf-8")
    shown = CliRunner().invoke(app, ["retune", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "short.longer" in shown.output
    assert "Nothing is written yet" in shown.output
    value = json.loads(CliRunner().invoke(app, ["retune", str(path), "--json"]).output)
    assert value["changes"]
    assert value["committed"] is False

    monkeypatch.setattr(Run, "spark", property(lambda _: spark))  # the session of the tests
    monkeypatch.setattr(Run, "stop_session", lambda _: None)
    committed = CliRunner().invoke(app, ["retune", str(path), "--commit"])
    assert committed.exit_code == 0, committed.output
    assert plan_retune(parse_recipe(retuned)).changes == ()
