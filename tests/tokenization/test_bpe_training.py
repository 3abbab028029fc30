from __future__ import annotations

import json
from pathlib import Path

import pytest

from refinery.errors import ConfigError, DataError, IntegrityError
from refinery.tokenization.encode import open_encoder
from refinery.tokenization.info import INFO_FILE, PROBES, adopt_tokenizer, load_info, verify_tokenizer
from refinery.tokenization.recipe import TokenizerRecipe
from refinery.tokenization.train import train_bpe


def test_same_sample_gives_the_same_bytes_in_any_order(
    tmp_path: Path, texts: list[str], small_recipe: TokenizerRecipe, tokenizer_dir: Path
) -> None:
    train_bpe(reversed(texts), small_recipe, tmp_path)
    names = sorted(path.name for path in tokenizer_dir.iterdir())
    assert names == ["info.json", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (tokenizer_dir / name).read_bytes()


def test_vocabulary_has_the_size_and_the_special_ids_of_the_recipe(
    tokenizer_dir: Path, small_recipe: TokenizerRecipe
) -> None:
    info = load_info(tokenizer_dir)
    assert info.vocab_size == small_recipe.vocab_size
    assert (info.eos_id, info.pad_id) == (0, 1)
    assert info.special_ids == {token: index for index, token in enumerate(small_recipe.all_special_tokens)}
    assert [text for text, _ in info.probes] == list(PROBES)
    model = json.loads((tokenizer_dir / "tokenizer.json").read_text())["model"]
    assert len(model["merges"]) == small_recipe.num_merges
    assert sorted(model["vocab"].values()) == list(range(small_recipe.vocab_size))


def test_progress_counts_documents_and_bytes(tmp_path: Path, texts: list[str], small_recipe: TokenizerRecipe) -> None:
    seen: list[tuple[int, int]] = []
    train_bpe(texts, small_recipe, tmp_path, lambda docs, num_bytes: seen.append((docs, num_bytes)))
    assert seen[-1] == (len(texts), sum(len(text.encode()) for text in texts))
    assert seen == sorted(seen)


def test_too_small_a_sample_is_refused_with_both_numbers(tmp_path: Path, small_recipe: TokenizerRecipe) -> None:
    with pytest.raises(ConfigError, match=r"learnt \d+ merges of the 1,238 .* set vocab_size to \d"):
        train_bpe(["few words, few words"], small_recipe, tmp_path)
    with pytest.raises(ConfigError, match="learnt 0 merges"):
        train_bpe([], small_recipe, tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_large_a_sample_is_refused(tmp_path: Path) -> None:
    recipe = TokenizerRecipe(name="x", vocab_size=300, num_reserved=0, sample_bytes=1000)
    with pytest.raises(ConfigError, match="twice"):
        train_bpe(["fine", "x" * (17 << 20)], recipe, tmp_path)


def test_bad_documents_and_failing_iterators_surface_as_themselves(
    tmp_path: Path, small_recipe: TokenizerRecipe
) -> None:
    with pytest.raises(DataError, match="document 1 is bytes"):
        train_bpe(["fine", b"bytes"], small_recipe, tmp_path)  # type: ignore[list-item]
    with pytest.raises(DataError, match="document 0 is not valid Unicode"):
        train_bpe(["lone \ud800"], small_recipe, tmp_path)

    def broken():
        yield "fine"
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        train_bpe(broken(), small_recipe, tmp_path)


def _copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_damaged_and_other_vocabularies_are_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    info = load_info(tokenizer_dir)
    assert verify_tokenizer(tokenizer_dir, info.sha256) == info
    assert verify_tokenizer(tokenizer_dir / "tokenizer.json", info.sha256) == info
    with pytest.raises(IntegrityError, match="expected 00"):
        verify_tokenizer(tokenizer_dir, "00")
    with pytest.raises(IntegrityError, match="expected 00"):
        open_encoder(tokenizer_dir, "00")

    damaged = _copy(tokenizer_dir, tmp_path / "damaged")
    (damaged / "tokenizer.json").write_bytes((damaged / "tokenizer.json").read_bytes()[:-5])
    with pytest.raises(IntegrityError, match="damaged or replaced"):
        open_encoder(damaged)
    with pytest.raises(IntegrityError, match="not a tokenizer"):
        adopt_tokenizer(damaged, tmp_path / "again")

    card = _copy(tokenizer_dir, tmp_path / "card")
    (card / INFO_FILE).write_text("{}")
    with pytest.raises(IntegrityError, match="damaged"):
        load_info(card)
    (card / INFO_FILE).unlink()
    with pytest.raises(ConfigError, match="adopt_tokenizer"):
        load_info(card)
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        load_info(tmp_path)


def test_a_library_that_encodes_differently_is_noticed(tokenizer_dir: Path, tmp_path: Path) -> None:
    other = _copy(tokenizer_dir, tmp_path / "other")
    card = json.loads((other / INFO_FILE).read_text())
    card["probes"][0][1][0] += 1
    (other / INFO_FILE).write_text(json.dumps(card))
    with pytest.raises(IntegrityError, match="library differs"):
        open_encoder(other)


def test_adopting_keeps_the_definition_and_finds_the_end_token(tokenizer_dir: Path, tmp_path: Path) -> None:
    source = _copy(tokenizer_dir, tmp_path / "model")
    (source / INFO_FILE).unlink()
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|reserved_1|>"}}))
    info = adopt_tokenizer(source, tmp_path / "adopted")
    assert info.sha256 == load_info(tokenizer_dir).sha256
    assert info.eos_id == load_info(tokenizer_dir).special_ids["<|reserved_1|>"]
    (source / "tokenizer_config.json").unlink()
    assert adopt_tokenizer(source, tmp_path / "usual").eos_id == 0
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<none>"}))
    with pytest.raises(IntegrityError, match="belong to different"):
        adopt_tokenizer(source, tmp_path / "bad")


def test_transformers_loads_it_and_agrees(tokenizer_dir: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tokenizer_dir))
    info = load_info(tokenizer_dir)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (info.eos_id, info.pad_id)
    assert len(tokenizer) == info.vocab_size
    for text, ids in info.probes:
        assert tuple(tokenizer.encode(text, add_special_tokens=False)) == ids
        assert tokenizer.decode(ids) == text
