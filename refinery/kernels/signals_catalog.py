"""The list of signals: what exists, in what unit, from which counts, after whom.

A kernel counts integers per document (`Count`); a signal is one count, or one count over another. A ratio with a zero
denominator is 0.0 (an empty document has no repeated lines and no alphabetic words). Ratios are computed in float64
and stored as float32; counts are int32.

`alpha_word_frac` leaves datatrove, which divides by all tokens: our splitter makes a token of every symbol inside
``foo.bar`` or ``PEP-8``, so that denominator would cut technical English (265 of 274 Python PEPs).
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np


class Count(IntEnum):
    """Columns of the kernel's per-document row (float64, exact integers but for ENTROPY)."""

    ONE = 0
    BYTES = 1
    CHARS = 2
    NONSPACE_CHARS = 3
    HAN = 4
    KANA = 5
    HAN_KANA = 6
    LATIN = 7
    DIGITS = 8
    UPPER = 9
    PUNCT = 10
    FULLWIDTH = 11
    ALNUM = 12
    UNIQUE_CHARS = 13
    ENTROPY = 14
    HASHES = 15
    ELLIPSES = 16
    BRACES = 17
    NEWLINES = 18
    CHARS_WITHOUT_NEWLINES = 19
    SENTENCES = 20
    LINES = 21
    NONEMPTY_LINES = 22
    NONBLANK_LINES = 23
    LINE_CHARS = 24
    MAX_LINE_CHARS = 25
    BULLET_LINES = 26
    ELLIPSIS_LINES = 27
    PUNCT_LINES = 28
    C4_END_LINES = 29
    SHORT_LINES = 30
    DUP_LINES = 31
    DUP_LINE_CHARS = 32
    DUP_NONBLANK_LINE_CHARS = 33
    PARAGRAPHS = 34
    DUP_PARAGRAPHS = 35
    DUP_PARAGRAPH_CHARS = 36
    WORDS = 37
    SYMBOLS = 38
    TOKENS = 39
    WORD_CHARS = 40
    ALPHA_WORDS = 41
    STOP_EN = 42
    STOP_ZH = 43
    LOREM_IPSUM = 44
    JAVASCRIPT_LINES = 45
    POLICY_LINES = 46
    NGRAM_2 = 47
    NGRAM_3 = 48
    NGRAM_4 = 49
    NGRAM_5 = 50
    NGRAM_6 = 51
    NGRAM_7 = 52
    NGRAM_8 = 53
    NGRAM_9 = 54
    NGRAM_10 = 55
    COMMENT_CHARS = 56
    TURNS = 57
    TURN_CHARS = 58


class SignalSpec(NamedTuple):
    """One signal."""

    name: str
    dtype: type
    unit: str
    doc: str
    source: str
    numerator: Count
    denominator: Count = Count.ONE


_GOPHER = "2112.11446, table A1"
_FINEWEB = "2406.17557, section 3.6"
_C4 = "1910.10683, section 2.2"
_DATATROVE = "datatrove"
_STARCODER = "2305.06161, section 3"
_ZH = "MAP-NEO 2405.19327 and ChineseWebText 2311.01149"
_OWN = "Refinery"


def _count(name: str, unit: str, doc: str, source: str, numerator: Count) -> SignalSpec:
    return SignalSpec(name, np.int32, unit, doc, source, numerator)


def _ratio(name: str, doc: str, source: str, counts: tuple[Count, Count], unit: str = "fraction") -> SignalSpec:
    return SignalSpec(name, np.float32, unit, doc, source, counts[0], counts[1])


_C = Count

