from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from refinery import cli, forecast
from refinery.errors import ConfigError
from refinery.forecast import Forecast, _heavy, actual_of, cores_of, forecast_run, size_text, store
from refinery.forecast_costs import COSTS
from refinery.forecast_text import actual_text, duration_text, full_text, short_text
from refinery.init import Answers, write_recipe
from refinery.init_sources import describe_source
from refinery.recipe import MixStage, Recipe, load_recipe, parse_recipe
from refinery.stages.pipeline import STAGES, selected_stages
from refinery.stages.workspace import Run
from tests.stages.corpus import ENGLISH, chinese, prose, sentence_text, write_jsonl

MB = 1_000_000


def recipe_of(tmp_path: Path, num_bytes: int = 2 * MB, **changes: Any) -> Recipe:
    path = tmp_path / "pool.jsonl"
    if not path.exists():
        with path.open("wb") as file:
            file.truncate(num_bytes)  # only sizes are looked at
    values: dict[str, Any] = {
        "name": "f",
        "workdir": str(tmp_path / "run"),
        "inputs": [{"source": "pool", "domain": "web", "role": "pool", "format": "jsonl", "paths": [str(path)]}],
        "ingest": {"part_bytes": MB},
        "rules": {"presets": ["gopher"]},
        "dedup_documents": {"jaccard": 0.8},
        "tokenizer": {"path": "somewhere"},
        "mix": {"stages": [{"domains": {"web": 1.0}}]},
        "pack": {},
        "spark": {"master": "local[2]"},
    }
    return parse_recipe({**values, **changes})


@pytest.fixture(autouse=True)
def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


def of(recipe: Recipe) -> Forecast:
    return forecast_run(recipe, selected_stages(recipe, None, None))


def test_costs_are_of_stages_and_have_sources() -> None:
    assert set(COSTS) <= set(STAGES)
    assert all(cost.source and cost.mb_per_core_second > 0 for cost in COSTS.values())


def test_text_parts_and_tokens_come_from_the_plan(tmp_path: Path) -> None:
    found = of(recipe_of(tmp_path))
    assert (found.text_bytes, found.num_parts, found.largest_part_bytes, found.num_cores) == (2 * MB, 2, MB, 2)
    assert found.tokens == pytest.approx(2 * MB / 3.7, rel=0.01)
    assert found.train_tokens is None
    assert [row.stage for row in found.stages] == ["ingest", "rules", "dedup_documents", "tokenize", "mix", "pack"]
    assert found.disk_bytes == sum(row.disk_bytes for row in found.stages)
    assert found.memory_bytes == found.driver_memory_bytes + 2 * found.task_memory_bytes
    assert found.warnings == ()
    assert not (tmp_path / "run").exists(), "a forecast writes nothing"


def test_more_text_needs_more_and_more_cores_less_time(tmp_path: Path) -> None:
    small = of(recipe_of(tmp_path))
    (tmp_path / "pool.jsonl").unlink()
    large, more = (of(recipe_of(tmp_path, 400 * MB, spark={"master": m})) for m in ("local[2]", "local[8]"))
    assert large.disk_bytes > 100 * small.disk_bytes
    assert large.seconds > small.seconds
    assert more.seconds < large.seconds
    assert more.memory_bytes > large.memory_bytes
    assert more.disk_bytes == large.disk_bytes


def test_what_the_recipe_cuts_itself_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    target = {"source": "t", "domain": "law", "role": "target", "format": "jsonl", "paths": [str(path)]}
    recipe = recipe_of(tmp_path)
    inputs = [target, recipe.inputs[0].model_dump()]
    whole = of(recipe_of(tmp_path, inputs=inputs))
    cut = of(recipe_of(tmp_path, inputs=inputs, select={"target": "law", "keep_frac": 0.5}))
    assert cut.tokens == pytest.approx(0.75 * whole.tokens, abs=2)


def test_cores_of_masters(tmp_path: Path) -> None:
    asked = {
        "local": 1,
        "local[3]": 3,
        "local[3,4]": 3,
        "spark://host:7077": 1,
        "yarn": 1,
    }
    for master, cores in asked.items():
        found = cores_of(recipe_of(tmp_path, spark={"master": master}))
        assert found == cores or (master == "local" and found >= 1)
    conf = {"spark.executor.instances": "4", "spark.executor.cores": "8"}
    assert cores_of(recipe_of(tmp_path, spark={"master": "yarn", "conf": conf})) == 32
    assert cores_of(recipe_of(tmp_path, spark={"master": "local[*]"})) >= 1


