"""Document dedup from documents table to decisions: CPU, memory and what is found, beside its peers.

    python benchmarks/dedup_documents.py [--bytes N] [--peer-bytes N] [--peers NAME …] [--scales N …] [--out FILE]

Documents come from `planted_duplicates`. CPU seconds are user and system time of this process, the JVM and all Python
workers, from the first part task to the decisions; starting Spark and reading the input into documents stand apart.
A small run before it compiles and warms up. Memory is the largest sum of proportional set sizes. A peer runs alone in
an environment of its own (`peers.py`), on `--peer-bytes` of the same documents, imports and reading of the file left
out.
`--scales 1 2 4` repeats our side on multiples of `--bytes` / the largest, for the exponent.

Bounds (exit 1): 60 times datatrove's CPU with its default words, 10 times with white space, 20 times text-dedup's Spark
script with partitions for one machine, no more than rensa with an index in memory; at most 4 GB; of pairs at Jaccard
0.85 or more 98 % in one cluster, of those at 0.80 or more what the collision curve promises less 2 points; 97 % of the
removals of a perfect run; every removal at 0.8 or more with a kept document; exponent of CPU and memory at most 1.1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from peers import PeerError, run_peer
from planted_duplicates import planted, true_pairs

from refinery.io import parts as part_files
from refinery.kernels.components import components, greedy_keep
from refinery.kernels.jaccard import pair_jaccard
from refinery.kernels.lsh import collision_probability
from refinery.kernels.shingles import shingle_sets
from refinery.kernels.text import views_of
from refinery.recipe import parse_recipe
from refinery.stages import dedup_local
from refinery.stages.pipeline import run_stage
from refinery.stages.workspace import Run

BOUND = 0.8
PEERS = ("rensa", "datasketch", "text-dedup", "datatrove-split", "datatrove")
_TIMES_CPU = {"datatrove": 60.0, "datatrove-split": 10.0, "text-dedup": 20.0, "rensa": 1.0}


class Meter:
    """CPU seconds and peak memory of this process and everything below it."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self.peak = 0

    @staticmethod
    def _processes() -> list[psutil.Process]:
        me = psutil.Process()
        return [me, *me.children(recursive=True)]

    def cpu(self) -> float:
        """Return CPU seconds so far, reaped children included."""
        total = 0.0
        for process in self._processes():
            try:
                total += sum(process.cpu_times()[:4])
            except psutil.Error:
                continue
        return total

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            total = 0
            for process in self._processes():
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)
        self._own = time.thread_time()  # adding up maps of memory is work of this script, not of the stage

    def __enter__(self) -> Meter:
        self.start = self.cpu()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds = self.cpu() - self.start - self._own


def _write(path: Path, rows: list[dict]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({k: r[k] for k in ("id", "text", "lang")}, ensure_ascii=False) + "\n" for r in rows)
    return sum(len(r["text"].encode()) for r in rows)


def _disk(workdir: str) -> dict[str, int]:
    """Return the bytes of every table of the stage."""
    tables = [t for t in Path(workdir, "dedup_documents").iterdir() if t.is_dir()]
    return {t.name: sum(f.stat().st_size for f in t.iterdir()) for t in sorted(tables)}


def shuffle_bytes(session: Any) -> int:
    """Return the bytes that the session has written into shuffles so far."""
    return int(session.sparkContext._jsc.sc().statusStore().executorSummary("driver").totalShuffleWrite())


