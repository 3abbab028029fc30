"""Log importance weights and top picks of data-selection 1.0.3, run in its own environment.

    dsir_weights.py IN.json OUT.json

IN: {"target": [text], "pool": [text], "num_buckets", "min_example_length", "num_to_sample"}. OUT gets the same with
"log_weights", "num_tokens" and "picked" (places in the pool, noise off). Prints CPU seconds of the library's own calls
(fit, weigh, resample) and the bytes of the pool.
"""

import json
import resource
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from data_selection import HashedNgramDSIR


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for side in ("target", "pool"):
            rows = [json.dumps({"text": text, "place": k}) + "\n" for k, text in enumerate(given[side])]
            (folder / f"{side}.jsonl").write_text("".join(rows), encoding="utf-8")
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = before.ru_utime + before.ru_stime
        model = HashedNgramDSIR(
            raw_datasets=[str(folder / "pool.jsonl")],
            target_datasets=[str(folder / "target.jsonl")],
            cache_dir=str(folder / "cache"),
            num_proc=1,
            num_buckets=given["num_buckets"],
            min_example_length=given["min_example_length"],
        )
        model.fit_importance_estimator(num_tokens_to_fit="auto")
        model.compute_importance_weights()
        model.resample(str(folder / "out"), given["num_to_sample"], cache_dir=str(folder / "picked"), top_k=True)
        mine, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        seconds = mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime - start
        weights = np.load(folder / "cache" / "log_importance_weights" / "0.npy")
        tokens = np.load(folder / "cache" / "perexample_metadata" / "0.npy")
        files = sorted((folder / "out").rglob("*.jsonl"))
        picked = [json.loads(line)["place"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    result = {
        **given,
        "library": f"data-selection {version('data-selection')}",
        "log_weights": weights.tolist(),
        "num_tokens": [int(t) for t in tokens],
        "picked": sorted(picked),
    }
    Path(sys.argv[2]).write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    sizes = sum(len(text.encode()) for text in given["pool"])
    print(json.dumps({"cpu_s": seconds, "pool_bytes": sizes, "picked": len(picked)}))


if __name__ == "__main__":
    main()
