"""Seeded hashes and the randomness that is derived from them.

Randomness in Refinery is a pure function of (seed, stage, document): no stream of random numbers ever crosses rows,
so results do not depend on the number of parts, workers or batches. Integer functions are identical on every machine.

``splitmix64`` is Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), the finaliser of
Java's SplittableRandom. ``hash_bytes`` is a multiply-fold hash over eight-byte words with splitmix64 as its finaliser;
its values are part of formats (fingerprints of shingles, n-grams), so it changes only with a format version.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numba
import numpy as np
import xxhash
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_PRIME = np.uint64(0xD6E8FEB86659FD93)
_S27, _S30, _S31, _S32, _S8 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32), np.uint64(8)
_ONE = np.uint64(1)
_MASK64 = 0xFFFFFFFFFFFFFFFF


@numba.njit(cache=True, inline="always")
def splitmix64(x: np.uint64) -> np.uint64:
    """Mix one uint64 into another: a bijection whose every output bit depends on every input bit."""
    z = np.uint64(x) + _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


def splitmix64_int(x: int) -> int:
    """Plain-integer form of `splitmix64`, for code that must not load numba and as its reference."""
    z = (x + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def splitmix64_array(x: np.ndarray) -> np.ndarray:
    """Vectorised `splitmix64` over a uint64 array of any shape."""
    with np.errstate(over="ignore"):
        z = x.astype(np.uint64) + _GOLDEN
        z = (z ^ (z >> _S30)) * _MIX_1
        z = (z ^ (z >> _S27)) * _MIX_2
        return z ^ (z >> _S31)


@intrinsic
def _load_uint64(_context: Any, data: Any, _index: Any) -> Any:
    """Read ``data[index : index + 8]`` (uint8, contiguous) as one little-endian uint64, for compiled kernels.

    One load instruction, where eight indexed bytes cost a test for a negative index each. Nothing is checked: the
    caller sees to ``0 <= index <= len(data) - 8``.
    """
    if not isinstance(data, types.Array) or data.dtype != types.uint8 or data.layout != "C" or data.ndim != 1:
        raise numba.core.errors.TypingError(f"load_uint64 takes a contiguous uint8 vector, not {data}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = builder.gep(array.data, [args[1]])
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(data, types.intp), codegen


load_uint64: Any = _load_uint64
"""The above, typed for callers: the compiler passes the context."""


@intrinsic
def _store_uint64(_context: Any, data: Any, _index: Any, _value: Any) -> Any:
    """Write one uint64 little-endian to ``data[index : index + 8]``; as `load_uint64`, and nothing is checked."""
    if not isinstance(data, types.Array) or data.dtype != types.uint8 or data.layout != "C" or data.ndim != 1:
        raise numba.core.errors.TypingError(f"store_uint64 takes a contiguous uint8 vector, not {data}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = builder.gep(array.data, [args[1]])
        builder.store(args[2], builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(data, types.intp, types.uint64), codegen


store_uint64: Any = _store_uint64
"""The above, typed for callers."""


@numba.njit(cache=True, inline="always")
def hash_bytes(data: np.ndarray, start: int, end: int, seed: np.uint64) -> np.uint64:
    """Hash ``data[start:end]`` (uint8) to uint64; the length is part of the value."""
    h = (np.uint64(seed) ^ np.uint64(end - start)) * _PRIME
    i = start
    while i + 8 <= end:
        h = (h ^ load_uint64(data, i)) * _PRIME
        h ^= h >> _S32
        i += 8
    word = np.uint64(0)
    if i < end and i + 8 <= len(data):
        word = load_uint64(data, i) & ((_ONE << np.uint64(8 * (end - i))) - _ONE)
    else:
        j = 0
        while i < end:
            word |= np.uint64(data[i]) << np.uint64(8 * j)
            i += 1
            j += 1
    h = (h ^ word) * _PRIME
    return splitmix64(h ^ (h >> _S32))


def hash_bytes_int(data: bytes, seed: int) -> int:
    """Plain-integer form of `hash_bytes`: its reference, and the one to use outside numba."""
    prime = 0xD6E8FEB86659FD93
    h = ((seed ^ len(data)) * prime) & _MASK64
    whole = len(data) // 8 * 8
    for i in range(0, whole, 8):
        h = ((h ^ int.from_bytes(data[i : i + 8], "little")) * prime) & _MASK64
        h ^= h >> 32
    h = ((h ^ int.from_bytes(data[whole:], "little")) * prime) & _MASK64
    return splitmix64_int(h ^ (h >> 32))


def stage_seed(seed: int, stage: str) -> int:
    """Return the uint64 seed of one stage: unrelated stages draw unrelated numbers from one recipe seed."""
    return xxhash.xxh3_64_intdigest(f"{seed}:{stage}".encode())


def keyed_uint64(seed: int, stage: str, keys: np.ndarray) -> np.ndarray:
    """Draw one uint64 per key from (seed, stage, key).

    Args:
        seed: the recipe's seed.
        stage: name of the draw, for example ``"split"``.
        keys: uint64, shape (docs,): the first 64 bits of ``doc_key`` or of ``text_hash``.
    Returns: uint64, shape (docs,).
    """
    return splitmix64_array(splitmix64_array(keys.astype(np.uint64)) ^ np.uint64(stage_seed(seed, stage)))


def keyed_uniform(seed: int, stage: str, keys: np.ndarray) -> np.ndarray:
    """Draw one float64 in (0, 1) per key; the 53 high bits of `keyed_uint64`, offset by half a step (never 0 or 1)."""
    bits = keyed_uint64(seed, stage, keys) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


def hex_key(*fields: str | bytes | int) -> str:
    """Return the 128-bit hex key of a tuple of fields (xxh3-128, length-prefixed so that no two tuples collide)."""
    hasher = xxhash.xxh3_128()
    for field in fields:
        raw = field if isinstance(field, bytes) else str(field).encode()
        hasher.update(len(raw).to_bytes(8, "little"))
        hasher.update(raw)
    return hasher.hexdigest()


def key_prefix_uint64(keys: list[str]) -> np.ndarray:
    """Return the first 64 bits of 128-bit hex keys as uint64, shape (docs,)."""
    if not keys:
        return np.empty(0, dtype=np.uint64)
    raw = bytes.fromhex("".join(key[:16] for key in keys))
    return np.frombuffer(raw, dtype=">u8").astype(np.uint64)


def sha256_hex(data: bytes) -> str:
    """Return the sha256 of bytes as hex."""
    return hashlib.sha256(data).hexdigest()