def _run_ours(folder: Path, rows: list[dict], session: Any) -> tuple[dict[str, Any], Any, Run]:
    num_bytes = _write(folder / "in.jsonl", rows)
    values = {
        "name": "dedup", "workdir": str(folder / "run"), "seed": 1,
        "inputs": [{"source": "s", "domain": "d", "format": "jsonl", "paths": [str(folder / "in.jsonl")]}],
        "ingest": {"part_bytes": 16 * 2**20, "validation_frac": 0.0},
        "dedup_documents": {"jaccard": BOUND, "keep": ["longest"]},
        "spark": {"master": "local[2]"},
    }  # fmt: skip
    run = Run(parse_recipe(values))
    with Meter() as start:
        if session is None:
            session = run.spark
        else:
            run.use_session(session)
    with Meter() as ingest:
        run_stage(run, "ingest")
    wall, shuffled = time.monotonic(), shuffle_bytes(session)
    with Meter() as dedup:
        manifest = run_stage(run, "dedup_documents")
    figures = {
        "bytes": num_bytes,
        "documents": len(rows),
        "session_cpu_s": round(start.seconds, 2),
        "ingest_cpu_s": round(ingest.seconds, 2),
        "cpu_s": round(dedup.seconds, 2),
        "wall_s": round(time.monotonic() - wall, 2),
        "mb_per_cpu_s": round(num_bytes / 1e6 / dedup.seconds, 2),
        "peak_pss_bytes": dedup.peak,
        "candidate_pairs": manifest.volatile["num_candidate_pairs"],
        "part_cpu_s": manifest.volatile["part_seconds"],
        "disk_bytes": _disk(run.workdir),
        "shuffle_bytes": shuffle_bytes(session) - shuffled,
        **{k: manifest.facts[k] for k in ("num_clusters", "largest_cluster", "num_verified_edges")},
    }
    return figures, session, run


def _ours_found(workdir: str) -> tuple[dict[str, str], dict[str, str], list[list[str]]]:
    """Return (key -> text of every document, removed key -> twin's key, clusters)."""
    texts: dict[str, str] = {}
    removed: dict[str, str] = {}
    clusters: dict[str, list[str]] = {}
    for part in part_files.part_numbers(workdir, "ingest", "documents"):
        docs = part_files.read_part(workdir, "ingest", "documents", part, ["doc_id", "doc_key", "text"])
        keys = docs.column("doc_key").to_pylist()
        texts |= dict(zip(keys, docs.column("text").to_pylist(), strict=True))
        made = part_files.read_part(workdir, "dedup_documents", "decisions", part, ["keep", "because_of"]).to_pylist()
        removed |= {k: d["because_of"] for k, d in zip(keys, made, strict=True) if not d["keep"]}
        if part in part_files.part_numbers(workdir, "dedup_documents", "clusters"):
            rows = part_files.read_part(workdir, "dedup_documents", "clusters", part, ["doc_id", "cluster_id"])
            for row in rows.to_pylist():
                clusters.setdefault(row["cluster_id"], []).append(keys[row["doc_id"] & 0xFFFFFFFF])
    return texts, removed, list(clusters.values())


def _pair_recall(labels: dict[Any, int], names: list[Any], pairs: np.ndarray) -> float:
    if not len(pairs):
        return float("nan")
    found = [labels.get(names[a], -1) == labels.get(names[b], -2) for a, b in pairs.tolist()]
    return round(float(np.mean(found)), 4)


def _labels(clusters: list[list[Any]]) -> dict[Any, int]:
    return {name: number for number, cluster in enumerate(clusters) for name in cluster}


def _quality(texts: list[str], names: list[Any], clusters: list[list[Any]], langs: list[str]) -> dict[str, Any]:
    """Return recall of pairs by language and bound, and the share of pairs inside clusters that are near-duplicates."""
    told: dict[str, Any] = {}
    labels = _labels(clusters)
    pairs, jaccard = true_pairs(texts, BOUND)
    for language in ("en", "zh"):
        mine = np.array([langs[a] == language for a in pairs[:, 0]], dtype=bool)
        for low in (0.85, 0.8):
            told[f"recall_{language}_{low}"] = _pair_recall(labels, names, pairs[mine & (jaccard >= low)])
        if mine.any():
            # exact copies are found by other means than the curve
            promised = [collision_probability(j, 14, 8) for j in jaccard[mine].tolist()]
            told[f"promised_{language}_0.8"] = round(float(np.mean(promised)), 4)
        told[f"true_pairs_{language}"] = int(mine.sum())
    place = {name: k for k, name in enumerate(names)}
    inside = np.array([[place[a], place[b]] for c in clusters if len(c) < 400 for k, a in enumerate(c) for b in c[:k]])
    if len(inside):
        sets = shingle_sets(views_of(texts))
        value = pair_jaccard(sets.offsets, sets.hashes, inside[:, 0].copy(), inside[:, 1].copy(), BOUND)
        told["share_of_cluster_pairs_at_0.8"] = round(float((~np.isnan(value)).mean()), 4)
    return told


