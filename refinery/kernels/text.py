"""Arrow string arrays as (offsets, bytes) pairs: the one way in which kernels see text.

Documents are never Python strings in a hot loop. A batch of D documents is one uint8 array and D + 1 int64 offsets;
document i is ``data[offsets[i]:offsets[i + 1]]`` in UTF-8. One integer width and one writability keep numba at one
compiled specialisation per kernel (read-only int32 and writable int64 would each compile anew, 0.4-1.4 s apiece).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from refinery.errors import SchemaError


class TextViews(NamedTuple):
    """D documents as one buffer; both arrays are read-only."""

    offsets: np.ndarray
    """int64, shape (D + 1,): byte positions into `data`."""
    data: np.ndarray
    """uint8, shape (N,): UTF-8."""

    @property
    def num_docs(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    def doc(self, index: int) -> str:
        """Return one document as a string: for reports, errors and tests, never for a hot loop."""
        return bytes(self.data[self.offsets[index] : self.offsets[index + 1]]).decode("utf-8", "replace")


def text_views(array: pa.Array | pa.ChunkedArray) -> TextViews:
    """Return offsets and bytes of a string array; nulls read as empty documents.

    Zero copy for one chunk of ``large_string``; ``string`` costs one widening of its offsets, several chunks one copy.

    Raises:
        SchemaError: the array is not a string or binary array.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    if pa.types.is_string(array.type) or pa.types.is_binary(array.type):
        width: type = np.int32
    elif pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type):
        width = np.int64
    else:
        raise SchemaError(f"a text column must be string or large_string, not {array.type}; cast it before the kernel")
    if array.null_count:
        array = array.fill_null("" if "string" in str(array.type) else b"")
    count = len(array)
    if count == 0:
        return TextViews(_read_only(np.zeros(1, dtype=np.int64)), _read_only(np.empty(0, dtype=np.uint8)))
    _, offset_buffer, data_buffer = array.buffers()[:3]
    itemsize = np.dtype(width).itemsize
    offsets: np.ndarray = np.frombuffer(offset_buffer, dtype=width, count=count + 1, offset=array.offset * itemsize)
    data = np.empty(0, np.uint8) if data_buffer is None else np.frombuffer(data_buffer, dtype=np.uint8)
    return TextViews(_read_only(offsets.astype(np.int64, copy=False)), _read_only(data))


def views_of(texts: list[str]) -> TextViews:
    """Return text views of Python strings; lone surrogates are replaced (tests, samples, command lines)."""
    return text_views(pa.array([t.encode("utf-8", "replace").decode() for t in texts], type=pa.large_string()))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
