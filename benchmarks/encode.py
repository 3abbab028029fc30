"""Encoding speed of our kernel, `kitoken`, `tokenizers` and `tiktoken` on one vocabulary, ids compared by document.

    python benchmarks/encode.py [--tokenizer DIR] [--train-bytes N] [--encode-bytes N] [--compare-bytes N]
                                [--run WORKDIR] [--out FILE]

Text comes from the folder in REFINERY_SHARED (``*.jsonl.gz`` with a ``text`` field); without it, from the sources of
Python's standard library, which is code only and says so. Speeds are UTF-8 bytes per CPU second of the whole process;
all run on one thread. Training and encoding use different documents, by hash. `tiktoken` runs in an environment of its
own (benchmarks/peers.py) on the same documents and vocabulary, by ids too. With `--run`, the folder of a run that has
tokenised, its part tasks' CPU is compared with the encoder's on text of the same run. Bounds, exit 1 when missed: no
different ids, time grows by at most the power 1.05 of the text from 1 to 16 times and of one without a space from 1 to
16 MB, at most 500 MB at the peak, in the stage at least 70 % of the encoder's speed, and, where our kernel runs, at
least twice kitoken's speed on the mix and no less on Chinese. `cold` is an empty cache, the time that counts; `warm`
the same text again. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import logging
import math
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import kitoken  # thread settings must come before the libraries read them
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tokenizers
from peers import PeerError, run_measured, run_peer

from refinery.hashing import hex_key
from refinery.kernels.text import text_views, views_of
from refinery.recipe import parse_recipe
from refinery.stages.ingest import plan
from refinery.stages.ingest_part import ingest_part
from refinery.tokenization.encode import Encoder, open_encoder
from refinery.tokenization.info import plain_tokenizer, read_definition, tokenizer_folder
from refinery.tokenization.recipe import TokenizerRecipe
from refinery.tokenization.train import train_bpe

_MOST_EXPONENT, _MOST_MB, _LEAST_STAGE, _LEAST_RATIO = 1.05, 500, 0.7, 2.0
_GROUPS = {
    "zh": ("law/zh", "docs/zh", "books/zh", "encyclopaedia/zh"),
    "en": ("books/en", "docs/en"),
    "code": ("code/",),
}


def _shared_texts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.jsonl.gz")):
        where = path.relative_to(folder).as_posix()
        group = next((name for name, starts in _GROUPS.items() if where.startswith(starts)), "other")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line).get("text")
                if text:
                    yield group, text


def _library_texts() -> Iterator[tuple[str, str]]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in path.parts:
            yield "code", path.read_text(encoding="utf-8", errors="replace")


def _documents() -> tuple[str, list[tuple[str, str]]]:
    shared = os.environ.get("REFINERY_SHARED")
    if shared and Path(shared, "data").is_dir():
        texts, name = _shared_texts(Path(shared, "data")), "shared data"
    elif shared and Path(shared).is_dir():
        texts, name = _shared_texts(Path(shared)), "shared data"
    else:
        texts, name = _library_texts(), "Python standard library (code only)"
    # By hash: a prefix of this order is a fair mix, whatever the order of files.
    return name, sorted(texts, key=lambda pair: hex_key(pair[1]))


def _take(documents: list[tuple[str, str]], num_bytes: int, group: str | None = None) -> list[str]:
    taken, total = [], 0
    for name, text in documents:
        if group in (None, name):
            size = len(text.encode("utf-8", "replace"))
            if total + size > num_bytes and taken:
                break
            taken.append(text)
            total += size
    return taken


def _tiktoken(encoder: Encoder, texts: list[str], expected: str) -> dict[str, object]:
    """Return tiktoken's speed and whether its ids are ours; the reason instead where it cannot run."""
    split = json.loads(read_definition(encoder.folder))["pre_tokenizer"]["pretokenizers"][0]
    with tempfile.TemporaryDirectory() as temporary:
        pattern, documents = Path(temporary, "pattern"), Path(temporary, "texts.jsonl")
        pattern.write_text(split["pattern"]["Regex"], encoding="utf-8")
        documents.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
        try:
            ran = run_peer("encoders", "encode_tiktoken.py", encoder.folder / "tokenizer.json", pattern, documents)
        except PeerError as error:
            return {"tiktoken_mb_per_cpu_second": None, "tiktoken_missing": str(error)[-200:]}
    num_bytes = sum(len(text.encode()) for text in texts)
    return {
        "tiktoken_mb_per_cpu_second": round(num_bytes / 1e6 / ran["result"]["cpu_s"], 2),
        "tiktoken_ids_equal": ran["result"]["ids_sha256"] == expected,
    }


