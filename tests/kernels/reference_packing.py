"""Plain-Python best-fit decreasing, best-fit with cropping and concatenation: the oracles of `packing`."""

from __future__ import annotations


def best_fit(lengths, ties, L):
    pieces = []
    for d in sorted(range(len(lengths)), key=lambda d: ties[d]):
        pieces += [(d, s, min(L, lengths[d] - s)) for s in range(0, lengths[d], L)]
    rows, rooms, touched = [], [], []
    for clock, (d, s, n) in enumerate(sorted(pieces, key=lambda p: -p[2]), start=1):
        fitting = [r for r in range(len(rows)) if rooms[r] >= n]
        if fitting:
            r = min(fitting, key=lambda r: (rooms[r], -touched[r]))
        else:
            r = len(rows)
            rows.append([])
            rooms.append(L)
            touched.append(0)
        rows[r].append((d, s, n))
        rooms[r] -= n
        touched[r] = clock
    return [sorted(row, key=lambda p: ties[p[0]]) for row in rows]


def best_fit_crop(lengths, ties, L):
    left = [(n, ties[d], d) for d, n in enumerate(lengths) if n]
    rows = []
    while left:
        row, room = [], L
        while room and left:
            fitting = [item for item in left if item[0] <= room]
            if fitting:
                longest = max(item[0] for item in fitting)
                item = min(i for i in fitting if i[0] == longest)
            else:
                item = min(left)
            left.remove(item)
            row.append((item[2], 0, min(room, item[0])))
            room -= min(room, item[0])
        rows.append(sorted(row, key=lambda p: ties[p[0]]))
    return rows


def concat(lengths, ties, L):
    stream = [(d, i) for d in sorted(range(len(lengths)), key=lambda d: ties[d]) for i in range(lengths[d])]
    rows = []
    for begin in range(0, len(stream), L):
        row = []
        for d, i in stream[begin : begin + L]:
            if row and row[-1][0] == d:
                row[-1] = (d, row[-1][1], row[-1][2] + 1)
            else:
                row.append((d, i, 1))
        rows.append(row)
    return rows
