"""What the regular-expression engine of `tokenizers` takes for a letter, a number, white space or Han.

Asked of the engine itself, so that our scanner and the library agree whatever Unicode version either was built with.
"""

from __future__ import annotations

import functools

import numpy as np
from tokenizers import Regex, pre_tokenizers

from refinery.kernels.pretoken_scan import HAN, LETTER, NEWLINE, NUMBER, SPACE

_CLASSES = {HAN: r"\p{Han}", LETTER: r"[\p{L}\p{M}]", NUMBER: r"\p{N}", SPACE: r"\s", NEWLINE: r"[\r\n]"}
"""Of our recipes' patterns: Han has runs of its own, marks are letters."""
_PLAIN_CLASSES = {LETTER: r"\p{L}", NUMBER: r"\p{N}", SPACE: r"\s", NEWLINE: r"[\r\n]"}
"""Of GPT-2's pattern and GPT-4's family."""
_SURROGATES = (0xD800, 0xE000)
_SLICE = 1 << 13
_PLANES = ((0, 0x33480), (0xE0000, 0xE0200))
"""Where Unicode has assigned anything but private use: planes 0 to 3 and the tags; elsewhere every class is 0."""


@functools.cache
def char_classes(*, plain: bool = False) -> np.ndarray:
    """Return the class bits of every code point, uint8, shape (0x110000,), read-only.

    Args:
        plain: of patterns that know neither Han nor marks; those of our recipes by default.
    """
    classes = np.zeros(0x110000, dtype=np.uint8)
    codes = np.concatenate([np.arange(*span) for span in _PLANES])
    codes = codes[(codes < _SURROGATES[0]) | (codes >= _SURROGATES[1])]
    for bit, pattern in (_PLAIN_CLASSES if plain else _CLASSES).items():
        # Joined runs: matches and what lies between them in turn, about a thousand pieces instead of 200,000.
        splitter = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "isolated")
        single = pre_tokenizers.Split(Regex(pattern), "removed")
        for first in range(0, len(codes), _SLICE):
            part = codes[first : first + _SLICE]
            text = part.astype("<u4").tobytes().decode("utf-32-le")
            for piece, (start, end) in splitter.pre_tokenize_str(text):
                if not single.pre_tokenize_str(piece[0]):
                    classes[part[start:end]] |= bit
    classes.flags.writeable = False
    return classes