def test_training_counts_steps_budget_or_the_caps(tmp_path: Path) -> None:
    train = {"preset": "tiny", "batch_tokens": 4096}
    assert of(recipe_of(tmp_path, train={**train, "steps": 10})).train_tokens == 40960
    mix = {"budget_tokens": 12345, "stages": [{"domains": {"web": 1.0}}]}
    assert of(recipe_of(tmp_path, train=train, mix=mix)).train_tokens == 12345
    found = of(recipe_of(tmp_path, train=train))
    assert found.train_tokens == pytest.approx(4 * found.tokens, rel=0.01)
    with pytest.raises(ConfigError, match="preset"):
        of(recipe_of(tmp_path, train={"preset": "tinny"}))


def test_a_heavy_domain_is_forecast_and_never_stops_a_run() -> None:
    for name in ("web", "moon"):  # all of the input, and none of it
        stage = MixStage.model_validate({"domain_heavy": name, "replay": 0.2})
        assert _heavy(stage, {"web": 1e9, "replay": 1e9}) == {name: 0.8}
    small = MixStage.model_validate({"domain_heavy": "law"})
    assert _heavy(small, {"law": 2e6, "web": 9.8e7})["law"] == pytest.approx(0.98)


def test_short_disk_warns_and_no_disk_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path)
    need = of(recipe).disk_bytes
    monkeypatch.setattr(forecast, "_free_disk_bytes", lambda _: need // 2)
    found = of(recipe)
    assert "disk may run out" in found.warnings[0]
    assert "warning: disk" in short_text(found)
    monkeypatch.setattr(forecast, "_free_disk_bytes", lambda _: need // 10)
    with pytest.raises(ConfigError, match="free space or set workdir"):
        of(recipe)
    monkeypatch.setattr(forecast, "_free_disk_bytes", lambda _: None)
    assert of(recipe).warnings == ()


def test_short_memory_and_files_that_cannot_be_cut_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "_free_disk_bytes", lambda _: None)
    huge = of(recipe_of(tmp_path, 4 * 10**12, ingest={"part_bytes": 10**12}))
    assert any("memory may run out" in w for w in huge.warnings)
    packed = tmp_path / "pool.jsonl.gz"
    with packed.open("wb") as file:
        file.truncate(3 * MB)
    entry = {"source": "p", "domain": "web", "role": "pool", "format": "jsonl", "paths": [str(packed)]}
    found = of(recipe_of(tmp_path, inputs=[entry]))
    assert any("cannot be cut" in w for w in found.warnings)


def test_a_path_that_is_not_there_is_told_before_the_run(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    (tmp_path / "pool.jsonl").unlink()
    with pytest.raises(ConfigError, match="matches no file"):
        of(recipe)
    assert forecast_run(recipe, ["mix", "pack"]).text_bytes == 0, "later stages do not look at raw input"


def test_a_busy_machine_takes_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = of(recipe_of(tmp_path))
    monkeypatch.setattr("os.getloadavg", lambda: (100.0, 0.0, 0.0))
    busy = of(recipe_of(tmp_path))
    assert (idle.load_factor, busy.load_factor > 1) == (1.0, True)
    assert busy.seconds == pytest.approx(idle.seconds * busy.load_factor, rel=0.01)
    assert "times as long" in short_text(busy)
    assert of(recipe_of(tmp_path, spark={"master": "yarn"})).load_factor == 1.0


def test_the_index_of_the_evals_is_sized_before_the_run(tmp_path: Path, spark: Any) -> None:
    rng = random.Random(3)
    words = [word for word in ENGLISH if "'" not in word]  # an apostrophe makes two of one
    rows = [{"id": f"q{n}", "text": " ".join(prose(rng, words, 40))} for n in range(50)]
    rows += [{"id": "short", "text": " ".join(words[:9])}, {"id": "zh", "text": chinese(rng, 60)}]
    write_jsonl(tmp_path / "exam.jsonl", rows)
    decontaminate = {"evals": [str(tmp_path / "exam.jsonl")]}
    plain, found = of(recipe_of(tmp_path)), of(recipe_of(tmp_path, decontaminate=decontaminate))
    index = found.eval_index
    assert plain.eval_index is None
    assert index is not None
    assert (index.num_items, index.num_ngrams) == (52, 50 * 28 + 1 + 48)
    assert index.bitmap_bytes + index.table_bytes < index.index_bytes < index.process_bytes
    assert found.task_memory_bytes == plain.task_memory_bytes + index.process_bytes
    assert "in every process that scans" in full_text(found)
    write_jsonl(tmp_path / "pool.jsonl", [{"id": "d", "text": "some text of a page"}])
    run = Run(recipe_of(tmp_path, decontaminate=decontaminate))
    run.use_session(spark)
    for name in ("ingest", "rules", "dedup_documents", "decontaminate"):
        facts = STAGES[name](run).facts
    assert facts["index_bytes"] <= index.index_bytes <= 2.5 * facts["index_bytes"]
    (tmp_path / "exam.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no record"):
        of(recipe_of(tmp_path, decontaminate=decontaminate))


def test_repeated_lines_and_containment_cost_more(tmp_path: Path) -> None:
    def sentences(**section: Any) -> Any:
        found = of(recipe_of(tmp_path, 50 * MB, dedup_sentences=section))
        return next(row for row in found.stages if row.stage == "dedup_sentences")

    plain, lines, both = sentences(), sentences(lines={}), sentences(lines={}, containment={})
    assert plain.seconds < lines.seconds < both.seconds
    assert plain.disk_bytes < lines.disk_bytes < both.disk_bytes


def test_figures_as_people_read_them() -> None:
    assert [size_text(n) for n in (0, 2_000, 3_500_000, 7.25e9)] == ["0 kB", "2 kB", "3.5 MB", "7.2 GB"]
    assert [duration_text(s) for s in (3, 119.6, 600, 7200, 9000)] == ["3 s", "120 s", "10 min", "2.0 h", "2.5 h"]


def test_the_table_names_stages_and_where_the_figures_are_from(tmp_path: Path) -> None:
    text = full_text(of(recipe_of(tmp_path, train={"preset": "tiny", "steps": 1})))
    for word in (
        "ingest",
        "pack",
        "train",
        "to do",
        "measured" if "measured" in text else "benchmarks/",
        "per part task",
    ):
        assert word in text
    assert len(short_text(of(recipe_of(tmp_path))).splitlines()) == 1


def test_what_a_run_took_stands_beside_the_forecast(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    found = of(recipe)
    (tmp_path / "run" / "ingest").mkdir(parents=True)
    (tmp_path / "run" / "ingest" / "x").write_bytes(b"12345")
    actual = actual_of(recipe, found, {"ingest": 3.0})
    assert actual["stages"]["ingest"]["disk_bytes"] == 5
    assert actual["stages"]["ingest"]["seconds"] == 3.0
    assert "took 3 s" in actual_text(actual)
    assert actual_text(actual_of(recipe, found, {})) == ""
    store(recipe.workdir, found, actual)
    body = json.loads((tmp_path / "run" / "forecast.json").read_text("utf-8"))
    assert body["actual"] == actual
    assert body["text_bytes"] == 2 * MB


@pytest.mark.spark
def test_a_written_recipe_runs_and_says_how_far_off_it_was(spark, tmp_path, monkeypatch, capsys) -> None:
    rng = random.Random(1)
    english = [{"id": f"e{n}", "content": sentence_text(prose(rng, ENGLISH, 250))} for n in range(60)]
    write_jsonl(tmp_path / "web.jsonl.gz", english)
    write_jsonl(tmp_path / "laws.jsonl", [{"id": f"z{n}", "text": chinese(rng, 400)} for n in range(60)])
    sources = (
        describe_source(f"law={tmp_path / 'laws.jsonl'}", "target"),
        describe_source(str(tmp_path / "web.jsonl.gz"), "pool"),
    )
    path = tmp_path / "mine.yaml"
    write_recipe(path, Answers(name="mine", sources=sources, workdir=str(tmp_path / "run"), train=False))
    monkeypatch.setattr("refinery.stages.session.make_session", lambda *_: spark)
    monkeypatch.setattr(Run, "stop_session", lambda self: None)
    for again in (False, True):
        monkeypatch.setattr(sys, "argv", ["refinery", "run", str(path)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        assert not end.value.code, shown.err
        assert shown.err.startswith("forecast: ")
        body = json.loads((tmp_path / "run" / "forecast.json").read_text("utf-8"))
        done = set(body["actual"]["stages"])
        assert done == (set() if again else {*load_recipe(path).stages()} - {"report"})
        assert ("took" in shown.out) is not again
    assert (tmp_path / "run" / "pack" / "shards" / "manifest.json").is_file()
