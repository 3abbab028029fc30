"""screen: other languages inside documents, the two Chinese scripts, and lists of URLs."""

from __future__ import annotations

import json

import pytest

from tests.kernels.test_langid import SENTENCES
from tests.stages.runs import decisions, documents, need_stage, run_stages, whole_table

pytestmark = pytest.mark.spark

HANS = "国家发展为了人民，这个规定说明了学习和劳动的权利，每个人都应当遵守。"
HANT = "國家發展為了人民，這個規定說明了學習和勞動的權利，每個人都應當遵守。"


def _rows():
    yield {"id": "plain", "text": SENTENCES["de"] * 3, "url": "https://ok.example/a"}
    yield {"id": "mixed", "text": f"{SENTENCES['de'] * 6}\n{SENTENCES['fr'] * 2}", "url": "https://ok.example/b"}
    yield {"id": "scripts", "text": f"{SENTENCES['de'] * 6}\n{SENTENCES['ru']}", "url": None}
    yield {"id": "hans", "text": HANS * 3, "url": "https://zh.example/1"}
    yield {"id": "hant", "text": HANT * 3, "url": "https://zh.example/2"}
    yield {"id": "host", "text": SENTENCES["de"] * 2, "url": "https://www.bad.example/x"}
    yield {"id": "path", "text": SENTENCES["de"] * 4, "url": "https://half.example/spam/x"}
    yield {"id": "word", "text": SENTENCES["de"] * 5, "url": "https://ok.example/online-casino"}


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    root = tmp_path_factory.mktemp("screen")
    path = root / "web.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows()), encoding="utf-8")
    (root / "hosts").write_text("bad.example\nhalf.example/spam\n")
    (root / "words").write_text("casino\n")
    return {
        "name": "screen", "seed": 1, "workdir": str(root / "run"),
        "inputs": [{"source": "web", "domain": "web", "format": "jsonl", "paths": [str(path)]}],
        "ingest": {"validation_frac": 0.0},
        "screen": {
            "languages": ["de", "zh-Hans"], "min_confidence": 0.2, "blocked_hosts": str(root / "hosts"),
            "blocked_url_words": str(root / "words"),
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def screened(spark, values):
    pytest.importorskip("fasttext")
    run_stages(spark, values, ("ingest", "screen"))
    return values


def _ids(values):
    lines = [json.loads(line) for line in open(values["inputs"][0]["paths"][0], encoding="utf-8")]  # noqa: PTH123, SIM115
    hashes = {row["text"]: row["id"] for row in lines}
    return {d["doc_id"]: hashes[d["text"]] for d in documents(values["workdir"]).values()}


def test_reasons(screened):
    ids = _ids(screened)
    reasons = {ids[d]: row["drop_reason"] for d, row in decisions(screened["workdir"], "screen").items()}
    assert reasons == {
        "plain": None, "mixed": None, "scripts": None, "hans": None, "hant": "screen.language",
        "host": "screen.host", "path": "screen.url", "word": "screen.url_word",
    }  # fmt: skip


def test_other_languages_inside_documents(screened):
    ids = _ids(screened)
    rows = {ids[r["doc_id"]]: r for r in whole_table(screened["workdir"], "screen", "language").to_pylist()}
    assert {k: r["chinese_script"] for k, r in rows.items() if r["lang"] == "zh"} == {"hans": "Hans", "hant": "Hant"}
    assert rows["plain"]["chinese_script"] is None
    assert (rows["mixed"]["chosen_lines"], rows["mixed"]["other_lines"], rows["mixed"]["other_lang"]) == (2, 1, "fr")
    assert (rows["plain"]["chosen_lines"], rows["plain"]["other_lines"], rows["plain"]["other_lang"]) == (1, 0, None)
    assert rows["mixed"]["other_script_frac"] == 0
    letters = {k: sum(c.isalpha() for c in t) for k, t in (("de", SENTENCES["de"] * 6), ("ru", SENTENCES["ru"]))}
    assert rows["scripts"]["other_script_frac"] == pytest.approx(letters["ru"] / sum(letters.values()), rel=1e-5)


def test_shares_of_lines_add_up_and_name_the_tail(screened):
    rows = need_stage(screened["workdir"], "screen").facts["line_languages"]
    assert {"de", "fr", "zh"} <= {r["language"] for r in rows}
    assert sum(r["share"] for r in rows) == pytest.approx(1)
    assert all(0 <= r["low"] <= r["share"] <= r["high"] <= 1 for r in rows)
    assert rows[0]["language"] == "de"


def test_slices_do_not_change_a_byte(spark, screened, tmp_path):
    other = {**screened, "workdir": str(tmp_path / "run")}
    run_stages(spark, other, ("ingest", "screen"), slice_rows=1)
    first, second = (need_stage(v["workdir"], "screen") for v in (screened, other))
    assert first.content_hash == second.content_hash
    assert first.facts["line_languages"] == second.facts["line_languages"]
