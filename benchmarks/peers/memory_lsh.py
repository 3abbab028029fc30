"""rensa or datasketch with an LSH index in memory and union-find, as their users put them together.

    python memory_lsh.py rensa|datasketch FILE.jsonl

Prints CPU seconds of everything after the file is read, peak memory, and the clusters: a list of lists of ids.
"""

import json
import re
import resource
import sys
import time
from pathlib import Path

BANDS, ROWS = 14, 8
WORD = re.compile(r"\w+")


def shingles(text):
    words = WORD.findall(text.lower())
    return [" ".join(words[i : i + 5]) for i in range(len(words) - 4)]


def rensa_neighbours(texts):
    from rensa import RMinHash, RMinHashLSH  # noqa: PLC0415

    index = RMinHashLSH(threshold=0.8, num_perm=BANDS * ROWS, num_bands=BANDS)
    for number, text in enumerate(texts):
        words = shingles(text)
        if words:
            sketch = RMinHash(num_perm=BANDS * ROWS, seed=42)
            sketch.update(words)
            for other in index.query(sketch):
                yield number, other
            index.insert(number, sketch)


def datasketch_neighbours(texts):
    import xxhash  # noqa: PLC0415
    from datasketch import MinHash, MinHashLSH  # noqa: PLC0415

    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    for number, text in enumerate(texts):
        words = shingles(text)
        if words:
            sketch = MinHash(num_perm=BANDS * ROWS, hashfunc=xxhash.xxh32_intdigest)
            sketch.update_batch([w.encode() for w in words])
            for other in index.query(sketch):
                yield number, other
            index.insert(number, sketch, check_duplication=False)


def main():
    rows = [json.loads(line) for line in Path(sys.argv[2]).read_bytes().splitlines()]
    texts = [row["text"] for row in rows]
    find = {"rensa": rensa_neighbours, "datasketch": datasketch_neighbours}[sys.argv[1]]
    start = time.process_time()
    parent = list(range(len(texts)))

    def root(x):
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for a, b in find(texts):
        parent[root(a)] = root(b)
    clusters = {}
    for number in range(len(texts)):
        clusters.setdefault(root(number), []).append(number)
    seconds = time.process_time() - start
    found = [[rows[n]["id"] for n in c] for c in clusters.values() if len(c) > 1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"cpu_s": seconds, "peak_rss_bytes": peak, "clusters": found}))


main()
