from __future__ import annotations

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from refinery.cli import app
from refinery.errors import ConfigError, SchemaError
from refinery.report.fit_page import write_fit_page
from refinery.scaling.budget_plan import BudgetRequest, plan_budget, plan_text
from refinery.scaling.cpt import bootstrap_cpt, fit_cpt
from refinery.scaling.fit_file import fit_json, published_law, read_law
from refinery.scaling.parametric import bootstrap, fit

LAW = published_law("besiroglu")


def _runs(seed=0, noise=0.005):
    rng = np.random.default_rng(seed)
    params, tokens = rng.uniform(np.log(1e7), np.log(1e9), 40), rng.uniform(np.log(1e9), np.log(1e11), 40)
    params, tokens = np.exp(params), np.exp(tokens)
    loss = (1.7 + 400 / params**0.34 + 500 / tokens**0.3) * np.exp(rng.normal(0, noise, 40))
    return params, tokens, loss


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fits")
    runs = _runs()
    law = fit(*runs)
    scratch = fit_json(law, bootstrap(law, *runs, num_samples=40), "nats", ["here"])
    (folder / "scratch.json").write_text(json.dumps(scratch))
    continued = (runs[0], runs[1], law.E + law.A / runs[0] ** law.alpha + 30 / runs[1] ** 0.2 / runs[0] ** 0.05)
    cpt = fit_cpt(law, *continued)
    (folder / "cpt.json").write_text(json.dumps(fit_json(cpt, bootstrap_cpt(cpt, *continued, 30), "nats", [])))
    return folder


def test_every_budget_gives_the_same_plan():
    one = plan_budget(LAW, BudgetRequest(flops=1e21))
    assert one["num_params"] * one["num_tokens"] * 6 == pytest.approx(1e21)
    for asked in (
        BudgetRequest(gpu_hours=one["cost"]["card_hours"]),
        BudgetRequest(params=one["num_params"]),
        BudgetRequest(tokens=one["num_tokens"]),
    ):
        assert plan_budget(LAW, asked)["flops"] == pytest.approx(1e21)


def test_default_law_is_the_published_optimum_with_an_interval():
    law = published_law("chinchilla-refit")
    assert law.fit.vector() == pytest.approx([477.84, 2143.86, 1.8172, 0.34731, 0.36718], rel=0.01)
    plan = plan_budget(law, BudgetRequest(flops=1e21))
    low, high = plan["loss_interval_nats"]
    assert low < plan["loss_nats"] < high
    assert high - low < 0.1
    assert "(95 %:" in plan_text(plan)


def test_params_and_tokens_together_fix_the_run():
    plan = plan_budget(LAW, BudgetRequest(params=1e9, tokens=2e11))
    assert (plan["num_params"], plan["num_tokens"]) == (pytest.approx(1e9), pytest.approx(2e11))
    assert plan["over_training"]["inference_saved_frac"] > 0


def test_over_training_factor_divides_the_size():
    optimal = plan_budget(LAW, BudgetRequest(flops=1e21))
    small = plan_budget(LAW, BudgetRequest(flops=1e21, over_train=4))
    assert small["num_params"] == pytest.approx(optimal["num_params"] / 4)
    assert small["over_training"]["inference_saved_frac"] == pytest.approx(0.75)
    assert "inference saved" in plan_text(small)


