from __future__ import annotations

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.recipe import STAGE_ORDER, Recipe, load_recipe, parse_recipe

BASE = {
    "name": "law",
    "workdir": "runs/law",
    "inputs": [
        {"source": "laws", "domain": "law", "role": "target", "format": "jsonl", "paths": ["a.jsonl"]},
        {"source": "cc", "domain": "web", "format": "jsonl", "paths": ["b.jsonl"]},
        {"source": "old", "domain": "general", "role": "replay", "format": "parquet", "paths": ["c.parquet"]},
    ],
    "rules": {"presets": ["gopher"]},
    "dedup_documents": {},
    "tokenizer": {"path": "t"},
    "mix": {"stages": [{"domains": {"law": 0.5, "web": 0.3}, "replay": 0.2}]},
    "pack": {},
    "train": {},
}


def _with(path, value):
    """Return the base recipe with one value set (or, for None, taken out)."""
    made = copy.deepcopy(BASE)
    node = made
    *steps, last = path.split(".")
    for step in steps:
        node = node[int(step) if step.isdigit() else step]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return made


def test_stages_are_those_with_a_section_in_order():
    assert parse_recipe(BASE).stages() == (
        "ingest", "rules", "dedup_documents", "tokenize", "mix", "pack", "train", "report",
    )  # fmt: skip
    small = {k: BASE[k] for k in ("name", "workdir", "inputs")}
    assert parse_recipe(small).stages() == ("ingest", "report")
    assert set(parse_recipe(BASE).stages()) <= set(STAGE_ORDER)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dedup_document", {}, "unknown key dedup_document; did you mean dedup_documents?"),
        ("inputs.0.paht", ["x"], "unknown key inputs.0.paht; did you mean paths?"),
        ("mix.stages.0.domain", {}, "unknown key mix.stages.0.domain; did you mean domains?"),
        ("train.optoins", {}, "did you mean options?"),
        ("name", "has space", "name"),
        ("name", "", "name"),
        ("workdir", None, "workdir: Field required"),
        ("inputs", [], "inputs"),
        ("seed", 2**63, "seed"),
        ("seed", "many", "seed"),
        ("ingest", {"part_bytes": 10}, "ingest.part_bytes"),
        ("ingest", {"validation_frac": 1.5}, "ingest.validation_frac"),
        ("ingest", {"pii": "hide"}, "ingest.pii"),
        ("dedup_documents", {"jaccard": 0.0}, "dedup_documents.jaccard"),
        ("dedup_documents", {"jaccard": float("nan")}, "dedup_documents.jaccard"),
        ("dedup_documents", {"keep": ["best"]}, "dedup_documents.keep"),
        ("tokenizer", {"path": "a", "train": "b"}, "exactly one of train"),
        ("mix.budget_tokens", "lots", "mix.budget_tokens"),
        ("mix.stages", [], "mix.stages"),
        ("mix.stages.0.replay", 0.3, "sum to 1.100000, not 1"),
        ("mix.stages.0.replay", 0.20001, "not 1"),
        ("mix.stages.0.domains", {"law": 0.8, "web": float("nan")}, "mix.stages.0.domains.web"),
        ("mix.stages.0.domains", {"law": 0.5, "wbe": 0.3}, "domain wbe, inputs have law, web; did you mean web?"),
        ("mix.stages.0.domains", {"law": 0.5, "general": 0.3}, "mix names domain general"),
        ("mix.max_epochs", {"lwa": 8}, "mix.max_epochs names domain lwa"),
        ("mix.max_shares", {"lwa": 0.5}, "mix.max_shares names domain lwa"),
        ("mix.upsample", {"wbe": "fineweb2"}, "mix.upsample names domain wbe"),
        ("mix.stages", [{"domain_heavy": "lwa"}], "mix names domain lwa"),
        ("rules.by_domain", {"code": ["code"]}, "rules.by_domain names domain code"),
        ("tokenizer", None, "section mix needs section tokenizer"),
        ("mix", None, "section pack needs section mix"),
        ("pack", None, "section train needs section pack"),
        ("inputs.1.source", "laws", "repeated: laws"),
        ("inputs.2.role", "pool", "no input has role: replay"),
        ("inputs.0.role", "tarlget", "inputs.0.role"),
        ("pack", {"policy": "worst"}, "pack.policy"),
        ("train", {"steps": 0}, "train.steps"),
    ],
)  # fmt: skip
def test_what_a_recipe_may_not_say(path, value, message):
    with pytest.raises(ConfigError) as refused:
        parse_recipe(_with(path, value))
    assert message in str(refused.value)


