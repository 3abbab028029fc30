from __future__ import annotations

import gzip
import itertools
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from reference_segmentation import cut, parse

from refinery.errors import ConfigError, DataError, SchemaError
from refinery.kernels import segmentation_dictionary
from refinery.kernels.boundaries import cut_boundaries, pack_boundaries, unpack_boundaries
from refinery.kernels.segmentation import segment, segment_han
from refinery.kernels.segmentation_dictionary import Dictionary, build_dictionary, dictionary_identity, load_dictionary
from refinery.kernels.text import TextViews, text_views, views_of
from refinery.kernels.words import word_spans

SHARED = Path(os.environ.get("REFINERY_SHARED", "../shared")) / "data"
CHINESE = (
    "books/zh-classic-novels.jsonl.gz", "dialogue/zh-crosswoz.jsonl.gz", "docs/zh-oi-wiki.jsonl.gz",
    "docs/zh-rust-book.jsonl.gz", "docs/zh-tidb-docs.parquet", "encyclopaedia/zh-wikipedia-paragraphs.jsonl.gz",
    "html/debian-reference-zh-cn.jsonl.gz", "law/zh-laws.jsonl.gz", "evals/cmrc2018_dev.json.gz",
)  # fmt: skip

# words of one, two and three characters with equal weights on purpose: 甲乙 and 甲 + 乙 tie, prefixes that are no
# word (丙丁戊己), a word that stands twice, one of count 0, letters inside words, a character outside blocks
SMALL = """甲 4 n
乙 4 n
丙 2
甲乙 1 n
乙丙 3 n
丙丁戊己 8 n
丁 0 n
甲乙丙 2 n
乙丙 5 n
T恤 3 n
c++ 7 n
AA制 3 n
甲γ乙 3 n
"""


@cache
def _jieba() -> Any:
    jieba = pytest.importorskip("jieba")
    jieba.setLogLevel(60)
    tokenizer = jieba.Tokenizer()
    with Path(jieba.__file__).with_name("dict.txt").open("rb") as file:
        tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(file)  # no cache file is written or read
    tokenizer.initialized = True
    return tokenizer


def tokens_of(views: TextViews, boundaries: np.ndarray) -> list[list[str]]:
    out = []
    for begin, end in zip(views.offsets.tolist(), views.offsets[1:].tolist(), strict=False):
        starts = (begin + np.flatnonzero(boundaries[begin:end])).tolist()
        assert not starts or starts[0] == begin
        out.append([bytes(views.data[a:b]).decode() for a, b in itertools.pairwise([*starts, end])])
    return out


def tokens(texts: list[str], dictionary: Dictionary | None = None) -> list[list[str]]:
    views = views_of(texts)
    return tokens_of(views, segment(views, dictionary).boundaries)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我们在北京大学学习。", ["我们", "在", "北京大学", "学习", "。"]),
        ("买了iPhone15和T恤衫，AT&T的C++", ["买", "了", "iPhone15", "和", "T恤衫", "，", "AT&T", "的", "C++"]),
        ("一行\r\n二\n\r三\t \r\n", ["一行", "\r\n", "二", "\n", "\r", "三", "\t", " ", "\r\n"]),
        ("龦𠀀〇々カタ", ["龦", "𠀀", "〇", "々", "カ", "タ"]),
        ("a-b 3.5% #x", ["a", "-", "b", " ", "3", ".", "5", "%", " ", "#", "x"]),
        ("", []),
    ],
)
def test_examples(text: str, words: list[str]) -> None:
    assert tokens([text]) == [words] == [list(_jieba().cut(text, HMM=False))]


_COMMON = (
    "的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会家可下而过天去能对小多然于心学么之都好看起发当没成只如事把"
    "还用第样道想作种开美总从无情己面最女但现前些所同日手又行意动方期它头经长儿回位分爱老因很给名法间斯知世什两次使身者被高已亲其进此话常与活正感"
)
_MIXED = st.text(
    st.one_of(st.sampled_from(_COMMON), st.sampled_from("abcXYZ019+#&._%- \r\n\t，。γTUBPＡ龥龦々カ한é\u0301"),
              st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), st.characters(codec="utf-8")),
    max_size=60,
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(_MIXED, max_size=4))
def test_equals_jieba_on_any_text(texts: list[str]) -> None:
    assert tokens(texts) == [list(_jieba().cut(text, HMM=False)) for text in texts]


@settings(max_examples=100)
@given(st.lists(st.integers(0, 349_000), min_size=1, max_size=12), st.integers(0, 3))
def test_equals_jieba_on_runs_of_dictionary_words(picks: list[int], drop: int) -> None:
    words = list(_words())
    text = "".join(words[p % len(words)][: drop or None] for p in picks)
    assert tokens([text]) == [list(_jieba().cut(text, HMM=False))]


@cache
def _words() -> tuple[str, ...]:
    return tuple(word for word, count in _jieba().FREQ.items() if count)


@given(st.lists(st.text("甲乙丙丁戊己T恤c+A制γ x1\r\n", max_size=25), max_size=4))
def test_equals_plain_python_on_a_list_with_ties(texts: list[str]) -> None:
    counts, total = parse(SMALL)
    assert tokens(texts, build_dictionary(SMALL.encode())) == [cut(text, counts, total) for text in texts]


