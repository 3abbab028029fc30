"""Eight bytes at a time equal one byte at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refinery.kernels.char_classes import class_table
from refinery.kernels.text import views_of
from refinery.kernels.wide import ascii_word_run
from refinery.kernels.words import boundary_flags, split_words

NEAR = bytes(sorted({*b"az{`AZ[@09:/", *range(0x7E, 0x83), 0, 0xC1, 0xDA, 0xE1, 0xFA, 0xFF}))
"""Both sides of every bound, and letters with the high bit."""
eights = st.lists(st.one_of(st.sampled_from(NEAR), st.integers(0, 255)), min_size=8, max_size=8).map(bytes)


def run_of(raw: bytes) -> tuple[int, bool, bool, bool]:
    run = 0
    while run < len(raw) and raw[run] < 0x80 and chr(raw[run]).isalnum():
        run += 1
    text = raw[:run].decode("ascii")
    return run, any(map(str.islower, text)), any(map(str.isupper, text)), any(map(str.isdigit, text))


@given(eights, st.integers(0, 3))
def test_run_of_letters_and_digits(raw: bytes, before: int) -> None:
    data = np.frombuffer(b"x" * before + raw, dtype=np.uint8)
    assert ascii_word_run(data, before) == run_of(raw)


def test_every_byte_in_every_place() -> None:
    for place in range(8):
        for byte in range(256):
            raw = b"aB3cD4eF"[:place] + bytes([byte]) + b"Zy9Xw8Vu"[place + 1 :]
            assert ascii_word_run(np.frombuffer(raw, dtype=np.uint8), 0) == run_of(raw), (place, byte)


@given(st.lists(st.text("abcdefgXYZ0189é’' .中", max_size=40), max_size=4))
def test_classes_of_a_word_are_those_of_its_characters(texts: list[str]) -> None:
    views, classes = views_of(texts), class_table()
    for doc, (start, end) in enumerate(zip(views.offsets[:-1], views.offsets[1:], strict=True)):
        room = int(end - start) + 1
        starts, ends, num_chars = (np.empty(room, dtype=np.int32) for _ in range(3))
        kinds = np.empty(room, dtype=np.uint8)
        count, _ = split_words(
            views.data, start, end, classes, boundary_flags(views, None), starts, ends, num_chars, kinds
        )
        raw = texts[doc].encode()
        for word in range(count):
            text = raw[starts[word] : ends[word]].decode()
            union = 0
            for character in text:
                union |= int(classes[ord(character)]) if character not in "'’" else 0
            assert int(kinds[word]) == union & 0xFF, text
