from __future__ import annotations

import math

import pytest

from refinery.contracts.runs import LossPoint, RunRecord
from refinery.errors import ConfigError
from refinery.report.mixtures import BEST, MixQuestion, mixtures_text, search_mix, write_mixtures
from refinery.stages.ablate import Measured

SLOPES = {"law": {"law": -1.5, "docs": 0.1, "web": 0.4}, "web": {"law": 0.3, "docs": 0.2, "web": -0.8}}


def _train(named):
    """A world in which the law holds exactly."""
    runs = []
    for name, shares in named.items():
        assert sum(shares.values()) == pytest.approx(1.0)
        for seed in (1, 2):
            points = []
            for held, slopes in SLOPES.items():
                bits = 1.0 + math.exp(sum(slopes[d] * s for d, s in shares.items())) + 0.0001 * seed
                points.append(
                    LossPoint(
                        step=5, tokens=5, stream=f"{held}/pool/mul/w0/validation", loss_nats=bits, bits_per_byte=bits,
                        target_tokens=1, learning_rate=0.0, replay_frac=0.0,
                    )
                )  # fmt: skip
            record = RunRecord(
                name=name, status="finished", init="scratch", num_params=1, num_non_embedding_params=1, steps=5,
                tokens=5, sequence_length=1, final_train_loss_nats=1.0, num_skipped_steps=0, train_flops=1.0,
                seconds=1.0, points=tuple(points),
            )  # fmt: skip
            runs.append(Measured(name, seed, False, record))
    return runs


QUESTION = MixQuestion(
    bounds={"law": (0.05, 0.6), "docs": (0.05, 0.8), "web": (0.05, 0.8)},
    recipe_shares={"law": 0.2, "docs": 0.4, "web": 0.4},
    num=12,
    goal={"law": 1.0},
)


def test_search_finds_the_planted_direction_and_checks_it(tmp_path):
    body = search_mix(QUESTION, _train)
    assert body["mixtures"]["recipe"]["shares"] == pytest.approx(QUESTION.recipe_shares)
    highest = max(m["shares"]["law"] for m in body["mixtures"].values())
    assert body["best"]["shares"]["law"] == pytest.approx(highest, abs=1e-3)
    assert "law" in body["best"]["bound"]
    assert all(law["useful"] for law in body["laws"].values())
    check = body["check"]
    for held in SLOPES:
        assert check["measured"][held] == pytest.approx(check["predicted"][held], abs=5e-3)
    assert check["against_recipe"]["verdict"] == "lower"
    text = mixtures_text(body)
    assert "error on unseen mixtures" in text
    assert "on its bound" in text
    write_mixtures(tmp_path, body)
    assert (tmp_path / "mixtures.txt").read_text() == text


def test_the_best_mix_is_trained_as_a_check():
    trained = []

    def train(named):
        trained.append(list(named))
        return _train(named)

    search_mix(QUESTION, train)
    assert trained[0][0] == "recipe"
    assert trained[1] == [BEST, "recipe"]


def test_questions_without_an_answer_are_refused():
    import dataclasses

    for change, message in [
        ({"num": 4}, "5 is the least"),
        ({"goal": {"mail": 1.0}}, "name mail"),
        ({"recipe_shares": {"law": 0.9, "docs": 0.05, "web": 0.05}}, "lies outside the bounds"),
    ]:
        with pytest.raises(ConfigError, match=message):
            search_mix(dataclasses.replace(QUESTION, **change), _train)
