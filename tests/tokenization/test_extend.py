from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from refinery.errors import ConfigError, DataError
from refinery.tokenization.encode import Encoder, open_encoder
from refinery.tokenization.extend import PIECES_FILE, extend_bpe
from refinery.tokenization.info import adopt_tokenizer, load_info
from refinery.tokenization.recipe import TokenizerRecipe
from refinery.tokenization.train import train_bpe

_MEDICAL = (
    "高血压患者应当定期测量血压，遵医嘱服用降压药物。糖尿病患者应当监测血糖，控制饮食。"
    "冠状动脉粥样硬化性心脏病的诊断依据包括心电图、超声心动图和冠状动脉造影。\n"
    "Hypertension and atherosclerosis: electrocardiogram, echocardiography; hyperlipidaemia <|endoftext|>.\n"
) * 5


@pytest.fixture(scope="session")
def extended_dir(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extended")
    extend_bpe(tokenizer_dir, [_MEDICAL], 120, folder)
    return folder


@pytest.fixture(scope="session")
def extended(extended_dir: Path) -> Encoder:
    return open_encoder(extended_dir)


def test_old_ids_stay_and_new_ones_follow(extended_dir: Path, tokenizer_dir: Path, extended: Encoder) -> None:
    old = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json")).get_vocab()
    new = Tokenizer.from_file(str(extended_dir / "tokenizer.json")).get_vocab()
    assert old.items() <= new.items()
    assert sorted(new.values()) == list(range(len(old) + 120))
    assert (extended.info.eos_id, extended.info.special_ids) == (0, load_info(tokenizer_dir).special_ids)
    assert extended.info.origin["extended_from"] == load_info(tokenizer_dir).sha256


def test_domain_text_gets_shorter_and_still_decodes(encoder: Encoder, extended: Encoder) -> None:
    assert len(extended.encode_text(_MEDICAL)) < 0.7 * len(encoder.encode_text(_MEDICAL))
    assert extended.decode(extended.encode_text(_MEDICAL)) == _MEDICAL
    assert not set(extended.encode_text(_MEDICAL).tolist()) & set(extended.info.special_ids.values())


def _old_ids(ids: list[int], pieces: list[list[int]], first_new_id: int) -> list[int]:
    return [part for index in ids for part in (pieces[index - first_new_id] if index >= first_new_id else [index])]


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=100),
        st.lists(st.sampled_from(["高血压", "患者", "诊", "electro", "cardio", " and", "中", "，", " ", "x"])).map(
            "".join
        ),
        st.tuples(st.integers(0, len(_MEDICAL)), st.integers(0, 200)).map(lambda cut: _MEDICAL[cut[0] :][: cut[1]]),
    )
)
def test_new_tokens_stand_for_what_the_old_vocabulary_gives(
    encoder: Encoder, extended: Encoder, extended_dir: Path, text: str
) -> None:
    stored = json.loads((extended_dir / PIECES_FILE).read_text())
    ids, before = extended.encode_text(text).tolist(), encoder.encode_text(text).tolist()
    first_new_id = stored["first_new_id"]
    if max(ids, default=0) < first_new_id:
        assert ids == before
    assert extended.decode(_old_ids(ids, stored["pieces"], first_new_id)) == text
    assert len(ids) <= len(before)


def test_pieces_spell_their_token(encoder: Encoder, extended: Encoder, extended_dir: Path) -> None:
    stored = json.loads((extended_dir / PIECES_FILE).read_text())
    assert (stored["base_sha256"], stored["first_new_id"]) == (encoder.info.sha256, encoder.info.vocab_size)
    assert len(stored["pieces"]) == 120
    for number, pieces in enumerate(stored["pieces"]):
        assert len(pieces) >= 2
        assert max(pieces) < stored["first_new_id"]
        assert encoder.decode(pieces) == extended.decode([stored["first_new_id"] + number])


def test_same_texts_give_the_same_bytes_in_any_order(tokenizer_dir: Path, tmp_path: Path) -> None:
    documents = _MEDICAL.splitlines()
    for name, order in (("a", documents), ("b", documents[::-1])):
        extend_bpe(tokenizer_dir, order, 50, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_extending_bytes_learns_the_merges_that_training_learns(tmp_path: Path, texts: list[str]) -> None:
    # From a vocabulary without merges, going on is training: same tokens as the library's trainer, up to ties.
    recipe = TokenizerRecipe(name="bytes", vocab_size=258, num_reserved=0, sample_bytes=4_000_000)
    train_bpe(texts, recipe, tmp_path / "bytes")
    extend_bpe(tmp_path / "bytes", texts, 500, tmp_path / "more")
    train_bpe(texts, recipe.model_copy(update={"vocab_size": 758}), tmp_path / "whole")
    ours, theirs = (
        Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")).get_vocab() for name in ("more", "whole")
    )
    assert len(set(ours) & set(theirs)) > 750


def test_control_tokens_above_the_merges_keep_their_ids(tmp_path: Path, texts: list[str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    (tmp_path / "gpt2").mkdir()
    tokenizer.save(str(tmp_path / "gpt2" / "tokenizer.json"))
    adopt_tokenizer(tmp_path / "gpt2", tmp_path / "old")
    info = extend_bpe(tmp_path / "old", [_MEDICAL], 60, tmp_path / "new")
    assert info.special_ids == load_info(tmp_path / "old").special_ids == {"<|endoftext|>": 600, "<|im_end|>": 601}
    assert info.vocab_size == 662
    encoder = open_encoder(tmp_path / "new")
    assert encoder.engine == "kernel"
    assert not {600, 601} & set(encoder.encode_text("<|endoftext|> x <|im_end|>").tolist())


def test_bad_requests_are_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found \d+ new tokens of the 99,999"):
        extend_bpe(tokenizer_dir, [_MEDICAL], 99_999, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for num_new, out in ((0, tmp_path / "out"), (5, tokenizer_dir)):
        with pytest.raises(ConfigError, match="another folder"):
            extend_bpe(tokenizer_dir, [_MEDICAL], num_new, out)
    with pytest.raises(DataError, match="document 0"):
        extend_bpe(tokenizer_dir, [b"bytes"], 5, tmp_path / "out")  # type: ignore[list-item]
    unigram = Tokenizer(models.Unigram([("a", 0.0), ("<eos>", 0.0)], unk_id=0))
    unigram.add_special_tokens(["<eos>"])
    unigram.save(str(tmp_path / "tokenizer.json"))
    adopt_tokenizer(tmp_path, tmp_path / "unigram")
    with pytest.raises(ConfigError, match="only byte-level BPE"):
        extend_bpe(tmp_path / "unigram", [_MEDICAL], 5, tmp_path / "out")
