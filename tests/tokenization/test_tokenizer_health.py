from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from refinery.errors import DataError
from refinery.tokenization.encode import Encoder, open_encoder
from refinery.tokenization.health import health
from refinery.tokenization.health_checks import gb2312_characters
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
        "num_distinct_single_token": 0,
        "pieces_of_distinct": {"3": 1},
        "gb2312": {"num_characters": 6763, "num_single_token": 0, "single_token_frac": 0.0, "pieces": {"3": 6763}},
        "num_looked_up": 1,
        "num_single_token": 0,
        "single_token_frac": 0.0,
        "single_token_frac_of_text": 0.0,
        "most_common_without_token": ["中"],
    }
    assert report["longest_tokens"][0]["text"] == "abc"
    assert report["tokens"]["num_rare"] == 5  # ab occurs three times
    assert report["tokens"]["num_part_characters"] == 128
    assert report["tokens"]["part_character_frac_of_text"] == round(3 / 8, 6)
    assert report["white_space_and_digits"]["tokens_of_digits"] == list(range(1, 17))
    assert report["white_space_and_digits"]["most_digits_in_a_token"] == 1
    assert report["merges"]["num_merges"] == 3
    assert (report["merges"]["num_unknown"], report["merges"]["num_repeated"]) == (0, 0)
    assert report["merges"]["exceeds_32_bits"] is None
    assert report["plots"]["rank_uses"][0] == [1, 3]
    assert report["plots"]["tokens_by_bytes"][:4] == [0, 256, 2, 1]
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


def test_a_reference_is_counted_on_the_same_text_and_a_better_one_is_told(tmp_path: Path, encoder: Encoder) -> None:
    letters = Tokenizer(models.BPE({char: n for n, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters.decoder = decoders.ByteLevel()
    letters.add_special_tokens(["<|endoftext|>"])
    letters.save(str(tmp_path / "tokenizer.json"))
    adopt_tokenizer(tmp_path, tmp_path / "bytes")
    text = "the same text of the documents, again and again"
    samples = [("web", "en", text), ("law", "zh", "第一条")]
    ours = Tokenizer.from_file(str(encoder.folder / "tokenizer.json"))
    report = health(encoder, samples, references={"bytes": letters, "itself": ours})
    rows = {row["name"]: row for row in report["references"]}
    assert rows["bytes"]["bytes_per_token"] == 1.0
    assert rows["itself"]["bytes_per_token"] == report["total"]["bytes_per_token"]
    assert [row["language"] for row in rows["bytes"]["by_language"]] == ["en", "zh"]
    assert not any("more bytes into a token" in reason for reason in report["verdict"]["reasons"])
    large = ours.get_vocab_size()
    worse = health(open_encoder(tmp_path / "bytes"), samples, references={"itself": ours})
    assert worse["references"][0]["vocab_size"] == large
    assert not any("more bytes" in reason for reason in worse["verdict"]["reasons"]), "a larger one is no reproach"
    small = Tokenizer(models.BPE(ours.get_vocab(), [("Ġ", "t"), ("h", "e")]))
    small.pre_tokenizer = letters.pre_tokenizer
    poor = health(encoder, samples, references={"poor": small})
    assert poor["references"][0]["bytes_per_token"] < report["total"]["bytes_per_token"]


def test_merges_that_contradict_the_vocabulary_are_told(tmp_path: Path) -> None:
    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "bc", "abc"]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    adopt_tokenizer(tmp_path, tmp_path / "adopted")
    report = health(open_encoder(tmp_path / "adopted"), [("web", "en", "abc")])
    assert report["merges"]["num_repeated"] == 1
    assert any("make a token again" in reason for reason in report["verdict"]["reasons"])


def test_gb2312_has_6763_characters() -> None:
    characters = gb2312_characters()
    assert (len(characters), len(set(characters)), characters[0], characters[-1]) == (6763, 6763, "啊", "齄")
