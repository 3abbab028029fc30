from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from refinery.kernels import clean
from refinery.kernels.clean import (
    _MOJIBAKE,
    MIN_MOJIBAKE_HITS,
    clean_text,
    clean_utf8,
    is_blank,
    is_clean,
    looks_like_mojibake,
    text_hash,
    text_hashes,
)
from refinery.kernels.text import text_views, views_of
from refinery.kernels.white_space import without_blanks_at_line_ends

AWKWARD = st.text(
    st.one_of(
        st.sampled_from(
            list(
                "ab Z\n\r\t\x00\x0b\x1f\x7f\x85\xa0é\u0301\u0327\u200b\u200d\u2028\ufeff\u3000中文漢"
                "\u1100\u1161가Ω\u2126豈😀"
            )
        ),
        st.characters(),
        st.characters(categories=["Mn", "Mc", "Lo"]),
    ),
    max_size=40,
)
WELL_FORMED = AWKWARD.map(lambda t: t.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


def reference_clean(text: str) -> str:
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    for end in ("\r\n", "\r", "\x85", "\u2028", "\u2029"):
        text = text.replace(end, "\n")
    gone = {chr(c) for c in [*range(32), *range(0x7F, 0xA0), 0x200B, 0xFEFF, 0xFFFE, 0xFFFF]} - {"\n", "\t"}
    text = unicodedata.normalize("NFC", "".join(c for c in text if c not in gone))
    return "\n".join(line.rstrip(" \t\xa0\u3000") for line in text.split("\n"))


def reference_hash(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(" ".join(unicodedata.normalize("NFC", text).split()).encode())


@given(AWKWARD)
def test_cleaning_equals_plain_reference_and_is_idempotent(text: str) -> None:
    cleaned = clean_text(text)
    assert cleaned == reference_clean(text)
    assert clean_text(cleaned) == cleaned
    assert is_clean(cleaned)


@given(AWKWARD)
def test_fast_path_never_lets_a_dirty_text_through(text: str) -> None:
    if is_clean(text):
        assert reference_clean(text) == text


def test_every_assigned_letter_alone_and_after_a_base() -> None:
    wrong = [
        c
        for c in map(chr, [*range(0xD800), *range(0xE000, 0x30000, 1)])
        if (is_clean(c) and reference_clean(c) != c)
        or (is_clean("a" + c + "b") and reference_clean("a" + c + "b") != "a" + c + "b")
    ]
    assert wrong == []


def test_known_repairs() -> None:
    assert clean_text("a\r\nb\rc") == "a\nb\nc"
    assert clean_text("\ufeffnul\x00 inside \x07bell  \nend\t") == "nul inside bell\nend"
    assert clean_text("e\u0301") == "é"
    assert clean_text("zero\u200bwidth") == "zerowidth"
    assert clean_text("family 👨\u200d👩") == "family 👨\u200d👩"
    assert clean_text("汉字\u3000\n") == "汉字\n"
    assert clean_text("half \ud83d pair") == "half \ufffd pair"
    assert clean_text("") == ""


def test_a_long_run_of_blanks_costs_linear_time() -> None:
    assert clean_text("\r" + " " * 2_000_000 + "x") == "\n" + " " * 2_000_000 + "x"


def test_newline_runs_are_collapsed_only_on_request() -> None:
    assert clean_text("a\n\n\n\nb") == "a\n\n\n\nb"
    assert clean_text("a\n\n\n\nb", max_newlines=2) == "a\n\nb"


@pytest.mark.parametrize("text", ["naïve café, « déjà » vu", "Größe und Übermaß", "中文。", "plain", "São Tomé’s ação"])
def test_real_accents_are_no_mojibake(text: str) -> None:
    assert not looks_like_mojibake(text * 3)


@pytest.mark.parametrize("text", ["naïve café déjà", "中文字符没有问题", "Größe “quoted” – dash’s"])
def test_mojibake_is_seen_and_repaired_only_where_seen(text: str) -> None:
    broken = text.encode().decode("cp1252", "replace")
    assert looks_like_mojibake(broken)
    assert clean_text(broken, repair=lambda _: text) == text
    assert clean_text(text, repair=lambda _: "never") == text


@given(st.text(st.sampled_from("aé ÂÃâãïð€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ¡¿«»\x80\x9f\xa0\ud83d中’…"), max_size=40))
def test_looking_at_first_letters_alone_misses_no_mojibake(text: str) -> None:
    assert looks_like_mojibake(text) == (len(_MOJIBAKE.findall(text)) >= MIN_MOJIBAKE_HITS)


@given(st.lists(WELL_FORMED.map(reference_clean), max_size=8))
def test_text_hash_equals_reference_one_by_one_and_in_batch(texts: list[str]) -> None:
    expected = [reference_hash(t) for t in texts]
    assert [text_hash(t) for t in texts] == expected
    assert text_hashes(views_of(texts)) == expected


def test_text_hash_ignores_spacing_and_normal_form_only() -> None:
    assert text_hash("a  b\nc ") == text_hash("a b c") == text_hash("\u3000a\xa0b\u2003c")
    assert text_hash("é") == text_hash("e\u0301")
    assert text_hash("A b c") != text_hash("a b c")
    assert text_hash("") == text_hash(" \n") == xxhash.xxh3_128_hexdigest(b"")


def test_text_hashes_of_a_slice_and_of_nulls() -> None:
    array = pa.array(["x y", None, "中 文", "z"], pa.large_string())
    assert text_hashes(text_views(array.slice(1, 2))) == [text_hash(""), text_hash("中 文")]
    assert text_hashes(text_views(array.slice(0, 0))) == []


@given(st.one_of(WELL_FORMED, st.text("aÃ©â€™ \n", max_size=30)), st.booleans())
def test_a_text_and_its_utf8_are_cleaned_alike(text: str, repairs: bool) -> None:
    repair = (lambda given: given.replace("Ã©", "é")) if repairs else None
    cleaned = clean_utf8(text.encode(), repair=repair)
    assert cleaned == clean_utf8(text, repair=repair) == clean_text(text, repair=repair).encode()
    assert is_blank(cleaned) == (not cleaned or cleaned.decode().isspace())


def test_clean_utf8_is_given_back_as_it_is() -> None:
    raw = "Größe 中文 plain\n".encode()
    assert clean_utf8(raw) is raw
    assert clean_utf8(raw + b" ") == raw


# eight bytes are looked at together: every ASCII byte at every place among them, behind a blank and behind a letter
@pytest.mark.parametrize("before", ["", "a", " ", "\t", "é", "\u3000", "1234567 ", "12345678"])
def test_every_ascii_byte_at_every_place(before: str) -> None:
    for code in range(128):
        for place in range(9):
            text = before + "x" * place + chr(code) + "y" * (17 - place)
            assert is_clean(text) == (reference_clean(text) == text), (code, place)
            assert text_hash(text) == reference_hash(text), (code, place)


@given(st.text(" \t\n\r\xa0\u3000a中é", max_size=40))
def test_blanks_at_line_ends(text: str) -> None:
    expected = "\n".join(line.rstrip(" \t\xa0\u3000") for line in text.split("\n"))
    assert without_blanks_at_line_ends(text.encode()).decode() == expected


@given(st.lists(st.text("ab \n\u3000\u00a0é中\x1c", max_size=40), max_size=12), st.integers(1, 60))
def test_hashes_of_a_batch_are_those_of_its_texts(texts: list[str], group_bytes: int) -> None:
    texts = [clean_text(text) for text in texts]
    expected = [text_hash(text) for text in texts]
    assert expected == [
        xxhash.xxh3_128_hexdigest(" ".join(unicodedata.normalize("NFC", text).split()).encode()) for text in texts
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, "_GROUP_BYTES", group_bytes)
        assert text_hashes(views_of(texts)) == expected