def test_every_problem_is_named_at_once():
    bad = {**_with("seed", -1), "ruels": {}, "pack": {"policy": "worst"}}
    with pytest.raises(ConfigError) as refused:
        parse_recipe(bad)
    assert all(word in str(refused.value) for word in ("seed", "ruels", "pack.policy"))


def test_shares_may_miss_1_by_rounding_only():
    thirds = {"law": 0.3333333, "web": 0.3333333}
    assert parse_recipe(_with("mix.stages", [{"domains": thirds, "replay": 0.3333334}]))
    phases = [{"share": s, "domains": {"law": 1.0}} for s in (0.7, 0.2)]
    with pytest.raises(ConfigError, match=r"sum to 0\.9"):
        parse_recipe(_with("mix.stages", phases))


def test_canonical_form_is_a_value():
    """The same recipe in another order of keys has the same hash; any changed value has another."""
    recipe = parse_recipe(BASE)
    turned = {k: BASE[k] for k in reversed(BASE)}
    assert parse_recipe(turned).sha256() == recipe.sha256()
    assert parse_recipe(_with("seed", 1)).sha256() != recipe.sha256()
    assert parse_recipe(yaml.safe_load(recipe.canonical())) == recipe, "canonical JSON is itself a recipe"


def test_recipes_do_not_change():
    with pytest.raises(Exception, match="frozen"):
        parse_recipe(BASE).seed = 3


def _load(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    return load_recipe(tmp_path / "r.yaml")


SMALL = "name: n\nworkdir: {workdir}\ninputs:\n  - {{source: s, domain: d, format: jsonl, paths: [{path}]}}\n"


def test_variables_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", "/mnt/data")
    text = SMALL.format(workdir="${WORK:-runs}/x", path="'${DATA}/a-${DATA}.jsonl'")
    recipe = _load(tmp_path, text)
    assert recipe.workdir == "runs/x"
    assert recipe.inputs[0].paths == ("/mnt/data/a-/mnt/data.jsonl",)
    monkeypatch.setenv("WORK", "/fast")
    assert _load(tmp_path, text).workdir == "/fast/x"
    monkeypatch.delenv("DATA")
    with pytest.raises(ConfigError, match="variable DATA is not set"):
        _load(tmp_path, text)


@pytest.mark.parametrize("text", ["", "- a", "just words", "a: [1", "a: b: c"])
def test_files_that_are_no_recipe(tmp_path, text):
    with pytest.raises(ConfigError, match=r"r\.yaml"):
        _load(tmp_path, text)


def test_a_key_given_twice_is_refused(tmp_path):
    """YAML would keep the last one, and half of the recipe would be gone without a word."""
    twice = SMALL.format(workdir="w", path="a") + "ingest: {validation_frac: 0.1}\ningest: {part_bytes: 4096}\n"
    with pytest.raises(ConfigError, match="key ingest is given twice"):
        _load(tmp_path, twice)


def test_anchors_and_merges_still_work(tmp_path):
    text = (
        "name: n\nworkdir: w\ninputs:\n  - &one {source: s, domain: d, format: jsonl, paths: [a]}\n"
        "  - {<<: *one, source: t}\n"
    )
    assert [i.source for i in _load(tmp_path, text).inputs] == ["s", "t"]


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe(tmp_path / "nothing.yaml")


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.none() | st.integers() | st.text(max_size=5), max_size=4))
def test_any_unknown_section_is_a_config_error(extra):
    unknown = {k: v for k, v in extra.items() if k not in Recipe.model_fields}
    if unknown:
        with pytest.raises(ConfigError, match="unknown key"):
            parse_recipe({**BASE, **unknown})


def test_stages_that_need_a_mounted_folder_refuse_an_object_store():
    from refinery.errors import ConfigError
    from refinery.recipe import parse_recipe
    from refinery.stages.pipeline import check_recipe

    recipe = parse_recipe(
        {
            "name": "x",
            "workdir": "s3://bucket/run",
            "inputs": [{"source": "a", "domain": "b", "format": "jsonl", "paths": ["p"]}],
            "tokenizer": {"train": "tokenizer/bpe-32k.yaml"},
        }
    )
    check_recipe(recipe, ["ingest"])
    with pytest.raises(ConfigError, match="mounted folder"):
        check_recipe(recipe, ["ingest", "tokenize"])


def test_upsampling_needs_the_clusters_of_dedup():
    made = _with("mix.upsample", {"web": "fineweb2"})
    assert parse_recipe(made).mix.upsample == {"web": "fineweb2"}
    del made["dedup_documents"]
    with pytest.raises(ConfigError, match="no dedup_documents section"):
        parse_recipe(made)
