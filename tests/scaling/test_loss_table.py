from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from refinery.contracts.runs import LossPoint, RunRecord, write_run_record
from refinery.errors import ConfigError
from refinery.scaling.parametric import Fit, fit
from refinery.scaling.runs import loss_table, read_runs

LAW = Fit(A=400.0, B=1500.0, E=1.8, alpha=0.35, beta=0.36, objective=0.0, num_runs=0)


def _record(params: int, tokens: int, tokenizer: str = "t" * 64, status: str = "finished") -> RunRecord:
    points = tuple(
        LossPoint(
            step=step, tokens=seen, stream=stream, loss_nats=float(LAW.loss(params, max(seen, 1e6))),
            bits_per_byte=0.9, target_tokens=1000, learning_rate=1e-4, replay_frac=0.0,
        )
        for step, seen in ((0, 0), (5, tokens // 2), (10, tokens))
        for stream in ("law", "web")
    )  # fmt: skip
    return RunRecord(
        name=f"{params}-{tokens}", status=status, init="scratch", num_params=params * 2,
        num_non_embedding_params=params,
        steps=10, tokens=tokens, sequence_length=64, final_train_loss_nats=2.0, num_skipped_steps=0, train_flops=1.0,
        seconds=1.0, points=points, data={"tokenizer_sha256": tokenizer},
    )  # fmt: skip


def test_records_become_a_fit(tmp_path: Path) -> None:
    for k, (params, tokens) in enumerate((n, d) for n in (10**8, 10**9, 10**10) for d in (10**9, 10**10, 10**11)):
        folder = tmp_path / f"run-{k}"
        folder.mkdir()
        write_run_record(_record(params, tokens), folder / "run.json")
    table = loss_table(read_runs([tmp_path]), "law")
    assert len(table.names) == 9
    found = fit(table.num_params, table.num_tokens, table.loss, num_starts=12)
    np.testing.assert_allclose(found.vector(), LAW.vector(), rtol=0.01)


def test_only_finished_runs_count_and_curves_are_on_request() -> None:
    records = [_record(10**8, 10**9), _record(10**9, 10**9, status="failed")]
    assert loss_table(records, "law").names == ("100000000-1000000000",)
    assert len(loss_table(records, "web", points="all").loss) == 4


def test_tokenizers_do_not_mix_in_nats() -> None:
    records = [_record(10**8, 10**9), _record(10**9, 10**9, tokenizer="u" * 64)]
    with pytest.raises(ConfigError, match="bits_per_byte"):
        loss_table(records, "law")
    assert loss_table(records, "law", unit="bits_per_byte").unit == "bits_per_byte"


def test_unusable_records_are_refused(tmp_path: Path) -> None:
    good = _record(10**8, 10**9)
    with pytest.raises(ConfigError, match="has no loss on stream 'gone'"):
        loss_table([good], "gone")
    with pytest.raises(ConfigError, match="is unknown"):
        loss_table([good], "law", unit="bits")
    with pytest.raises(ConfigError, match="is finished"):
        loss_table([_record(1, 1, status="failed")], "law")
    bad = dataclasses.replace(good, points=(dataclasses.replace(good.points[-1], loss_nats=float("nan")),))
    with pytest.raises(ConfigError, match="loss nan"):
        loss_table([bad], "web")
    blind = dataclasses.replace(good, points=(dataclasses.replace(good.points[-1], bits_per_byte=None),))
    with pytest.raises(ConfigError, match="no bits per byte"):
        loss_table([blind], "web", unit="bits_per_byte")
    with pytest.raises(ConfigError, match="does not exist"):
        read_runs([tmp_path / "gone"])
    with pytest.raises(ConfigError, match=r"no run\.json"):
        read_runs([tmp_path])
