"""Which pieces of text datatrove's English splitter takes for addresses (URLs, hosts, mail) and leaves whole."""

from __future__ import annotations

import numba
import numpy as np

from refinery.kernels.datatrove_chars import DIGIT, HOST, LETTER, LOWER


@numba.njit(cache=True)
def _is_host(codes: np.ndarray, flags: np.ndarray, start: int, end: int) -> bool:
    """Whether the string is a host name (or a routable IPv4 address), with a port and a path or without."""
    stop, dot = start, -1
    while stop < end and (flags[stop] & HOST or codes[stop] == 0x2E or codes[stop] == 0x2D or codes[stop] == 0x5F):
        if codes[stop] == 0x2E:
            dot = stop
        stop += 1
    if dot <= start:
        return False
    rest = stop
    if rest < end and codes[rest] == 0x3A:
        rest += 1
        while rest < end and flags[rest] & DIGIT:
            rest += 1
        if not 2 <= rest - stop - 1 <= 5:
            return False
    if rest < end and codes[rest] != 0x2F and codes[rest] != 0x3F and codes[rest] != 0x23:
        return False
    label = start
    for i in range(start, dot + 1):
        if codes[i] == 0x2E:
            if i == label or i - label > 64 or not flags[label] & HOST or not flags[i - 1] & HOST:
                return False
            label = i + 1
    if not 2 <= stop - dot - 1 <= 63:
        return _is_ipv4(codes, flags, start, stop)
    for i in range(dot + 1, stop):
        if not flags[i] & LOWER:
            return _is_ipv4(codes, flags, start, stop)
    return True


@numba.njit(cache=True)
def _is_ipv4(codes: np.ndarray, flags: np.ndarray, start: int, end: int) -> bool:
    part, parts, first, second = -1, 0, 0, 0
    for i in range(start, end + 1):
        if i == end or codes[i] == 0x2E:
            if not 0 <= part <= 255:
                return False
            first = part if parts == 0 else first
            second = part if parts == 1 else second
            parts, part = parts + 1, -1
        elif flags[i] & DIGIT:
            part = max(part, 0) * 10 + codes[i] - 0x30
        else:
            return False
    private = first == 10 or first == 127 or (first == 169 and second == 254) or (first == 192 and second == 168)  # noqa: PLR1714
    private = private or (first == 172 and 16 <= second <= 31)
    return parts == 4 and 1 <= first <= 223 and not private


@numba.njit(cache=True)
def is_address(codes: np.ndarray, flags: np.ndarray, start: int, end: int) -> bool:
    """Whether the string is a URL, a host name or a mail address, which stay whole."""
    host, has_dot, scheme = start, False, True
    for i in range(start, end):
        has_dot = has_dot or codes[i] == 0x2E
        if scheme and not flags[i] & (LETTER | DIGIT):
            if codes[i] == 0x3A and i + 2 < end and codes[i + 1] == 0x2F and codes[i + 2] == 0x2F and i - start >= 2:
                host = i + 3
            scheme = codes[i] == 0x2B or codes[i] == 0x2D or codes[i] == 0x2E or codes[i] == 0x5F
    if not has_dot:
        return False
    if _is_host(codes, flags, host, end) or (host > start and _is_host(codes, flags, start, end)):
        return True
    for i in range(end - 1, host, -1):  # noqa: SIM110 (a generator is not compiled)
        if codes[i] == 0x40 and _is_host(codes, flags, i + 1, end):
            return True
    return False
