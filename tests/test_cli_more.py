"""The commands that plan, write recipes and sample; the ones that run stages are in test_cli."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from refinery import cli
from refinery.recipe import load_recipe
from refinery.scaling.parametric import Fit
from tests.trainer.tiny_runs import memory_source, tiny_config, tiny_model


@pytest.fixture
def refinery(monkeypatch, capfd):
    """The command as ``main`` runs it, exit code and child processes included."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["refinery", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        shown = capfd.readouterr()
        return code, shown.out, shown.err

    return run


LAW = Fit(A=482.0, B=2085.0, E=1.8, alpha=0.35, beta=0.37, objective=0.0, num_runs=0)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Runs that lie on a known law."""
    sizes = np.repeat([5e7, 1e8, 4e8, 1e9], 4)
    tokens = sizes * np.tile([5.0, 20.0, 60.0, 200.0], 4)
    losses = LAW.loss(sizes, tokens)
    path = tmp_path / "runs.csv"
    rows = "\n".join(
        f"{n!r},{d!r},{x!r}" for n, d, x in zip(*map(np.ndarray.tolist, (sizes, tokens, losses)), strict=True)
    )
    path.write_text(f"params,tokens,loss\n{rows}\n", encoding="utf-8")
    return path


class TestPlan:
    def test_fit_finds_the_law_and_optimal_uses_it(self, refinery, table, tmp_path):
        out = tmp_path / "fit.json"
        code, shown, _ = refinery("plan", "fit", table, "--bootstraps", 3, "--out", out, "--json")
        assert code == 0
        body = json.loads(shown)
        assert body == json.loads(out.read_text("utf-8"))
        found = np.array([body["law"][k] for k in ("A", "B", "E", "alpha", "beta")])
        np.testing.assert_allclose(found, LAW.vector(), rtol=0.01)
        assert body["num_runs"] == 16
        assert set(body["intervals_95"]) == {"A", "B", "E", "alpha", "beta", "a"}
        code, shown, _ = refinery("plan", "optimal", "--flops", 1e20, "--fit", out, "--json")
        plan = json.loads(shown)
        assert code == 0
        assert plan["num_params"] * plan["num_tokens"] * 6 == pytest.approx(1e20)
        assert plan["num_params"] == pytest.approx(LAW.G * (1e20 / 6) ** LAW.a, rel=0.02)

    def test_a_table_with_flops_gives_the_same(self, refinery, table, tmp_path):
        rows = [line.split(",") for line in table.read_text("utf-8").splitlines()[1:]]
        other = tmp_path / "flops.csv"
        lines = [f"{n},{6 * float(n) * float(d)!r},{loss}" for n, d, loss in rows]
        other.write_text("Model Size,Training FLOP,loss\n" + "\n".join(lines) + "\n", encoding="utf-8")
        given = json.loads(refinery("plan", "fit", table, "--bootstraps", 0, "--json")[1])["law"]
        found = json.loads(refinery("plan", "fit", other, "--bootstraps", 0, "--json")[1])["law"]
        assert found == pytest.approx(given, rel=1e-3)

    def test_text_names_the_parameters(self, refinery, table):
        code, shown, _ = refinery("plan", "fit", table, "--bootstraps", 2)
        assert code == 0
        for name in ("E ", "alpha", "beta", "95 %", "16 runs"):
            assert name in shown

    def test_size_budget_and_both(self, refinery):
        size = json.loads(refinery("plan", "optimal", "--params", 1e9, "--json")[1])
        assert size["num_params"] == pytest.approx(1e9)
        again = json.loads(refinery("plan", "optimal", "--flops", size["flops"], "--json")[1])
        assert again["num_tokens"] == pytest.approx(size["num_tokens"])
        both = json.loads(refinery("plan", "optimal", "--flops", size["flops"], "--params", 5e8, "--json")[1])
        assert both["loss_given_up_nats"] > 0
        assert both["loss_nats"] > size["loss_nats"]

    @pytest.mark.parametrize("law", ["chinchilla-refit", "hoffmann", "besiroglu", "scratch-2407", "cpt-2407"])
    def test_every_published_law_plans(self, refinery, law):
        code, shown, _ = refinery("plan", "optimal", "--flops", 1e21, "--law", law)
        assert code == 0
        assert "parameters" in shown

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (("plan", "optimal"), 2, "--flops"),
            (("plan", "optimal", "--flops", "1e30"), 2, "beyond"),
            (("plan", "optimal", "--params", "-3"), 2, "> 0"),
            (("plan", "optimal", "--flops", "1e21", "--law", "mine"), 2, "unknown"),
            (("plan", "optimal", "--flops", "1e21", "--fit", "gone.json"), 2, "cannot read"),
            (("plan", "fit", "gone.csv"), 2, "does not exist"),
            (("plan", "fit", "gone"), 2, "does not exist"),
        ],
    )
    def test_what_cannot_be_planned(self, refinery, arguments, code, words):
        found, _, err = refinery(*arguments)
        assert (found, words in err) == (code, True), err

    def test_tables_and_fits_that_are_none(self, refinery, table, tmp_path):
        bad = tmp_path / "bad.csv"
        bad.write_text("size,loss\n1,2\n", encoding="utf-8")
        assert refinery("plan", "fit", bad)[0] == 3
        bad.write_text("params,tokens,loss\n1,x,2\n", encoding="utf-8")
        assert refinery("plan", "fit", bad)[0] == 3
        assert refinery("plan", "fit", table, bad)[0] == 2
        assert refinery("plan", "optimal", "--flops", "1e20", "--fit", table)[0] == 3


class TestInit:
    def test_flags_make_a_recipe_that_loads(self, refinery, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "' + "words " * 50 + '"}\n', encoding="utf-8")
        out = tmp_path / "mine.yaml"
        arguments = ("--target", f"law={tmp_path / 'a.jsonl'}", "--input", "python:docs", "--role", "replay")
        code, shown, _ = refinery("init", out, *arguments, "--languages", "en,zh", "--no-train", "--json")
        assert code == 0
        assert json.loads(shown)["recipe"] == str(out)
        recipe = load_recipe(out)
        assert (recipe.name, recipe.train, recipe.screen and recipe.screen.languages) == ("mine", None, ("en", "zh"))
        assert [(i.domain, i.role) for i in recipe.inputs] == [("law", "target"), ("python-docs", "replay")]
        code, _, err = refinery("init", out, *arguments)
        assert (code, "--force" in err) == (2, True)
        assert refinery("init", out, *arguments, "--force", "--budget-tokens", "2M")[0] == 0
        assert load_recipe(out).mix.budget_tokens == 2_000_000

    def test_without_a_terminal_and_flags_it_says_what_to_give(self, refinery, tmp_path, monkeypatch):
        monkeypatch.setattr("sys.stdin", (tmp_path / "empty").open("w+"))
        code, _, err = refinery("init", tmp_path / "r.yaml")
        assert (code, "--target" in err) == (2, True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    from refinery.tokenization.recipe import recipe_from_mapping
    from refinery.tokenization.train import train_bpe
    from refinery.trainer.loop import train

    folder = tmp_path_factory.mktemp("trained")
    values = {"name": "t", "vocab_size": 280, "num_reserved": 2, "sample_bytes": 10_000, "seed": 1}
    train_bpe(
        ["some text to learn from, again and again " * 20],
        recipe_from_mapping(values),
        folder / "tokenize" / "tokenizer",
    )
    train(tiny_config(model=tiny_model(vocab_size=320), steps=2), memory_source(), folder / "train", name="t")
    return folder


class TestSample:
    def test_the_model_goes_on(self, refinery, trained):
        options = ("--tokens", 5, "--temperature", 0.9, "--seed", 3)
        code, shown, err = refinery("sample", trained, "--prompt", "-some text", "--prompt", "", *options, "--json")
        assert code == 0, err
        found = json.loads(shown)
        assert [one["prompt"] for one in found] == ["-some text", ""]
        assert all(0 <= one["num_tokens"] <= 5 for one in found)
        assert json.loads(refinery("sample", trained, "--prompt", "", *options, "--json")[1]) == found[1:]
        assert refinery("sample", trained, "--prompt", "text", "--tokens", 2)[1].startswith("text")

    def test_a_folder_without_a_model(self, refinery, tmp_path):
        code, _, err = refinery("sample", tmp_path, "--prompt", "x")
        assert code == 2
        assert "tokenize" in err
