"""datatrove's four MinHash steps, files to files, in one process.

    python datatrove_minhash.py FILE.jsonl FOLDER default|split

`default`: words by its English tokenizer (spaCy); `split`: by white space. Prints CPU seconds per step and the ids of
the documents that it removed.
"""

import gzip
import json
import os
import resource
import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature, minhash
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.typeshelper import Languages


class WhiteSpace:
    """What datatrove asks of a word tokenizer."""

    def word_tokenize(self, text):
        """Return the words of a text."""
        return text.split()


def cpu():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main():
    source, folder, words = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if words == "split":
        minhash.load_word_tokenizer = lambda _: WhiteSpace()
    minhash.load_word_tokenizer(Languages.english).word_tokenize("Loading its models is not measured.")
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64))
    reader = JsonlReader(str(source.parent), glob_pattern=source.name)
    at = {name: str(folder / name) for name in ("signatures", "buckets", "remove", "kept", "removed")}
    signature = MinhashDedupSignature(output_folder=at["signatures"], config=config, language=Languages.english)
    remove = MinhashDedupFilter(at["remove"], exclusion_writer=JsonlWriter(at["removed"]))
    steps = {
        "signatures": (1, [reader, signature]),
        "buckets": (14, [MinhashDedupBuckets(at["signatures"], at["buckets"], config=config)]),
        "cluster": (1, [MinhashDedupCluster(at["buckets"], at["remove"], config=config)]),
        "filter": (1, [reader, remove, JsonlWriter(at["kept"])]),
    }
    seconds = {}
    for name, (tasks, pipeline) in steps.items():
        start = cpu()
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=1, logging_dir=str(folder / "log" / name)).run()
        seconds[name] = round(cpu() - start, 3)
    removed = []
    for path in sorted(Path(at["removed"]).rglob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            removed += [json.loads(line)["id"] for line in lines]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"cpu_s": sum(seconds.values()), "steps": seconds, "peak_rss_bytes": peak, "removed": removed}))


main()
