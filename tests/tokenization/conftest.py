from __future__ import annotations

import pydoc
from pathlib import Path

import pytest

from refinery.tokenization.encode import Encoder, open_encoder
from refinery.tokenization.recipe import TokenizerRecipe
from refinery.tokenization.train import train_bpe

_CHINESE = (
    "第一条　为了规范合同行为，保护当事人的合法权益，维护社会经济秩序，制定本法。\n"
    "第二条　本法所称合同，是民事主体之间设立、变更、终止民事法律关系的协议。\n"
    "当事人应当遵循公平原则确定各方的权利和义务；行使权利、履行义务应当遵循诚实信用原则。\n"
    "在Python中，字符串“你好，世界”有6个字符。今天天气很好，我们去公园散步吧！人工智能与大数据。\n"
)


def sample_texts() -> list[str]:
    modules = ("os", "re", "json", "typing", "unittest", "collections", "email", "http.client", "argparse", "decimal")
    return [pydoc.render_doc(name, renderer=pydoc.plaintext) for name in modules] + [_CHINESE * 6]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return sample_texts()


@pytest.fixture(scope="session")
def small_recipe() -> TokenizerRecipe:
    return TokenizerRecipe(name="tiny", vocab_size=1500, num_reserved=4, sample_bytes=4_000_000)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, texts: list[str], small_recipe: TokenizerRecipe) -> Path:
    folder = tmp_path_factory.mktemp("tiny-tokenizer")
    train_bpe(iter(texts), small_recipe, folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tokenizer_dir: Path) -> Encoder:
    return open_encoder(tokenizer_dir)
