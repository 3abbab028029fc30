"""Training a vocabulary: our counted trainer beside the `tokenizers` library on the same text, each in its own process.

    python benchmarks/tokenizer_training.py [--bytes N] [--vocab-size N] [--cut BYTES] [--out FILE]

Text comes from the folder in REFINERY_SHARED (``data/**/*.jsonl.gz`` with a ``text`` field) and is drawn by hash; every
16th document is held out. CPU is that of the whole process, imports and reading included, compiled kernels cached;
memory is its peak. Bounds, exit 1 when one is missed: no more CPU than the library, at most half its peak memory, and
bytes per token of held-out Chinese, English and code within 0.5 % of the library's. With `--cut` training keeps at most
that many bytes of distinct pretokens, so that the files differ and the last bound says what the cut costs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers import run_measured

from refinery.hashing import hex_key

_GROUPS = {
    "zh": ("law/zh", "docs/zh", "books/zh", "encyclopaedia/zh"),
    "en": ("books/en", "docs/en"),
    "code": ("code/",),
}
_HELD_OUT_BYTES = 2_000_000
_MOST_OFF = 0.005


def _documents(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.jsonl.gz")):
        where = path.relative_to(folder).as_posix()
        group = next((name for name, starts in _GROUPS.items() if where.startswith(starts)), "other")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line).get("text")
                if text:
                    yield group, text


def _split(folder: Path, num_bytes: int, sample: Path) -> tuple[int, dict[str, list[str]]]:
    """Write the sample, drawn by hash so that about `num_bytes` come out; return its size and the held-out texts."""
    total = sum(len(text.encode()) for _, text in _documents(folder))
    share = min(1.0, num_bytes / (total * 15 / 16))
    held_out: dict[str, list[str]] = {name: [] for name in _GROUPS}
    room = dict.fromkeys(_GROUPS, _HELD_OUT_BYTES)
    taken = 0
    with sample.open("w", encoding="utf-8") as file:
        for group, text in _documents(folder):
            key = int(hex_key(text)[-8:], 16)
            size = len(text.encode())
            if key % 16 == 0:
                if group in held_out and room[group] > 0:
                    held_out[group].append(text)
                    room[group] -= size
            elif (key // 16) / (1 << 28) < share:
                file.write(json.dumps(text, ensure_ascii=False) + "\n")
                taken += size
    return taken, held_out


def _recipe(options: argparse.Namespace) -> Any:
    from refinery.tokenization.recipe import TokenizerRecipe  # noqa: PLC0415

    return TokenizerRecipe(
        name="benchmark",
        vocab_size=options.vocab_size,
        sample_bytes=max(options.bytes, 1),
        max_pretoken_bytes=options.cut or 1 << 40,
    )


def _texts(sample: str) -> Iterator[str]:
    with Path(sample).open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _train_ours(options: argparse.Namespace) -> None:
    from refinery.tokenization.train import train_bpe  # noqa: PLC0415

    train_bpe(_texts(options.sample), _recipe(options), options.folder)


def _train_library(options: argparse.Namespace) -> None:
    from tokenizers import pre_tokenizers, trainers  # noqa: PLC0415

    from refinery.tokenization.train import new_tokenizer  # noqa: PLC0415

    recipe = _recipe(options)
    tokenizer = new_tokenizer(recipe)
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        min_frequency=recipe.min_frequency,
        special_tokens=list(recipe.all_special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(options.sample), trainer)
    Path(options.folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(Path(options.folder, "tokenizer.json")), pretty=False)


def _measured(which: str, options: argparse.Namespace, sample: Path, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", which, "--sample", str(sample), "--folder", str(folder)]
    command += ["--bytes", str(options.bytes), "--vocab-size", str(options.vocab_size), "--cut", str(options.cut)]
    used = run_measured(command)
    return {"cpu_s": round(used.cpu_s, 1), "peak_rss_mib": used.peak_rss_bytes >> 20}


def _bytes_per_token(definition: Path, held_out: dict[str, list[str]]) -> dict[str, float]:
    from tokenizers import Tokenizer  # noqa: PLC0415

    tokenizer = Tokenizer.from_file(str(definition))
    rates = {}
    for group, texts in held_out.items():
        tokens = sum(len(found.ids) for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        rates[group] = round(sum(len(text.encode()) for text in texts) / max(1, tokens), 4)
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description="Training a vocabulary, ours beside the library.")
    parser.add_argument("--bytes", type=int, default=200_000_000)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--cut", type=int, default=0)
    parser.add_argument("--out", type=Path)
    for hidden in ("--child", "--sample", "--folder"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        (_train_ours if options.child == "ours" else _train_library)(options)
        return 0
    shared = Path(os.environ.get("REFINERY_SHARED", ""), "data")
    if not os.environ.get("REFINERY_SHARED") or not shared.is_dir():
        sys.stdout.write("needs REFINERY_SHARED, a folder with data/**/*.jsonl.gz\n")
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        sample = Path(temporary, "sample.jsonl")
        tiny = Path(temporary, "tiny.jsonl")
        tiny.write_text(json.dumps("warm the compiled kernels, " * 50) + "\n", encoding="utf-8")
        warm = argparse.Namespace(**{**vars(options), "vocab_size": 280})
        _measured("ours", warm, tiny, Path(temporary, "warm"))
        size, held_out = _split(shared, options.bytes, sample)
        used = {which: _measured(which, options, sample, Path(temporary, which)) for which in ("ours", "library")}
        rates = {which: _bytes_per_token(Path(temporary, which, "tokenizer.json"), held_out) for which in used}
        files = [Path(temporary, which, "tokenizer.json").read_bytes() for which in used]
        origin = json.loads(Path(temporary, "ours", "info.json").read_text(encoding="utf-8"))["origin"]
    ratios = {
        "cpu_of_the_librarys": round(used["ours"]["cpu_s"] / used["library"]["cpu_s"], 3),
        "peak_of_the_librarys": round(used["ours"]["peak_rss_mib"] / used["library"]["peak_rss_mib"], 3),
    }
    off = {group: round(rates["ours"][group] / rates["library"][group] - 1, 5) for group in held_out}
    checks = {
        "cpu_at_most_the_librarys": ratios["cpu_of_the_librarys"] <= 1,
        "peak_at_most_half": ratios["peak_of_the_librarys"] <= 0.5,
        "bytes_per_token_within": all(abs(value) <= _MOST_OFF for value in off.values()),
    }
    result = {
        "sample_bytes": size,
        "vocab_size": options.vocab_size,
        "used": used,
        **ratios,
        "bytes_per_token": rates,
        "bytes_per_token_off": off,
        "same_file": files[0] == files[1],
        "num_pretokens": origin["num_pretokens"],
        "num_pretokens_cut": origin["num_pretokens_cut"],
        "checks": checks,
    }
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
