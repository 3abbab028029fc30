"""Minima of multiply-shift hashes over a block of shingles: the inner loop of MinHash signatures.

The family is ``h(x) = ((a * x + b) mod 2^64) >> 32`` for a 32-bit x and 64-bit a and b. Two forms of the same minima:

* `lower_minima_wide`, for processors that multiply 64-bit lanes (AVX-512DQ): products of 64 bits, as the formula reads.
* `lower_minima`, for all others. With ``a = a1 * 2^32 + a0`` the upper half of the product is, modulo 2^32::

      h(x) = ((a0 * x + b) >> 32) + a1 * x

  so two products of 32-bit lanes, a 32-bit sum and a 32-bit minimum do. Eight hashes are nine vector instructions:
  two ``vpmuludq`` and two ``vpaddq`` for even and odd lanes, ``vmovshdup`` and ``vpblendd`` to gather the upper halves,
  ``vpmulld``, ``vpaddd``, ``vpminud``; the wide form emulated by AVX2 takes twenty. LLVM's own vectoriser leaves the
  shingles in order, which costs two widenings and a permutation across lanes more, so the vectors are written out here.

Measured on a Zen 3 core at 3.2 GHz (thousand million hashes a second): nine instructions at their throughput allow
11.5; this 9.4, by LLVM's vectoriser 5.1, wide form 4.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

HASHES_PER_PASS = 4
"""Hashes whose minima are lowered in one pass over a block: each load of shingles serves all of them."""
LANES = 8
"""Shingles per step; a block is filled up to a multiple of it with repeats, which leave a minimum as it is."""
WIDE_LANES = 32

_ALL_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_S32 = np.uint64(32)
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_WORDS, _PAIRS = ir.VectorType(_I32, LANES), ir.VectorType(_I64, LANES // 2)


def multiplies_wide_lanes() -> bool:
    """Return whether the processor that numba compiles for multiplies vectors of 64-bit integers."""
    features: str = numba.config.CPU_FEATURES or binding.get_host_cpu_features().flatten()  # type: ignore[attr-defined]
    return "+avx512dq" in features.split(",")


def _lanes(values: Sequence[int], bits: Any) -> Any:
    return ir.Constant(ir.VectorType(bits, len(values)), list(values))


def _spread(builder: Any, value: Any, vector: Any) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), _lanes([0] * vector.count, _I32))


def _smaller(builder: Any, left: Any, right: Any) -> Any:
    return builder.select(builder.icmp_unsigned("<", left, right), left, right)


class _Hash:
    """One hash of the family inside the loop that is being written: its constants and its running minima."""

    def __init__(self, builder: Any, multiplier: Any, offset: Any, place: Any) -> None:
        lower = builder.and_(multiplier, ir.Constant(_I64, 0xFFFFFFFF))
        upper = builder.trunc(builder.lshr(multiplier, ir.Constant(_I64, 32)), _I32)
        self.lower, self.offset = _spread(builder, lower, _PAIRS), _spread(builder, offset, _PAIRS)
        self.upper = _spread(builder, upper, _WORDS)
        self.place = place
        self.minima = cgutils.alloca_once_value(builder, _spread(builder, builder.load(place), _WORDS))

    def lower_by(self, builder: Any, words: Any, even: Any, odd: Any) -> None:
        """Lower the minima by eight shingles, given once as they are and once as 64-bit lanes of every other one."""
        halves = [builder.add(builder.mul(x, self.lower), self.offset) for x in (even, odd)]
        first, second = (builder.bitcast(half, _WORDS) for half in halves)
        # lane 2 i of `words` has its upper half in lane 2 i + 1 of the even product, lane 2 i + 1 of the odd one
        mask = _lanes([lane + 1 if lane % 2 == 0 else lane + LANES for lane in range(LANES)], _I32)
        value = builder.add(builder.shuffle_vector(first, second, mask), builder.mul(words, self.upper))
        builder.store(_smaller(builder, value, builder.load(self.minima)), self.minima)

    def finish(self, builder: Any) -> None:
        """Write the smallest lane."""
        best, width = builder.load(self.minima), LANES
        while width > 1:
            width //= 2
            turned = _lanes([(lane + width) % LANES for lane in range(LANES)], _I32)
            best = _smaller(builder, best, builder.shuffle_vector(best, best, turned))
        builder.store(builder.extract_element(best, ir.Constant(_I32, 0)), self.place)


@intrinsic
def _lower_some(_context: Any, block: Any, count: Any, family: Any, first: Any, minima: Any) -> Any:
    """Lower ``minima[first : first + HASHES_PER_PASS]`` by ``block[:count]``; nothing is checked.

    Args: contiguous arrays `block` (uint32), `family` (uint64, two rows) and `minima` (uint32); `count` a multiple of
    `LANES`.
    """
    arrays = ((block, types.uint32, 1), (family, types.uint64, 2), (minima, types.uint32, 1))
    for array, dtype, ndim in arrays:
        if not isinstance(array, types.Array) or (array.dtype, array.ndim, array.layout) != (dtype, ndim, "C"):
            raise numba.core.errors.TypingError(f"not a contiguous {dtype} array of {ndim} dimensions: {array}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = [context.make_array(signature.args[k])(context, builder, args[k]) for k in (0, 2, 4)]
        num_hashes = cgutils.unpack_tuple(builder, data[1].shape, 2)[1]
        hashes = []
        for k in range(HASHES_PER_PASS):
            column = builder.add(args[3], ir.Constant(_I64, k))
            a = builder.load(builder.gep(data[1].data, [column]))
            b = builder.load(builder.gep(data[1].data, [builder.add(column, num_hashes)]))
            hashes.append(_Hash(builder, a, b, builder.gep(data[2].data, [column])))
        vectors = builder.bitcast(data[0].data, _WORDS.as_pointer())
        with cgutils.for_range(builder, builder.udiv(args[1], ir.Constant(_I64, LANES))) as loop:
            words = builder.load(builder.gep(vectors, [loop.index]), align=4)
            pairs = builder.bitcast(words, _PAIRS)
            even = builder.and_(pairs, _lanes([0xFFFFFFFF] * (LANES // 2), _I64))
            odd = builder.lshr(pairs, _lanes([32] * (LANES // 2), _I64))
            for hash_ in hashes:
                hash_.lower_by(builder, words, even, odd)
        for hash_ in hashes:
            hash_.finish(builder)
        return context.get_dummy_value()

    return types.void(block, types.intp, family, types.intp, minima), codegen


_lower_some_typed: Any = _lower_some
"""The above, typed for callers: the compiler passes the context."""


@numba.njit(cache=True, nogil=True)
def lower_minima(block: np.ndarray, count: int, family: np.ndarray, minima: np.ndarray) -> None:
    """Lower minima by the first `count` shingles of a block, on lanes of 32 bits.

    Args:
        block: uint32, with room for `count` rounded up to a multiple of `WIDE_LANES`; the room is overwritten.
        count: at least 1.
        family: uint64, shape (2, H): a and b; H a multiple of `HASHES_PER_PASS`.
        minima: uint32, shape (H,), lowered in place.
    """
    padded = (count + LANES - 1) // LANES * LANES
    for k in range(count, padded):
        block[k] = block[0]
    for j in range(0, family.shape[1], HASHES_PER_PASS):
        _lower_some_typed(block, padded, family, j, minima)


@numba.njit(cache=True, nogil=True)
def lower_minima_wide(block: np.ndarray, count: int, family: np.ndarray, minima: np.ndarray) -> None:
    """As `lower_minima`, on lanes of 64 bits: ``>> 32`` is monotone, so it is taken of the minimum only."""
    padded = (count + WIDE_LANES - 1) // WIDE_LANES * WIDE_LANES
    for k in range(count, padded):
        block[k] = block[0]
    xs = block[:padded]
    for j in range(family.shape[1]):
        a_j, b_j = family[0, j], family[1, j]
        lowest = _ALL_ONES
        for k in range(padded):
            lowest = min(lowest, a_j * np.uint64(xs[k]) + b_j)
        minima[j] = min(minima[j], np.uint32(lowest >> _S32))