def _ids_hash(encoder: Encoder, texts: list[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(encoder.encode_text(text).tolist()).encode())
    return digest.hexdigest()


def _exponent(encoder: Encoder, texts: list[str]) -> float:
    """Return the power of the text's size by which time grows, from 1 to 16 times the same documents."""
    views = views_of(texts)
    sizes, seconds = [], []
    for times in (1, 2, 4, 8, 16):
        started = time.process_time()
        for _ in range(times):
            encoder.encode_batch(views)
        sizes.append(math.log(times))
        seconds.append(math.log(time.process_time() - started))
    mean = sum(sizes) / len(sizes)
    middle = sum(seconds) / len(seconds)
    above = sum((x - mean) * (y - middle) for x, y in zip(sizes, seconds, strict=True))
    return round(above / sum((x - mean) ** 2 for x in sizes), 3)


def _through_the_stage(run: Path) -> dict[str, object]:
    """Return the speed of a run's part tasks, reading and writing included, beside the bare encoder's on its sample."""
    manifest = json.loads((run / "tokenize" / "_stage.json").read_text(encoding="utf-8"))
    kept = sum(row["bytes"] for row in manifest["counts"] if row["kind"] == "kept")
    encoder = open_encoder(run / "tokenize" / "tokenizer")
    tables = [pq.read_table(path, columns=["text"]) for path in sorted((run / "tokenize" / "sample").glob("*.parquet"))]
    column = pa.concat_tables(tables).column("text")
    started = time.process_time()
    encoder.encode_batch(text_views(column))
    bare = pc.sum(pc.binary_length(column)).as_py() / 1e6 / (time.process_time() - started)
    staged = kept / 1e6 / manifest["volatile"]["part_seconds"]
    return {
        "stage_mb_per_cpu_second": round(staged, 2),
        "encoder_mb_per_cpu_second": round(bare, 2),
        "stage_of_the_encoder": round(staged / bare, 3),
    }


def _reopened(encoder: Encoder) -> Encoder:
    """Return the same vocabulary with nothing cached."""
    definition = read_definition(encoder.folder)
    return Encoder(encoder.folder, encoder.info, plain_tokenizer(definition, "benchmark"), definition)


def _without_a_space(encoder: Encoder) -> dict[str, object]:
    """Return the speed on 1 to 16 MB of letters without a break, one pretoken, and the power by which time grows."""
    keys = "".join(hex_key(str(number)) for number in range(1 << 19))
    letters = keys.translate(str.maketrans("0123456789", "ghijklmnop"))
    sizes, seconds = [], []
    for megabytes in (1, 4, 16):
        views = views_of([letters[: megabytes << 20]])
        started = time.process_time()
        encoder.encode_batch(views)
        seconds.append(time.process_time() - started)
        sizes.append(megabytes)
    slope = (math.log(seconds[-1]) - math.log(seconds[0])) / math.log(sizes[-1] / sizes[0])
    speeds = {f"{size}_mb": round((size << 20) / 1e6 / spent, 2) for size, spent in zip(sizes, seconds, strict=True)}
    return {"mb_per_cpu_second": speeds, "exponent": round(slope, 3)}


def _speeds(encoder: Encoder, texts: list[str]) -> dict[str, object]:
    views = views_of(texts)
    num_bytes = int(views.offsets[-1])
    library = plain_tokenizer(read_definition(encoder.folder), "benchmark")
    plain = [views.doc(index) for index in range(views.num_docs)]
    started = time.process_time()
    for start in range(0, len(plain), 64):
        for encoding in library.encode_batch_fast(plain[start : start + 64], add_special_tokens=False):
            len(encoding.ids)
    library_seconds = time.process_time() - started
    engine = kitoken.Kitoken.from_tokenizers(_definition_without_special(encoder))
    started = time.process_time()
    for text in plain:
        engine.encode(text)
    kitoken_seconds = time.process_time() - started
    ours = _reopened(encoder)
    started = time.process_time()
    batch = ours.encode_batch(views)
    ours_seconds = time.process_time() - started
    started = time.process_time()
    ours.encode_batch(views)
    warm_seconds = time.process_time() - started
    started = time.process_time()
    for index in range(views.num_docs):
        views.doc(index)
    decode_seconds = time.process_time() - started
    return {
        "num_bytes": num_bytes,
        "num_docs": views.num_docs,
        "bytes_per_token": round(num_bytes / max(1, len(batch.ids) - views.num_docs), 3),
        "tokenizers_encode_batch_fast_mb_per_cpu_second": round(num_bytes / 1e6 / library_seconds, 2),
        "kitoken_bare_mb_per_cpu_second": round(num_bytes / 1e6 / kitoken_seconds, 2),
        "encode_batch_cold_mb_per_cpu_second": round(num_bytes / 1e6 / ours_seconds, 2),
        "encode_batch_warm_mb_per_cpu_second": round(num_bytes / 1e6 / warm_seconds, 2),
        "ratio_to_kitoken": round(kitoken_seconds / ours_seconds, 2),
        "utf8_decode_frac_of_encode_batch": round(decode_seconds / ours_seconds, 4),
        "ratio_to_tokenizers": round(library_seconds / ours_seconds, 2),
        **_tiktoken(encoder, plain, _ids_hash(encoder, plain)),
    }


def _definition_without_special(encoder: Encoder) -> bytes:
    parsed = json.loads(read_definition(encoder.folder))
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if not token["special"]]
    return json.dumps(parsed).encode()