def test_domains_epochs_and_replay():
    unique = {"law": 2e10, "web": 4e10, "replay": 1e11}
    scratch = plan_budget(LAW, BudgetRequest(flops=1e21, unique_tokens=unique))
    assert set(scratch["domains"]) == {"law", "web"}
    assert scratch["domains"]["law"]["share"] == pytest.approx(1 / 3)
    assert scratch["loss_with_repeats_nats"] == pytest.approx(scratch["loss_nats"])
    law = published_law("cpt-2407")
    asked = BudgetRequest(flops=1e20, unique_tokens=unique)
    continual = plan_budget(law, asked)
    assert continual["replay"]["share"] == 0.30
    assert continual["domains"]["replay"]["share"] == pytest.approx(0.30)
    assert sum(d["share"] for d in continual["domains"].values()) == pytest.approx(1.0)
    assert continual["domains"]["law"]["epochs"] < 1 < 2
    short = BudgetRequest(flops=1e20, unique_tokens={"law": 2e10, "replay": 2e10}, max_epochs=8)
    repeated = plan_budget(law, short)
    assert repeated["domains"]["law"]["epochs"] > 2
    assert repeated["loss_with_repeats_nats"] > repeated["loss_nats"]
    with pytest.raises(ConfigError, match="pass --replay 0"):
        plan_budget(law, BudgetRequest(flops=1e20, unique_tokens={"law": 1e11}))
    with pytest.raises(ConfigError, match=r"domain law has 1,000 tokens.*raise --max-epochs"):
        plan_budget(LAW, BudgetRequest(flops=1e20, unique_tokens={"law": 1e3}))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (BudgetRequest(), "needs one of --flops"),
        (BudgetRequest(flops=1e20, tokens=1e9), "needs one of --flops"),
        (BudgetRequest(flops=math.nan), "--flops is nan"),
        (BudgetRequest(flops=1e20, over_train=0.5), "must be at least 1"),
        (BudgetRequest(flops=1e20, params=1e8, over_train=2), "leave --over-train out"),
        (BudgetRequest(flops=1e28), "raise max_extrapolation"),
    ],
)
def test_unclear_budgets_are_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        plan_budget(LAW, asked)


def test_fits_come_back_from_their_files_with_intervals(saved):
    for name, continual in (("scratch", False), ("cpt", True)):
        law = read_law(saved / f"{name}.json")
        assert law.continual is continual
        plan = plan_budget(law, BudgetRequest(params=3e8, tokens=1e10))
        low, high = plan["loss_interval_nats"]
        assert low <= plan["loss_nats"] * 1.001
        assert high >= plan["loss_nats"] * 0.999
    assert read_law(saved / "cpt.json").fit.gamma == pytest.approx(0.05, abs=0.005)


def test_files_that_are_no_fits_are_refused(tmp_path, saved):
    with pytest.raises(ConfigError, match="cannot read"):
        read_law(tmp_path / "absent.json")
    bits = {**json.loads((saved / "scratch.json").read_text()), "unit": "bits_per_byte"}
    for name, body, error in [
        ("bits", bits, ConfigError),
        ("other", {"format": "x"}, SchemaError),
        ("no", [], SchemaError),
    ]:
        (tmp_path / f"{name}.json").write_text(json.dumps(body))
        with pytest.raises(error):
            read_law(tmp_path / f"{name}.json")
    with pytest.raises(ConfigError, match="known: chinchilla-refit, hoffmann, besiroglu"):
        published_law("kaplan")


def test_page_draws_fit_and_residuals(tmp_path):
    runs = _runs()
    law = fit(*runs)
    write_fit_page(tmp_path / "fit.html", law, fit_json(law, None, "nats", []), runs)
    page = (tmp_path / "fit.html").read_text()
    assert page.count("<svg") == 2
    assert page.count("<circle") >= 40
    assert "<script" not in page


def test_commands(saved, tmp_path):
    runner = CliRunner()
    done = runner.invoke(app, ["plan", "--flops", "1e21", "--json"])
    assert json.loads(done.output)["cost"]["hardware"] == "h100"
    table = tmp_path / "runs.csv"
    rows = zip(*_runs(), strict=True)
    table.write_text("params,tokens,loss\n" + "".join(f"{n},{d},{loss}\n" for n, d, loss in rows))
    fitted = [
        "plan",
        "fit",
        str(table),
        "--bootstraps",
        "5",
        "--out",
        str(tmp_path / "f.json"),
        "--page",
        str(tmp_path / "f.html"),
    ]
    assert runner.invoke(app, fitted).exit_code == 0
    assert (tmp_path / "f.html").is_file()
    continued = ["plan", "fit", str(table), "--scratch", str(tmp_path / "f.json"), "--bootstraps", "5", "--json"]
    assert set(json.loads(runner.invoke(app, continued).output)["law"]) == {"B", "beta", "gamma"}
    shown = runner.invoke(app, ["plan", "--params", "1e8", "--fit", str(saved / "cpt.json"), "--continual"])
    assert "continue: N =" in shown.output
    refused = runner.invoke(app, ["plan", "--params", "1e8", "--fit", str(saved / "scratch.json"), "--continual"])
    assert isinstance(refused.exception, ConfigError)
