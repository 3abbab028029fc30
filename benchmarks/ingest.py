"""What reading costs: one large gz file, very many small files, JSON lines, Parquet and WARC, and the memory of it.

    python benchmarks/ingest.py [--gz-mb 1000] [--files 100000] [--speed-mb 60] [--out FILE]

Text is real (the folder REFINERY_SHARED/data) and repeated to the size asked for. Each case runs in its own process,
part task after part task as Spark would run them on one core, and tells CPU seconds and its highest memory; speeds are
the best of three runs; WARC and its library run five times by turns. Bounds:
JSONL.gz and Parquet 50 MB of text per CPU second without masking of personal data and 20 with it, WARC at 80 % of the
speed of the extraction library alone, 1 GB of memory, memory that does not grow from a quarter of the large file to all
of it, and an exponent of at most 1.05 from 1x to 16x. A miss ends with status 1. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refinery.process_memory import peak_resident_bytes
from refinery.recipe import parse_recipe
from refinery.stages.ingest_part import ingest_part

_TEXTS = ("books/en-eltec-novels.jsonl.gz", "docs/en-peps.jsonl.gz", "law/zh-laws.jsonl.gz", "law/de-gesetze.jsonl.gz")
_MB_PER_CPU_S, _MB_PER_CPU_S_MASKED, _OF_LIBRARY, _MEMORY_MB, _EXPONENT = 50.0, 20.0, 0.8, 1000, 1.05


def _texts(data: Path) -> list[str]:
    found = []
    for name in _TEXTS:
        with gzip.open(data / name, "rt", encoding="utf-8") as lines:
            found += [json.loads(line)["text"] for line in lines][:400]
    return found


def _write_jsonl_gz(path: Path, texts: list[str], megabytes: float) -> int:
    """Write about that many megabytes of text; each document begins with its number, so that no two are equal."""
    size, number = 0, 0
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as out:
        while size < megabytes * 1e6:
            text = f"{number} {texts[number % len(texts)]}"
            out.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")
            size, number = size + len(text.encode()), number + 1
    return size


def _one(case: dict[str, Any]) -> dict[str, Any]:
    """Plan and run one ingest in this process, all its part tasks in turn."""
    from refinery.stages.ingest import plan  # noqa: PLC0415 - the child's work

    def planned_task(workdir: str, kind: str, paths: list[str]) -> Any:
        inputs = [{"source": "s", "domain": "web", "format": kind, "paths": paths}]
        values = {"name": "bench", "seed": 1, "workdir": workdir, "ingest": {"pii": case.get("pii", "off")}}
        return plan(parse_recipe(values | {"inputs": inputs}))

    warm = Path(case["workdir"]) / "warm.jsonl"  # what is compiled and imported late
    warm.write_text(json.dumps({"text": "“Ä” mail@host.org 10.0.0.1 13800138000\r\n" * 9}) + "\n", encoding="utf-8")
    ingest_part(planned_task(str(warm.parent / "warm"), "jsonl", [str(warm)]), ["print"], 0)
    if case["format"] == "warc":  # as for the library's own loop
        import fastwarc.warc  # noqa: F401, PLC0415
        import resiliparse.extract.html2text  # noqa: F401, PLC0415
    begin = time.process_time()
    task = planned_task(case["workdir"], case["format"], case["paths"])
    planned = time.process_time() - begin
    prints = ["print"] * len(task.splits)
    carried = sum(len(packed) for _, packed in task.splits)
    docs = size = bad = 0
    for part in task.leaders():
        result = ingest_part(task, prints, part)
        for share in (result, *result["shares"]):
            docs += share["documents"]["rows"]
            bad += sum(share["bad"].values())
            size += sum(row["bytes"] for row in share["counts"] if row["kind"] == "kept")
    cpu = time.process_time() - begin
    peak = peak_resident_bytes() / 1e6
    return {
        "parts": len(task.splits), "tasks": len(task.leaders()), "documents": docs, "bad": bad,
        "text_mb": round(size / 1e6, 1), "cpu_s": round(cpu, 2), "plan_cpu_s": round(planned, 2),
        "plan_mb": round(carried / 1e6, 2), "mb_per_cpu_s": round(size / 1e6 / cpu, 1), "peak_mb": round(peak),
    }  # fmt: skip


def _run(case: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        case = {**case, "workdir": name}
        done = subprocess.run([sys.executable, __file__, "--case", json.dumps(case)], capture_output=True, text=True,
                              check=False)  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return dict(json.loads(done.stdout))


def _best(case: dict[str, Any]) -> dict[str, Any]:
    """Return the fastest of three runs: the same run takes up to half as much again here."""
    runs = [_run(case) for _ in range(3)]
    return {**max(runs, key=lambda run: run["mb_per_cpu_s"]), "peak_mb": max(run["peak_mb"] for run in runs)}


def _library_cpu_s(path: Path) -> float:
    """Return what FastWARC and Resiliparse alone take: read, decode, extract, nothing kept."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType  # noqa: PLC0415
    from resiliparse.extract.html2text import extract_plain_text  # noqa: PLC0415
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding  # noqa: PLC0415

    begin = time.process_time()
    with path.open("rb") as raw:
        for record in ArchiveIterator(raw, record_types=WarcRecordType.response, auto_decode="all"):
            if record.http_content_type in ("text/html", "application/xhtml+xml"):
                page = record.reader.read()
                page_text = bytes_to_str(page, record.http_charset or detect_encoding(page))
                extract_plain_text(page_text, main_content=True, alt_texts=False)
    return time.process_time() - begin