def _perfect_removals(texts: list[str], names: list[str]) -> int:
    """Return how many documents a run that sees every pair would remove, in our keep order."""
    pairs, jaccard = true_pairs(texts, BOUND)
    order = sorted(range(len(texts)), key=lambda k: (-len(texts[k].encode()), names[k]))
    rank = np.empty(len(texts), dtype=np.int64)
    rank[order] = np.arange(len(texts))
    return int((~greedy_keep(rank, pairs[:, 0], pairs[:, 1], jaccard).keep).sum())


def _judge(workdir: str, langs_by_text: dict[str, str]) -> dict[str, Any]:
    found, removed, clusters = _ours_found(workdir)
    names, texts = list(found), list(found.values())
    told = _quality(texts, names, clusters, [langs_by_text.get(t, "en") for t in texts])
    place = {name: k for k, name in enumerate(names)}
    sets = shingle_sets(views_of(texts))
    gone = [k for k in removed if found[k] != found[removed[k]] and np.diff(sets.offsets)[place[k]]]
    left, right = (np.array([place[x] for x in side], dtype=np.int64) for side in (gone, [removed[k] for k in gone]))
    real = ~np.isnan(pair_jaccard(sets.offsets, sets.hashes, left, right, BOUND))
    kept = [removed[k] not in removed for k in removed]
    perfect = _perfect_removals(texts, names)
    return told | {
        "removed": len(removed),
        "perfect_run_removes": perfect,
        "share_of_perfect": round(len(removed) / perfect, 4) if perfect else None,
        "precision_of_removals": round(float((real.sum() + len(removed) - len(gone)) / max(1, len(removed))), 5),
        "twins_that_are_kept": round(float(np.mean(kept)), 5) if kept else None,
    }


def _peer(name: str, path: Path, rows: list[dict], folder: Path) -> dict[str, Any]:
    num_bytes = sum(len(r["text"].encode()) for r in rows)
    if name not in {"rensa", "datasketch"}:
        if name == "text-dedup":
            result = run_peer("textdedup", "textdedup_spark.py", path, folder / name)["result"]
        else:
            words = "split" if name.endswith("split") else "default"
            result = run_peer("datatrove", "datatrove_minhash.py", path, folder / name, words)["result"]
        told: dict[str, Any] = _judge_removed(rows, set(result.pop("removed")))
    else:
        result = run_peer("minhash", "memory_lsh.py", name, path)["result"]
        clusters = result.pop("clusters")
        told = _quality([r["text"] for r in rows], [r["id"] for r in rows], clusters, [r["lang"] for r in rows])
        told["would_remove"] = sum(len(c) - 1 for c in clusters)
    return {"bytes": num_bytes, **result, "mb_per_cpu_s": round(num_bytes / 1e6 / result["cpu_s"], 3), **told}


def _judge_removed(rows: list[dict], removed: set[str]) -> dict[str, Any]:
    """Judge a peer that says which documents it removed, not over which pairs.

    Found: of each component of true pairs all but one should go. Right: a removed one has a true near-duplicate.
    """
    texts, names = [r["text"] for r in rows], [r["id"] for r in rows]
    pairs, _ = true_pairs(texts, BOUND)
    found = components(pairs[:, 0], pairs[:, 1])
    label = dict(zip(found.nodes.tolist(), found.labels.tolist(), strict=True))
    told: dict[str, Any] = {"removed": len(removed), "perfect_run_removes": _perfect_removals(texts, names)}
    for language in ("en", "zh"):
        mine = [k for k, row in enumerate(rows) if row["lang"] == language]
        size = Counter(label[k] for k in mine if k in label)
        gone = Counter(label.get(k, -1) for k in mine if names[k] in removed)
        due = sum(size.values()) - len(size)
        went = sum(min(gone[c], members - 1) for c, members in size.items())
        told[f"found_of_removals_{language}"] = round(went / due, 4) if due else None
        told[f"removals_with_a_pair_{language}"] = round(1 - gone[-1] / gone.total(), 4) if gone else None
    return told