SIGNALS: tuple[SignalSpec, ...] = (
    _count("num_bytes", "bytes", "length in UTF-8", _OWN, _C.BYTES),
    _count("num_chars", "chars", "length in code points", _OWN, _C.CHARS),
    _count("num_words", "words", "words, symbols not counted", _GOPHER, _C.WORDS),
    _count("num_symbols", "tokens", "symbol tokens (runs of one symbol)", _OWN, _C.SYMBOLS),
    _count("num_lines", "lines", "lines; a final newline opens none", _OWN, _C.LINES),
    _count("num_nonblank_lines", "lines", "lines with more than white space", _FINEWEB, _C.NONBLANK_LINES),
    _count("num_paragraphs", "paragraphs", "pieces between two or more line ends", _GOPHER, _C.PARAGRAPHS),
    _count("num_sentences", "sentences", "sentence ends, and an unfinished last sentence", _C4, _C.SENTENCES),
    _ratio("mean_word_length_chars", "characters per word", _GOPHER, (_C.WORD_CHARS, _C.WORDS), "chars"),
    _ratio("hash_to_word_frac", "'#' per token; tokens = words + symbols (datatrove)", _GOPHER, (_C.HASHES, _C.TOKENS)),
    _ratio("ellipsis_to_word_frac", "'...' and '…' per token", _GOPHER, (_C.ELLIPSES, _C.TOKENS)),
    _ratio("bullet_line_frac", "lines that start with • or -, of all lines", _GOPHER, (_C.BULLET_LINES, _C.LINES)),
    _ratio("ellipsis_line_frac", "lines that end with ... or …, of all lines", _GOPHER, (_C.ELLIPSIS_LINES, _C.LINES)),
    _ratio("alpha_word_frac", "words with a letter, of words", _GOPHER, (_C.ALPHA_WORDS, _C.WORDS)),
    _count("num_stop_words_en", "words", "distinct of the, be, to, of, and, that, have, with", _GOPHER, _C.STOP_EN),
    _count("num_stop_words_zh", "words", "distinct of FineWeb-2's Chinese list", "FineWeb-2 cmn_Hani.yml", _C.STOP_ZH),
    _ratio("dup_line_frac", "copies after the first, of non-empty lines", _GOPHER, (_C.DUP_LINES, _C.NONEMPTY_LINES)),
    _ratio("dup_line_char_frac", "their characters, of all characters", _GOPHER, (_C.DUP_LINE_CHARS, _C.CHARS)),
    _ratio("dup_paragraph_frac", "copies after the first, of paragraphs", _GOPHER, (_C.DUP_PARAGRAPHS, _C.PARAGRAPHS)),
    _ratio("dup_paragraph_char_frac", "their characters, of all", _GOPHER, (_C.DUP_PARAGRAPH_CHARS, _C.CHARS)),
    *(
        _ratio(
            f"top_{n}gram_char_frac",
            f"characters of the most frequent word {n}-gram, of all",
            _GOPHER,
            (Count[f"NGRAM_{n}"], _C.CHARS),
        )
        for n in (2, 3, 4)
    ),
    *(
        _ratio(
            f"dup_{n}gram_char_frac",
            f"characters of repeated word {n}-grams, of all",
            _GOPHER,
            (Count[f"NGRAM_{n}"], _C.CHARS),
        )
        for n in (5, 6, 7, 8, 9, 10)
    ),
    _ratio("line_punct_frac", "non-blank lines whose last character is terminal punctuation of any script; the line is "
           "not stripped", _FINEWEB, (_C.PUNCT_LINES, _C.NONBLANK_LINES)),
    _ratio("short_line_frac", "non-blank lines of <= 30 characters", _FINEWEB, (_C.SHORT_LINES, _C.NONBLANK_LINES)),
    _ratio("dup_nonblank_line_char_frac", "characters of repeated non-blank lines, of all but newlines", _FINEWEB,
           (_C.DUP_NONBLANK_LINE_CHARS, _C.CHARS_WITHOUT_NEWLINES)),
    _ratio("newline_to_word_frac", "newlines per token", _DATATROVE, (_C.NEWLINES, _C.TOKENS)),
    _count("num_braces", "chars", "'{'", _C4, _C.BRACES),
    _count("num_lorem_ipsum", "occurrences", "'lorem ipsum', any ASCII case", _C4, _C.LOREM_IPSUM),
    _count("num_javascript_lines", "lines", "lines with 'javascript', any ASCII case", _C4, _C.JAVASCRIPT_LINES),
    _count("num_policy_lines", "lines", "lines with a policy phrase (terms of use, privacy policy, cookie policy, uses "
           "cookies, use of cookies, use cookies)", _C4, _C.POLICY_LINES),
    _ratio("c4_end_line_frac", "non-blank lines that end, stripped, in . ? ! \" ' and not in ...", _C4,
           (_C.C4_END_LINES, _C.NONBLANK_LINES)),
    _ratio("han_kana_frac", "Han and kana, of characters that are not white space", _OWN,
           (_C.HAN_KANA, _C.NONSPACE_CHARS)),
    _ratio("han_frac", "Han, of non-space characters", _ZH, (_C.HAN, _C.NONSPACE_CHARS)),
    _ratio("kana_frac", "kana, of non-space characters", _OWN, (_C.KANA, _C.NONSPACE_CHARS)),
    _ratio("latin_frac", "Latin letters, of non-space characters", _OWN, (_C.LATIN, _C.NONSPACE_CHARS)),
    _ratio("digit_frac", "decimal digits, of non-space characters", _ZH, (_C.DIGITS, _C.NONSPACE_CHARS)),
    _ratio("upper_frac", "upper-case letters, of non-space characters", "2306.01116", (_C.UPPER, _C.NONSPACE_CHARS)),
    _ratio("punct_frac", "punctuation and symbols, of non-space characters", _ZH, (_C.PUNCT, _C.NONSPACE_CHARS)),
    _ratio("fullwidth_punct_frac", "full-width punctuation, of non-space characters", _ZH,
           (_C.FULLWIDTH, _C.NONSPACE_CHARS)),
    _ratio("unique_char_frac", "distinct characters, of all characters", _ZH, (_C.UNIQUE_CHARS, _C.CHARS)),
    _ratio("char_entropy_nats", "entropy of the distribution of characters", _ZH, (_C.ENTROPY, _C.ONE), "nats"),
    _ratio("alnum_frac", "letters and numbers, of all characters", _STARCODER, (_C.ALNUM, _C.CHARS)),
    _ratio("mean_line_length_chars", "characters per line", _STARCODER, (_C.LINE_CHARS, _C.LINES), "chars"),
    _count("max_line_length_chars", "chars", "longest line", _STARCODER, _C.MAX_LINE_CHARS),
    _ratio("comment_char_frac", "characters of comment lines (kernels/signals_marks.py), of all in lines", _STARCODER,
           (_C.COMMENT_CHARS, _C.LINE_CHARS)),
    _count("num_turns", "turns", "lines that begin with a speaker and a colon", _OWN, _C.TURNS),
    _ratio("mean_turn_length_chars", "characters per turn: non-blank lines from the first turn on, with speakers", _OWN,
           (_C.TURN_CHARS, _C.TURNS), "chars"),
)  # fmt: skip