def test_every_word_of_the_list_has_its_weight() -> None:
    counts, total = parse(SMALL)
    built = build_dictionary(SMALL.encode())
    assert built.unknown == -np.log(total)
    for word, weight in _weights(built, [w for w in counts if "γ" not in w]).items():
        assert weight == (np.log(counts[word]) - np.log(total) if counts[word] else 1.0), word


def _weights(dictionary: Dictionary, words: list[str]) -> dict[str, float]:
    found = {}
    for word in words:
        numbers = [int(dictionary.ids[ord(c) if ord(c) < 0x80 else ord(c) - 0x4D80]) for c in word]
        node = numbers[0]
        for number in numbers[1:]:
            child = int(dictionary.links[4 * node + 1]) + number
            assert dictionary.links[4 * child] == node
            node = child
        found[word] = float(dictionary.weights[2 * node + 1])
    return found


def test_the_dictionary_is_built_once_and_cannot_be_changed() -> None:
    first = load_dictionary()
    assert load_dictionary() is first
    assert not any(array.flags.writeable for array in (first.ids, first.links, first.weights))
    assert len(dictionary_identity()) == 32


@pytest.mark.parametrize("line", ["甲", "甲 x", " 3", "甲 3x n", "", "甲 "])
def test_a_damaged_list_is_refused(line: str) -> None:
    with pytest.raises(DataError, match="line 2 "):
        build_dictionary(f"乙 3 n\n{line}\n丙 2 n".encode())


def test_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_dictionary.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install jieba"):
        segmentation_dictionary.dictionary_identity.__wrapped__()


def test_documents_do_not_touch_each_other() -> None:
    whole = "北京大学的学生来到中华人民共和国"
    pieces = [whole[:2], whole[2:4], "", whole[4:]]
    views = views_of(pieces)
    together = tokens_of(views, segment(views).boundaries)
    assert together == [tokens([piece])[0] for piece in pieces]
    sliced = text_views(pa.array(["x前缀", *pieces], pa.large_string())[1:])
    assert tokens_of(sliced, segment(sliced).boundaries) == together


def test_only_documents_with_han_are_segmented() -> None:
    texts = ["plain text", "カタカナ㐀𠀀", "学习 text", "\u9fff"]
    views = views_of(texts)
    found = segment_han(views)
    assert found.has_han.tolist() == [False, False, True, False]
    assert found.boundaries[: views.offsets[2]].all()
    segmented = TextViews(views.offsets[2:4], views.data)
    assert tokens_of(segmented, found.boundaries) == [["学习", " ", "text"]]


def test_text_without_han_needs_no_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refinery.kernels.segmentation.load_dictionary", lambda: pytest.fail("loaded"))
    assert segment_han(views_of(["plain", "", "カタカナ㐀"])).boundaries.all()


def test_words_of_signals_follow_the_segmentation() -> None:
    text = "我们在北京大学学习Python语言。"
    views = views_of([text])
    spans = word_spans(views, segment(views).boundaries)
    data = views.data.tobytes()
    assert [data[a:b].decode() for a, b in zip(spans.starts, spans.ends, strict=True)] == [
        "我们", "在", "北京大学", "学习", "Python", "语言",
    ]  # fmt: skip


@given(st.lists(st.tuples(_MIXED, st.booleans()), max_size=6))
def test_packing_is_packbits_and_comes_back(rows: list[tuple[str, bool]]) -> None:
    views = views_of([text for text, _ in rows])
    flags = segment(views).boundaries
    present = np.array([kept for _, kept in rows], dtype=bool)
    packed = pack_boundaries(views, flags, present)
    assert packed.type == pa.large_binary()
    spans = list(zip(views.offsets.tolist(), views.offsets[1:].tolist(), strict=False))
    assert packed.to_pylist() == [
        np.packbits(flags[a:b]).tobytes() if kept else None for (a, b), kept in zip(spans, present, strict=True)
    ]
    want = flags.copy()
    for (a, b), kept in zip(spans, present, strict=True):
        want[a:b] |= not kept
    assert (unpack_boundaries(views, packed) == want).all()
    assert (unpack_boundaries(views, pa.chunked_array([packed[:2], packed[2:]])) == want).all()


def test_bitmaps_of_another_text_are_refused() -> None:
    views = views_of(["中文字", "x"])
    packed = pack_boundaries(views, segment(views).boundaries)
    with pytest.raises(SchemaError, match="another text"):
        unpack_boundaries(views, packed[:1])
    with pytest.raises(SchemaError, match="another text"):
        unpack_boundaries(views_of(["中文", "x"]), packed)
    with pytest.raises(SchemaError, match="shape"):
        pack_boundaries(views, np.zeros(3, np.uint8))


def test_a_word_starts_after_a_cut() -> None:
    views = views_of(["北京大学学习"])
    flags = segment(views).boundaries
    keep = np.ones(len(flags), dtype=bool)
    keep[3:9] = False  # 京大
    left = cut_boundaries(flags, keep)
    assert np.flatnonzero(left).tolist() == [0, 3, 6]  # 北 | 学 | 学习


@pytest.mark.slow
@pytest.mark.parametrize("name", CHINESE)
def test_equals_jieba_on_real_chinese(name: str) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    texts = _texts(path)
    found = tokens(texts)
    for words, text in zip(found, texts, strict=True):
        assert words == list(_jieba().cut(text, HMM=False))


def _texts(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path, columns=["text"]).column("text").to_pylist()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        if path.name.endswith(".json.gz"):
            return [json.dumps(json.load(lines), ensure_ascii=False)]
        return [json.loads(line)["text"] for line in lines]
