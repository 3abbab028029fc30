"""rensa's signatures, shingling in Python included.

    python minhash_speed.py FILE.jsonl NUM_HASHES

Prints MB of UTF-8 text per CPU second, the better of two rounds, the file in memory.
"""

import json
import re
import sys
import time
from pathlib import Path

from rensa import RMinHash

WORD = re.compile(r"\w+")


def main():
    texts = [json.loads(line)["text"] for line in Path(sys.argv[1]).read_bytes().splitlines()]
    num_bytes = sum(len(text.encode()) for text in texts)
    best = float("inf")
    for _ in range(2):
        start = time.process_time()
        for text in texts:
            words = WORD.findall(text.lower())
            sketch = RMinHash(num_perm=int(sys.argv[2]), seed=42)
            sketch.update([" ".join(words[i : i + 5]) for i in range(len(words) - 4)])
            sketch.digest()
        best = min(best, time.process_time() - start)
    print(json.dumps({"mb_per_cpu_s": num_bytes / 1e6 / best}))


main()
