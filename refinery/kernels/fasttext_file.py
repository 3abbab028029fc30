"""fastText's model files: open one, and tell a damaged one before the library meets it.

The library reads what is there and checks nothing: a file cut short loads, with zeros or without labels, and scores.
So `check_model_file` walks through the parts that the header promises and compares their end with the file's.
Layout as `FastText::saveModel`, `Dictionary::save`, `DenseMatrix::save` and `QuantMatrix::save` of fastText 0.9.2
write it (little-endian, packed).
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from pathlib import Path
from typing import Any

from refinery.errors import ConfigError, IntegrityError

_MAGIC, _NEWEST_FORMAT = 793712314, 12  # first two int32 of a model file
_ARGUMENTS_BYTES = 12 * 4 + 8
_MAX_ENTRIES = 2**31
_ENTRY_TAIL_BYTES = 8 + 1  # count, type
_CENTROIDS = 256


def fasttext_library() -> Any:
    """Return the ``fasttext`` module after checking that it can train.

    Raises:
        ConfigError: it is missing, or a predict-only package has taken its place.
    """
    remedy = "pip install fasttext (needs a C++ compiler) or fasttext-numpy2-wheel"
    try:
        import fasttext  # noqa: PLC0415 (one optional dependency, named in the error)
    except ImportError as error:
        raise ConfigError(f"fastText is not installed ({error}); {remedy}") from error
    if not hasattr(fasttext, "train_supervised"):
        raise ConfigError(
            f"the module fasttext at {fasttext.__file__} cannot train: fasttext-predict overwrote it; "
            f"uninstall both, then {remedy}"
        )
    return fasttext


def load_model(path: Path, sha256: str | None = None) -> tuple[Any, str]:
    """Load a model file without the Python wrapper (which warns on stderr); return the C++ object and its sha256.

    Raises:
        ConfigError: no such file, or no fastText.
        IntegrityError: not a fastText model, or another file than `sha256` says.
    """
    fasttext_library()
    import fasttext_pybind  # noqa: PLC0415 (part of fasttext)

    if not path.is_file():
        raise ConfigError(f"fastText model {path} does not exist; correct the path")
    found = file_sha256(path)
    if sha256 is not None and found != sha256:
        raise IntegrityError(f"{path} has sha256 {found}, expected {sha256}; copy or train the model again")
    if sha256 is None:
        check_model_file(path)
    model = fasttext_pybind.fasttext()
    try:
        model.loadModel(str(path))
    except (ValueError, RuntimeError, MemoryError) as error:
        raise IntegrityError(f"{path} cannot be loaded ({error}); download or train it again") from error
    return model, found


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_model_file(path: Path) -> None:
    """Check that a model file has the parts that it says it has, to the byte.

    Raises:
        IntegrityError: not a fastText model, or shorter or longer than its parts.
    """
    size = path.stat().st_size
    if size < 8 + _ARGUMENTS_BYTES:
        raise IntegrityError(f"{path} is not a fastText model ({size} bytes); download or train it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = struct.unpack_from("<2i", data, 0)
        if header[0] != _MAGIC or not 0 < header[1] <= _NEWEST_FORMAT:
            raise IntegrityError(
                f"{path} is not a fastText model of format 1..{_NEWEST_FORMAT} (header {list(header)}); "
                "download or train it again"
            )
        try:
            at = _after_dictionary(data, 8 + _ARGUMENTS_BYTES)
            quantised = bool(data[at])
            at = _after_matrix(data, at + 1, quantised)
            end = _after_matrix(data, at + 1, quantised and bool(data[at]))
        except (struct.error, IndexError, ValueError) as error:
            raise IntegrityError(f"{path} is damaged or cut short ({error}); download or train it again") from error
    if end != size:
        raise IntegrityError(f"{path} has {size} bytes, its parts take {end}; download or train it again")


def _after_dictionary(data: mmap.mmap, at: int) -> int:
    entries, words, labels, _tokens, pruned = struct.unpack_from("<3i2q", data, at)
    at += 3 * 4 + 2 * 8
    if not (words >= 0 and labels > 0 and words + labels == entries < _MAX_ENTRIES):
        raise ValueError(f"{entries} dictionary entries of {words} words and {labels} labels")
    for number in range(entries):
        end = data.find(b"\0", at)
        if end < 0:
            raise ValueError(f"the dictionary ends at entry {number} of {entries}")
        at = end + 1 + _ENTRY_TAIL_BYTES
    return at + 8 * max(pruned, 0)


def _after_matrix(data: mmap.mmap, at: int, quantised: bool) -> int:
    if not quantised:
        rows, columns = struct.unpack_from("<2q", data, at)
        return _end(at + 16 + 4 * rows * columns, rows, columns, len(data))
    with_norms = bool(data[at])
    rows, columns, codes = struct.unpack_from("<2qi", data, at + 1)
    at = _end(_after_quantiser(data, at + 21 + codes), rows, columns, len(data))
    return _after_quantiser(data, at + rows) if with_norms else at


def _after_quantiser(data: mmap.mmap, at: int) -> int:
    (columns,) = struct.unpack_from("<i", data, at)
    return at + 4 * 4 + 4 * columns * _CENTROIDS


def _end(end: int, rows: int, columns: int, size: int) -> int:
    if rows < 0 or columns < 0 or end > size:
        raise ValueError(f"a matrix of {rows} x {columns} ends at byte {end}, the file at {size}")
    return end