def _beside_library(path: Path) -> dict[str, Any]:
    """Run ours and the library by turns, five times each in processes of their own, and compare what all five took.

    By turns and not by the best: the machine's speed changes by a third within minutes.
    """
    ours, library = [], []
    for _ in range(5):
        ours.append(_run({"format": "warc", "paths": [str(path)]}))
        library.append(_run({"library": str(path)}))
    megabytes = 5 * _page_mb(path)
    speeds = [megabytes / sum(run["cpu_s"] for run in runs) for runs in (ours, library)]
    return min(ours, key=lambda run: run["cpu_s"]) | {
        "html_mb_per_cpu_s": round(speeds[0], 1), "library_html_mb_per_cpu_s": round(speeds[1], 1),
        "of_library": round(speeds[0] / speeds[1], 3), "peak_mb": max(run["peak_mb"] for run in ours),
    }  # fmt: skip


def _page_mb(path: Path) -> float:
    from fastwarc.warc import ArchiveIterator, WarcRecordType  # noqa: PLC0415

    with path.open("rb") as raw:
        records = ArchiveIterator(raw, record_types=WarcRecordType.response, auto_decode="all")
        return sum(len(r.reader.read()) for r in records if "html" in (r.http_content_type or "")) / 1e6


def _speeds(folder: Path, texts: list[str], data: Path, megabytes: float) -> dict[str, Any]:
    path = folder / "speed.jsonl.gz"
    _write_jsonl_gz(path, texts, megabytes)
    rows = [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]  # noqa: SIM115
    pq.write_table(pa.Table.from_pylist(rows), folder / "speed.parquet", row_group_size=1000)
    found: dict[str, Any] = {}
    for name, given in (("jsonl", path), ("parquet", folder / "speed.parquet")):
        for pii in ("off", "mask"):
            found[f"{name}_{pii}"] = _best({"format": name, "paths": [str(given)], "pii": pii})
    warc = data / "web/readability-pages.repacked.warc.gz"
    copies = folder / "pages.warc.gz"
    copies.write_bytes(warc.read_bytes() * 4)
    found["warc"] = _beside_library(copies)
    return found


def _many_files(folder: Path, texts: list[str], count: int) -> dict[str, Any]:
    """Write `count` files of 1 KB in folders of 1,000 and ingest them, and a sixteenth of them."""
    words = " ".join(texts)[: 1 << 22]
    for number in range(count):
        path = folder / f"{number // 1000:04d}" / f"{number % 1000:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number} {words[number * 31 % (1 << 21) :][:1000]}", encoding="utf-8")
    few = [str(folder / f"{k:04d}") for k in range(max(1, count // 16000))]
    small, whole = (_run({"format": "text", "paths": paths}) for paths in (few, [str(folder)]))
    ratio = math.log(whole["documents"] / small["documents"])
    return {"small": small, "whole": whole, "exponent": round(math.log(whole["cpu_s"] / small["cpu_s"]) / ratio, 3)}


def _large_gz(folder: Path, texts: list[str], megabytes: float) -> dict[str, Any]:
    sizes = {"sixteenth": megabytes / 16, "quarter": megabytes / 4, "whole": megabytes}
    found: dict[str, Any] = {}
    for name, size in sizes.items():
        path = folder / f"{name}.jsonl.gz"
        _write_jsonl_gz(path, texts, size)
        found[name] = _run({"format": "jsonl", "paths": [str(path)]}) | {"gz_mb": round(path.stat().st_size / 1e6, 1)}
        path.unlink()
    grown = math.log(found["whole"]["text_mb"] / found["sixteenth"]["text_mb"])
    found["exponent"] = round(math.log(found["whole"]["cpu_s"] / found["sixteenth"]["cpu_s"]) / grown, 3)
    found["memory_growth"] = round(found["whole"]["peak_mb"] / found["quarter"]["peak_mb"], 3)
    return found


def _missed(figures: dict[str, Any]) -> list[str]:
    speeds, gz, many = figures["speeds"], figures["large_gz"], figures["many_files"]
    checks = {
        "jsonl": speeds["jsonl_off"]["mb_per_cpu_s"] >= _MB_PER_CPU_S,
        "parquet": speeds["parquet_off"]["mb_per_cpu_s"] >= _MB_PER_CPU_S,
        "jsonl_masked": speeds["jsonl_mask"]["mb_per_cpu_s"] >= _MB_PER_CPU_S_MASKED,
        "parquet_masked": speeds["parquet_mask"]["mb_per_cpu_s"] >= _MB_PER_CPU_S_MASKED,
        "warc": speeds["warc"]["of_library"] >= _OF_LIBRARY,
        "memory": max(c["peak_mb"] for c in (*speeds.values(), gz["whole"], many["whole"])) <= _MEMORY_MB,
        "memory_flat": gz["memory_growth"] <= 1.1,
        "exponents": max(gz["exponent"], many["exponent"]) <= _EXPONENT,
        "nothing_lost": not any(c["bad"] for c in (gz["whole"], many["whole"])),
    }
    return [name for name, holds in checks.items() if not holds]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gz-mb", type=float, default=1000)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--speed-mb", type=float, default=60)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        case = json.loads(options.case)
        print(json.dumps({"cpu_s": _library_cpu_s(Path(case["library"]))} if "library" in case else _one(case)))
        return 0
    data = Path(os.environ.get("REFINERY_SHARED", "")) / "data"
    if not data.is_dir():
        sys.stderr.write("set REFINERY_SHARED to the folder that holds data/\n")
        return 2
    texts = _texts(data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {
            "speeds": _speeds(folder, texts, data, options.speed_mb),
            "large_gz": _large_gz(folder, texts, options.gz_mb),
            "many_files": _many_files(folder / "many", texts, options.files),
        }
    missed = _missed(figures)
    text = json.dumps(figures | {"missed": missed}, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