def _head(rows: list[dict], num_bytes: int) -> list[dict]:
    ends = np.cumsum([len(r["text"].encode()) for r in rows])
    return rows[: int(np.searchsorted(ends, num_bytes)) + 1]


def _exponent(points: list[dict], name: str) -> float:
    sizes = np.log([p["bytes"] for p in points])
    return round(float(np.polyfit(sizes, np.log([p[name] for p in points]), 1)[0]), 3)


def _missed(report: dict[str, Any]) -> list[str]:
    ours, quality, missed = report["ours"], report["quality"], []
    for name, times in _TIMES_CPU.items():
        peer = report["peers"].get(name, {})
        if "mb_per_cpu_s" in peer and ours["mb_per_cpu_s"] < times * peer["mb_per_cpu_s"]:
            missed.append(f"{ours['mb_per_cpu_s']} MB/s, {times} x {name} is {times * peer['mb_per_cpu_s']:.1f}")
    if ours["peak_pss_bytes"] > 4e9:
        missed.append(f"memory {ours['peak_pss_bytes']}")
    for language in ("en", "zh"):
        if quality[f"recall_{language}_0.85"] < 0.98:
            missed.append(f"recall {language} at 0.85: {quality[f'recall_{language}_0.85']}")
        if quality[f"recall_{language}_0.8"] < quality.get(f"promised_{language}_0.8", 0) - 0.02:
            missed.append(f"recall {language} at 0.80: {quality[f'recall_{language}_0.8']}")
    if quality["share_of_perfect"] is not None and quality["share_of_perfect"] < 0.97:
        missed.append(f"removals {quality['share_of_perfect']} of a perfect run's")
    if quality["precision_of_removals"] < 1:
        missed.append(f"precision {quality['precision_of_removals']}")
    missed += [f"exponent of {k} {v}" for k, v in report.get("exponents", {}).items() if v > 1.1]
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=200_000_000)
    parser.add_argument("--peer-bytes", type=int, default=20_000_000)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--scales", nargs="*", type=int, default=[])
    parser.add_argument("--spark", action="store_true", help="the half for graphs beyond one process")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.spark:
        dedup_local.ONE_PROCESS_ROWS = 0
    real, rows = planted(arguments.bytes)
    report: dict[str, Any] = {"benchmark": "dedup_documents", "real": real, "load": os.getloadavg(), "peers": {}}
    report["spark"] = arguments.spark
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        _, session, _ = _run_ours(folder / "warm", _head(rows, 1_000_000), None)
        points = []
        for scale in sorted({*arguments.scales, max(arguments.scales, default=1)}):
            piece = _head(rows, arguments.bytes * scale // max(arguments.scales, default=1))
            figures, _, run = _run_ours(folder / f"scale-{scale}", piece, session)
            points.append(figures)
        report["ours"] = points[-1]
        if len(points) > 1:
            report["scales"] = points
            report["exponents"] = {k: _exponent(points, k) for k in ("cpu_s", "peak_pss_bytes")}
        report["quality"] = _judge(run.workdir, {r["text"].strip(): r["lang"] for r in rows})
        print(json.dumps({k: report[k] for k in ("ours", "quality")}), file=sys.stderr)
        run.stop_session()
        head = _head(rows, arguments.peer_bytes)
        _write(folder / "peer" / "in.jsonl", head)
        for peer in arguments.peers:
            try:
                report["peers"][peer] = _peer(peer, folder / "peer" / "in.jsonl", head, folder)
            except PeerError as error:
                report["peers"][peer] = {"failed": str(error)[-300:]}
            print(peer, json.dumps({k: v for k, v in report["peers"][peer].items() if k != "steps"}), file=sys.stderr)
    report["missed"] = _missed(report)
    text = json.dumps(report, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if report["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
