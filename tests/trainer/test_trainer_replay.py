from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from refinery.recipe import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def replay():
    spec = importlib.util.spec_from_file_location("replay_benchmark", ROOT / "benchmarks" / "replay.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_run(folder: Path, rise: float) -> Path:
    points = [{"step": step, "stream": stream, "loss_nats": 5.0 + sign * rise * step / 10}
              for step in (0, 10) for stream, sign in (("licences/target/en/w0/validation", -1),
                                                       ("code/replay/en/w0/validation", 1),
                                                       ("docs/replay/en/w0/validation", 2))]
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "run.json").write_text(json.dumps({"points": points}))
    return folder


def test_curves_of_both_arms_stand_side_by_side(replay, tmp_path):
    arms = {name: replay.read_curves(fake_run(tmp_path / name, rise))
            for name, rise in (("replay 0.2", 0.1), ("no replay", 0.5))}
    assert replay.forgotten(arms["no replay"]) == pytest.approx(0.75)
    lines = replay.table(arms).splitlines()
    assert lines[0].split()[-3:] == ["0", "10", "change"]
    assert [line.split()[-1] for line in lines if line.startswith("  no replay")] == ["+0.500", "+1.000", "-0.500"]


def test_the_recipe_takes_both_arms(replay, monkeypatch):
    monkeypatch.chdir(ROOT)
    for share, (replayed, target) in ((0.2, replay.ARMS["replay 0.2"]), (0.0, replay.ARMS["no replay"])):
        monkeypatch.setenv("REPLAY", replayed)
        monkeypatch.setenv("TARGET_SHARE", target)
        recipe = load_recipe("recipes/demo-cpt.yaml")
        [stage] = recipe.mix.stages
        assert stage.replay == share
    monkeypatch.delenv("REPLAY")
    monkeypatch.delenv("TARGET_SHARE")
    assert load_recipe("recipes/demo-cpt.yaml").mix.stages[0].replay == 0.2
