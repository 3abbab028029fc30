from __future__ import annotations

import json

import pytest

from refinery.errors import ConfigError
from refinery.report.explain import explain, explain_text
from tests.report import fake_run
from tests.report.fake_run import KEYS


def told(folder, name):
    found = explain(str(folder), KEYS[name])
    assert json.loads(json.dumps(found)) == found
    assert found["doc_key"] == KEYS[name]
    return found, explain_text(found)


def verdicts(found):
    return {v["stage"]: v["verdict"] for v in found["stages"]}


def test_a_kept_document_is_followed_into_its_rows(run_folder):
    found, text = told(run_folder, "law")
    assert found["outcome"] == "kept"
    assert set(verdicts(found).values()) == {"kept"}
    assert found["stream"] == "law/target/zh/w0/train"
    assert sum(piece["num_tokens"] for piece in found["rows"]) == found["num_tokens"] == 40
    assert "law/target/zh/w0/train/part-00000 row 0" in text
    assert "40 tokens" in text


def test_pieces_of_a_long_document_are_all_found_and_the_list_is_short(run_folder):
    found, text = told(run_folder, "hostile")
    assert sum(piece["num_tokens"] for piece in found["rows"]) == found["num_tokens"]
    assert "more pieces" in text
    assert "\u202e" not in text


def test_a_rule_tells_the_value_and_its_bound(run_folder):
    found, text = told(run_folder, "law-short")
    assert (found["dropped_at"], found["reason"]) == ("rules", "gopher.words_min")
    assert verdicts(found) == {"rules": "dropped", "dedup_documents": "not asked", "mix": "not asked"}
    assert [rule["rule"] for rule in found["stages"][0]["rules"]] == ["gopher.words_min", "mine.alpha"]
    assert "num_words is 1, kept is at least 5" in text
    assert "alpha_frac is 0.1, kept is at least 0.2" in text


def test_a_duplicate_names_its_twin_jaccard_and_difference(run_folder):
    found, text = told(run_folder, "near")
    assert (found["dropped_at"], found["reason"]) == ("dedup_documents", "dedup_documents.near")
    assert found["twin"]["doc_key"] == KEYS["original"]
    assert found["twin"]["jaccard"] == 0.8125
    assert found["cluster"]["size"] == 2
    assert "[-changed-]{+as it was+}" in text


def test_what_the_mix_does_not_need_is_called_good(run_folder):
    found, text = told(run_folder, "surplus")
    assert (found["dropped_at"], found["reason"], found["stream"]) == ("mix", "mix.over_ceiling", None)
    assert found["rows"] == []
    assert "good text that this token budget does not need" in text


def test_a_unique_prefix_is_enough(run_folder):
    assert explain(str(run_folder), KEYS["law"][:8].upper())["doc_key"] == KEYS["law"]


def test_unknown_keys_name_near_ones(run_folder):
    key = KEYS["law"]
    wrong = key[:5] + ("0" if key[5] != "0" else "1") + key[6:]
    with pytest.raises(ConfigError, match=f"near: .*{key}"):
        explain(str(run_folder), wrong)


@pytest.mark.parametrize("given", ["", "abc", "nothexatall", "../../etc", "12345\u202e"])
def test_what_is_no_key_is_refused(run_folder, given):
    with pytest.raises(ConfigError, match="no document key"):
        explain(str(run_folder), given)


def test_a_prefix_of_several_lists_them(run_folder, monkeypatch):
    monkeypatch.setattr("refinery.report.explain.MIN_PREFIX_CHARS", 1)
    by_first: dict[str, list[str]] = {}
    for key in KEYS.values():
        by_first.setdefault(key[0], []).append(key)
    first, keys = max(by_first.items(), key=lambda item: len(item[1]))
    assert len(keys) > 1
    with pytest.raises(ConfigError, match="give more digits") as caught:
        explain(str(run_folder), first)
    assert all(key in str(caught.value) for key in keys)


def test_before_ingest_there_is_nothing_to_explain(tmp_path):
    with pytest.raises(ConfigError, match="ingest"):
        explain(str(tmp_path), "abcdef12")


def test_an_unfinished_run_says_what_is_open(tmp_path):
    fake_run.write(tmp_path, "rules")
    found, text = told(tmp_path, "law")
    assert found["not_run"] == ["tokenize", "mix", "pack"]
    assert "not run yet" in text
