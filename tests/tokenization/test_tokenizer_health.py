from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from refinery.errors import DataError
from refinery.tokenization.encode import Encoder, open_encoder
from refinery.tokenization.health import health
from refinery.tokenization.info import adopt_tokenizer


def test_numbers_of_a_hand_made_vocabulary(tmp_path: Path) -> None:
    # a b ab: "ab" takes every a+b; "abc" can never be made, as its right half "bc" always loses b to "ab".
    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "bc", "abc"]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [("a", "b"), ("b", "c"), ("a", "bc")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    adopt_tokenizer(tmp_path, tmp_path / "adopted")
    report = health(
        open_encoder(tmp_path / "adopted"), [("web", "en", "ab abc"), ("law", "zh", "中ab"), ("web", "en", "")]
    )
    json.dumps(report)
    groups = {(row["domain"], row["language"]): row for row in report["by_domain_and_language"]}
    web, law = groups["web", "en"], groups["law", "zh"]
    assert (web["num_docs"], web["num_bytes"], web["num_tokens"], web["fertility"]) == (2, 6, 4, 2.0)
    assert (law["num_tokens"], law["fertility"]) == (4, 2.0)  # 中 and ab
    assert web["bytes_per_token"] == 1.5
    assert [row["text"] for row in report["tokens"]["unreachable"]] == ["abc"]
    assert "abc" in [row["text"] for row in report["tokens"]["glitch_candidates"]]
    assert report["tokens"]["num_ordinary"] == 259
    assert report["tokens"]["num_unused"] == 259 - 6  # seen: ab, space, c and three bytes of 中
    assert report["han"] == {
        "num_distinct": 1,
        "num_looked_up": 1,
        "num_single_token": 0,
        "single_token_frac": 0.0,
        "single_token_frac_of_text": 0.0,
        "most_common_without_token": ["中"],
    }
    assert report["longest_tokens"][0]["text"] == "abc"
    assert report["verdict"]["word"] == "look"


def test_report_does_not_depend_on_the_order_of_documents(encoder: Encoder, texts: list[str]) -> None:
    samples = [("docs", "zh" if "第一条" in text else "en", text[:20_000]) for text in texts]
    report = health(encoder, samples)
    assert report == health(encoder, samples[::-1])
    assert report["roundtrip_failures"] == 0
    assert report["han"]["num_distinct"] > 50
    assert [row["language"] for row in report["by_language"]] == ["en", "zh"]
    assert report["total"]["num_tokens"] == sum(row["num_tokens"] for row in report["by_domain"])


def test_a_lossy_vocabulary_is_unfit(tmp_path: Path, tokenizer_dir: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    adopt_tokenizer(tmp_path, tmp_path / "adopted")
    report = health(open_encoder(tmp_path / "adopted"), [("web", "en", "Upper Case")])
    assert (report["roundtrip_failures"], report["verdict"]["word"]) == (1, "unfit")


def test_no_text_is_refused(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="needs text"):
        health(encoder, [("web", "en", "")])
