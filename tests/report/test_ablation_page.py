from __future__ import annotations

import json

import pytest

from refinery.contracts.runs import LossPoint, RunRecord
from refinery.report.ablation import findings, losses_of, write_ablation
from refinery.stages.ablate import AblationResult, Measured

SETS = {"law/target": 1.0, "web/pool": 2.0, "web/replay": 2.5, "mine/pool": 1.5}
EFFECT = {"raw": 0.0, "rules": 0.0, "+<select>": -0.2}


def _record(effect: float, seed: int) -> RunRecord:
    points = []
    for step in (0, 10):
        for name, loss in SETS.items():
            nats = loss + (3.0 if step == 0 else effect * (1 if name.startswith("law") else -0.5) + 0.01 * seed)
            points.append(
                LossPoint(
                    step=step, tokens=step * 64, stream=f"{name}/mul/w0/validation", loss_nats=nats,
                    bits_per_byte=nats / 2, target_tokens=100, learning_rate=0.0, replay_frac=0.0,
                )
            )  # fmt: skip
    return RunRecord(
        name="x", status="finished", init="scratch", num_params=10, num_non_embedding_params=8, steps=10, tokens=640,
        sequence_length=64, final_train_loss_nats=1.0, num_skipped_steps=0, train_flops=1e6, seconds=2.0,
        points=tuple(points),
    )  # fmt: skip


@pytest.fixture
def result() -> AblationResult:
    runs = [
        Measured(arm, s, False, _record(e + 0.001 * s * (arm != "raw"), s))
        for arm, e in EFFECT.items()
        for s in (1, 2, 3)
    ]
    runs += [Measured("raw", s, True, _record(0.004 * (s - 2), s)) for s in (1, 2, 3)]
    arm = {"documents": 10, "text_bytes": 5_000_000, "unique_tokens": 900, "epochs": {"law": 1.5}, "domain_tokens": {}}
    facts = {
        "heldout_documents": {}, "budget_tokens": 640, "steps": 10, "batch_tokens": 64, "preset": "tiny",
        "recipe": "r", "recipe_sha256": "0", "own_sets": ["mine"], "stages": {a: [] for a in EFFECT},
        "arms": {a: {**arm, "trained_as": "raw" if a == "rules" else a} for a in EFFECT},
    }  # fmt: skip
    return AblationResult(tuple(runs), facts)


def test_losses_are_the_last_ones_by_seed(result):
    table = losses_of(result.runs, "loss_nats", again=False)
    assert list(table["raw"]) == ["law", "mine", "web/pool", "web/replay"]
    assert table["raw"]["law"] == pytest.approx([1.01, 1.02, 1.03])


def test_page_table_and_json_say_the_same(result, tmp_path):
    body = write_ablation(tmp_path, result)
    assert json.loads((tmp_path / "ablation.json").read_text()) == body
    names = ["law", "mine", "web/pool", "web/replay", "average"]
    assert list(body["bits_per_byte"]["means"]["raw"]) == names
    assert body["bits_per_byte"]["against_first"]["+<select>"]["law"]["mean"] == pytest.approx(-0.099)
    table = (tmp_path / "ablation.md").read_text()
    assert table.count("\n") == 6
    assert "| raw, other seeds |" in table
    assert "**-0.0990 (" in table
    page = (tmp_path / "ablation.html").read_text()
    assert "(your set)" in page
    assert page.count("<svg") == len(names)
    assert "<script" not in page
    assert "<select>" not in page


def test_findings_tell_help_harm_and_nothing(result):
    body = write_ablation_body(result)
    rules, select = findings(body)
    assert rules == "rules trains on the rows of raw: the budget never used what it removes."
    assert "lower loss on law" in select
    assert "higher loss on mine" in select


def write_ablation_body(result):
    from refinery.report.ablation import as_json

    return as_json(result)
