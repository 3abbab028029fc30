"""Examine a vocabulary outside a run: where the text and the references come from."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from refinery.errors import ConfigError
from refinery.io import parts as part_files
from refinery.io.read_labelled import read_fields
from refinery.stages.tokenize import held_out
from refinery.tokenization.encode import open_encoder
from refinery.tokenization.health import health
from refinery.tokenization.info import INFO_FILE, adopt_tokenizer, plain_tokenizer, read_definition, tokenizer_folder

Sample = tuple[str, str, str]
"""Domain, language, text."""


def texts_of_run(workdir: str) -> list[Sample]:
    """Return the held-out sample of a run's stage tokenize."""
    return list(held_out(workdir, part_files.part_numbers(workdir, "tokenize", "sample")))


def texts_of_files(paths: Sequence[str], fields: tuple[str, str, str], max_bytes: int) -> Iterator[Sample]:
    """Yield documents of JSON lines, the first `max_bytes` of each domain and language.

    Args:
        paths: files or patterns.
        fields: names of text, domain and language; a line without the latter two counts as ``all`` and ``und``.
        max_bytes: of UTF-8 per domain and language.

    Raises:
        ConfigError: no path is given, or one matches no file.
        DataError: a line is no JSON object with a text.
    """
    if not paths:
        raise ConfigError("no text to examine the tokenizer on; give --text FILE.jsonl or --run WORKDIR")
    taken: Counter[tuple[str, str]] = Counter()
    for text, domain, lang in read_fields(paths, fields):
        key = (domain or "all", lang or "und")
        if taken[key] < max_bytes:
            taken[key] += len(text.encode())
            yield *key, text


def examine(
    tokenizer: Path, samples: Iterator[Sample] | Sequence[Sample], references: Sequence[Path]
) -> dict[str, Any]:
    """Return the health report of a vocabulary; one without a card gets one in a folder that goes away again.

    Raises:
        ConfigError, IntegrityError: a tokenizer is missing or damaged. DataError: there is no text.
    """
    others = {}
    for path in references:
        folder = tokenizer_folder(path)
        name = folder.name if folder.name not in others else str(folder)
        others[name] = plain_tokenizer(read_definition(folder), str(folder))
    folder = tokenizer_folder(tokenizer)
    if (folder / INFO_FILE).is_file():
        return health(open_encoder(folder), samples, references=others)
    with tempfile.TemporaryDirectory() as temporary:
        adopt_tokenizer(folder, temporary, name=folder.name)
        return health(open_encoder(temporary), samples, references=others)
