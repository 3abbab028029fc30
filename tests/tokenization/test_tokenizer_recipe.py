from __future__ import annotations

from pathlib import Path

import pytest
import regex

from refinery.errors import ConfigError
from refinery.tokenization.recipe import TokenizerRecipe, load_recipe, recipe_from_mapping

_ROOT = Path(__file__).parents[2]
_GOOD = {"name": "x", "vocab_size": 1000, "sample_bytes": 10_000, "num_reserved": 2}


@pytest.mark.parametrize("path", sorted((_ROOT / "tokenizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load_under_their_own_name(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.num_merges > 0


def test_hash_covers_every_field_and_is_stable_across_key_order() -> None:
    base = recipe_from_mapping(_GOOD)
    assert recipe_from_mapping(dict(reversed(_GOOD.items()))).sha256 == base.sha256
    for change in ({"seed": 1}, {"split_pattern": "gpt4_digits1"}, {"min_frequency": 3}, {"num_reserved": 3}):
        assert recipe_from_mapping({**_GOOD, **change}).sha256 != base.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabsize": 5}, "did you mean 'vocab_size'"),
        ({"split_pattern": "gpt4_digit3"}, "did you mean 'gpt4_digits3'"),
        ({"vocab_size": 258, "num_reserved": 9}, "under 267 = 256 bytes"),
        ({"vocab_size": "1000"}, "vocab_size"),
        ({"vocab_size": 10}, "256"),
        ({"sample_bytes": 0}, "sample_bytes"),
        ({"normaliser": "nfkc"}, "normaliser"),
        ({"special_tokens": ["<|pad|>"]}, "<|endoftext|>"),
        ({"special_tokens": ["<|endoftext|>", "<|endoftext|>"]}, "more than once"),
        ({"special_tokens": ["<|endoftext|>", "a b"]}, "white space"),
        ({"special_tokens": ["<|endoftext|>", "<|reserved_0|>"]}, "more than once"),
    ],
)
def test_bad_recipes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")):
        recipe_from_mapping({**_GOOD, **change})


def test_unreadable_recipe_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tokenizer recipe"):
        load_recipe(tmp_path / "none.yaml")
    for content in ("a: [", "- 1\n- 2", ""):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(ConfigError):
            load_recipe(tmp_path / "bad.yaml")


def _pretokens(text: str, name: str = "gpt4_digits3") -> list[str]:
    pattern = TokenizerRecipe(name="x", vocab_size=1000, sample_bytes=1, split_pattern=name).pattern
    return [match.group() for match in regex.finditer(pattern, text, flags=regex.V1)]


def test_pretokens_are_cut_as_the_recipe_says() -> None:
    assert _pretokens("I'll say Hello, world!\n") == ["I", "'ll", " say", " Hello", ",", " world", "!\n"]
    assert _pretokens("12345 6") == ["123", "45", " ", "6"]
    assert _pretokens("123", "gpt4_digits1") == ["1", "2", "3"]
    assert _pretokens("中华人民共和国，在Python中") == ["中华人民", "共和国", "，", "在", "Python", "中"]
    assert _pretokens("x  y\r\n\r\n  z") == ["x", " ", " y", "\r\n\r\n", " ", " z"]
    assert _pretokens("हिन्दी e\u0301te") == ["हिन्दी", " e\u0301te"]