_PART_TASK = """
import sys
from refinery.hashing import hex_key
from refinery.stages.tokenize import TokenizeTask, encode_part
task = TokenizeTask(sys.argv[1], 1, (), 4096, {0: hex_key("peak")}, {}, sys.argv[2], sys.argv[3])
encode_part(task, 0)
"""


def _part_peak(encoder: Encoder, texts: list[str]) -> int:
    """Return the peak memory in MB of a process that runs the part task on one part of 64 MB, the size of a default."""
    size = max(1, sum(len(text.encode()) for text in texts))
    with tempfile.TemporaryDirectory() as temporary:
        given = Path(temporary, "texts.parquet")
        column = pa.array(texts * (1 + 64_000_000 // size), pa.large_string())
        pq.write_table(pa.table({"text": column}), given, row_group_size=1000)
        inputs = [{"source": "s", "domain": "web", "format": "parquet", "paths": [str(given)]}]
        ingest = {"part_bytes": 128_000_000}
        recipe = parse_recipe({"name": "peak", "seed": 1, "workdir": temporary, "inputs": inputs, "ingest": ingest})
        task = plan(recipe)
        ingest_part(task, ["print"] * len(task.splits), 0)
        command = [sys.executable, "-c", _PART_TASK, temporary, str(encoder.folder), encoder.info.sha256]
        return run_measured(command).peak_rss_bytes // 1_000_000


def _differences(encoder: Encoder, texts: list[str]) -> dict[str, int]:
    library = plain_tokenizer(read_definition(encoder.folder), "benchmark")
    views = views_of(texts)
    batch = encoder.encode_batch(views, append_eos=False)
    different = lossy = 0
    for index in range(views.num_docs):
        text = views.doc(index)
        ids = batch.ids[batch.offsets[index] : batch.offsets[index + 1]].tolist()
        different += ids != library.encode_batch_fast([text], add_special_tokens=False)[0].ids
        lossy += encoder.decode(ids) != text
    return {
        "compared_docs": views.num_docs,
        "compared_bytes": int(views.offsets[-1]),
        "different": different,
        "lossy": lossy,
    }


def _train(documents: list[tuple[str, str]], num_bytes: int, folder: Path) -> dict[str, object]:
    recipe = TokenizerRecipe(name="benchmark", vocab_size=32768, sample_bytes=max(num_bytes, 1))
    texts = _take(documents, num_bytes)
    started, wall = time.process_time(), time.perf_counter()
    info = train_bpe(iter(texts), recipe, folder)
    return {
        "sample_bytes": info.origin["sample_bytes"],
        "vocab_size": info.vocab_size,
        "cpu_seconds": round(time.process_time() - started, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Encoding speed of four engines on one vocabulary.")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; trains one when absent")
    parser.add_argument("--train-bytes", type=int, default=20_000_000)
    parser.add_argument("--encode-bytes", type=int, default=10_000_000)
    parser.add_argument("--compare-bytes", type=int, default=20_000_000)
    parser.add_argument("--run", type=Path, help="folder of a run that has tokenised")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    name, documents = _documents()
    train = [pair for pair in documents if int(hex_key(pair[1])[-1], 16) % 2]
    held_out = [pair for pair in documents if not int(hex_key(pair[1])[-1], 16) % 2]
    result: dict[str, Any] = {"text": name, "training": None}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.tokenizer
        if folder is None:
            folder = Path(temporary)
            result["training"] = _train(train, options.train_bytes, folder)
        encoder = open_encoder(tokenizer_folder(folder))
        result["engine"] = f"{encoder.engine}: {encoder.engine_reason}"
        result["ids"] = _differences(encoder, _take(held_out, options.compare_bytes))
        groups: dict[str, object] = {"mix": _speeds(encoder, _take(held_out, options.encode_bytes))}
        for group in sorted({pair[0] for pair in held_out} - {"other"}):
            groups[group] = _speeds(encoder, _take(held_out, options.encode_bytes // 2, group))
        result["speed"] = groups
        result["exponent"] = _exponent(encoder, _take(held_out, min(options.encode_bytes, 1_000_000)))
        result["peak_rss_mb"] = _part_peak(encoder, _take(held_out, options.encode_bytes))
        result["without_a_space"] = _without_a_space(encoder)
        result["stage"] = _through_the_stage(options.run) if options.run else None
    stage, speed = result["stage"], result["speed"]
    kernel = encoder.engine == "kernel"
    result["checks"] = {
        "twice_kitoken_on_the_mix": not kernel or speed["mix"]["ratio_to_kitoken"] >= _LEAST_RATIO,
        "kitoken_on_chinese": not kernel or "zh" not in speed or speed["zh"]["ratio_to_kitoken"] >= 1,
        "exponent_without_a_space_at_most_1.05": result["without_a_space"]["exponent"] <= _MOST_EXPONENT,
        "ids_equal": result["ids"]["different"] == 0 and result["ids"]["lossy"] == 0,
        "exponent_at_most_1.05": result["exponent"] <= _MOST_EXPONENT,
        "peak_at_most_500_mb": result["peak_rss_mb"] <= _MOST_MB,
    }
    if stage is not None:
        result["checks"]["stage_at_least_70_percent"] = stage["stage_of_the_encoder"] >= _LEAST_STAGE
    result["versions"] = {
        "python": platform.python_version(),
        "tokenizers": tokenizers.__version__,
        "kitoken": version("kitoken"),
    }
    result["hardware"] = {"machine": platform.machine(), "cpu_count": os.cpu_count(), "system": platform.platform()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result["commit"] = commit.stdout.strip() or None
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0 if all(result["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
