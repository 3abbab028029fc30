"""Accuracy and speed of language identification with lid.176.

    python benchmarks/langid.py [--docs N] [--out FILE]

Needs the folder REFINERY_SHARED/data. Accuracy: paragraphs of at least 100 characters of the Universal Declaration of
Human Rights, every language that the model has a label for (close variants that one label covers count as that label).
Speed: UTF-8 bytes per CPU second on whole documents of known language, for several sample sizes, beside the library's
own prediction on whole documents. Exits 1 when en, zh, de, fr or ru is under 0.99. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import sys
import time
import unicodedata
import zipfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from refinery.kernels.langid import MAX_BYTES, SAMPLE_PIECES, detect, open_language_model, sample_lines, script_shares
from refinery.kernels.preparation import iterate_lines, prepare
from refinery.kernels.text import TextViews, views_of

_MIN_CHARS = 100
_FLOOR = 0.99
_MUST = ("en", "zh", "de", "fr", "ru")
# stem of the UDHR file (before "_") -> the model's label; ISO 639-3 codes that are labels themselves map to themselves
_STEMS = {
    "afr": "af", "amh": "am", "arb": "ar", "ast": "ast", "azj": "az", "bcl": "bcl", "bel": "be", "ben": "bn",
    "bod": "bo", "bos": "bs", "bre": "br", "bul": "bg", "cat": "ca", "ceb": "ceb", "ces": "cs", "ckb": "ckb",
    "cmn": "zh", "cos": "co", "cym": "cy", "dan": "da", "deu": "de", "div": "dv", "ell": "el", "eml": "eml",
    "eng": "en", "epo": "eo", "est": "et", "eus": "eu", "fin": "fi", "fra": "fr", "fri": "fy", "gla": "gd",
    "gle": "ga", "glg": "gl", "gug": "gn", "guj": "gu", "hat": "ht", "heb": "he", "hin": "hi", "hrv": "hr",
    "hsb": "hsb", "hun": "hu", "hye": "hy", "ido": "io", "ilo": "ilo", "ina": "ia", "ind": "id", "isl": "is",
    "ita": "it", "jav": "jv", "jpn": "ja", "kan": "kn", "kat": "ka", "kaz": "kk", "khk": "mn", "khm": "km",
    "kir": "ky", "kor": "ko", "lao": "lo", "lat": "la", "lav": "lv", "lit": "lt", "ltz": "lb", "mai": "mai",
    "mal": "ml", "mar": "mr", "min": "min", "mkd": "mk", "mlt": "mt", "mya": "my", "nds": "nds", "nep": "ne",
    "nld": "nl", "nno": "nn", "nob": "no", "oss": "os", "pam": "pam", "pan": "pa", "pes": "fa", "plt": "mg",
    "pnb": "pnb", "pol": "pl", "por": "pt", "quz": "qu", "roh": "rm", "ron": "ro", "rus": "ru", "sah": "sah",
    "san": "sa", "sco": "sco", "slk": "sk", "slv": "sl", "som": "so", "spa": "es", "src": "sc", "srp": "sr",
    "sun": "su", "swe": "sv", "swh": "sw", "tam": "ta", "tat": "tt", "tgk": "tg", "tgl": "tl", "tha": "th",
    "tuk": "tk", "tur": "tr", "tyv": "tyv", "uig": "ug", "ukr": "uk", "urd": "ur", "uzn": "uz", "vec": "vec",
    "vep": "vep", "vie": "vi", "war": "war", "wln": "wa", "ydd": "yi", "yor": "yo",
}  # fmt: skip
# files in a script that the model was not trained on for that language, and a contact variety of Mongolian script
_LEAVE_OUT = {"azj_cyrl", "bos_cyrl", "khk_mong", "tgl_tglg", "tuk_cyrl", "uig_latn", "uzn_cyrl", "ell_polytonic"}
_DOCUMENTS = {
    "books/en-eltec-novels.jsonl.gz": "en",
    "books/fr-eltec-novels.jsonl.gz": "fr",
    "books/zh-classic-novels.jsonl.gz": "zh",
    "dialogue/zh-crosswoz.jsonl.gz": "zh",
    "docs/de-rust-book.jsonl.gz": "de",
    "docs/en-peps.jsonl.gz": "en",
    "docs/zh-oi-wiki.jsonl.gz": "zh",
    "docs/zh-rust-book.jsonl.gz": "zh",
    "law/de-gesetze.jsonl.gz": "de",
    "law/zh-laws.jsonl.gz": "zh",
    "neardup/ru-novels-variants.jsonl.gz": "ru",
}


def _paragraphs(archive: Path) -> dict[str, list[str]]:
    """Label -> paragraphs; lines without the file's heading, long enough to judge."""
    texts: dict[str, list[str]] = defaultdict(list)
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            stem = Path(name).stem
            label = _STEMS.get(stem.split("_")[0])
            if label is None or stem in _LEAVE_OUT or not name.endswith(".txt"):
                continue
            lines = unicodedata.normalize("NFC", files.read(name).decode("utf-8")).splitlines()
            texts[label] += [line.strip() for line in lines if len(line.strip()) >= _MIN_CHARS]
    return dict(texts)


def _udhr(model, archive: Path) -> dict:
    texts = _paragraphs(archive)
    labels = [label for label, lines in texts.items() for _ in lines]
    guesses = detect(model, views_of([line for lines in texts.values() for line in lines])).lang.to_pylist()
    right: dict[str, list[bool]] = defaultdict(list)
    wrong: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for label, guess in zip(labels, guesses, strict=True):
        right[label].append(label == guess)
        if label != guess:
            wrong[label][guess] += 1
    accuracy = {label: round(float(np.mean(hits)), 4) for label, hits in sorted(right.items())}
    return {
        "languages": len(accuracy),
        "labels_without_text": len(model.languages) - len(accuracy),
        "paragraphs": len(labels),
        "accuracy_all_paragraphs": round(float(np.mean([a == b for a, b in zip(labels, guesses, strict=True)])), 4),
        "accuracy_mean_of_languages": round(float(np.mean(list(accuracy.values()))), 4),
        "accuracy": accuracy,
        "confused_with": {
            label: dict(sorted(kinds.items(), key=lambda kind: -kind[1])[:3])
            for label, kinds in wrong.items()
            if accuracy[label] < _FLOOR
        },
    }


def _documents(folder: Path, num_docs: int) -> tuple[TextViews, np.ndarray]:
    texts, labels = [], []
    for name, label in _DOCUMENTS.items():
        with gzip.open(folder / name, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line)["text"] for line in lines]
        step = max(1, len(rows) // num_docs)
        texts += rows[::step][:num_docs]
        labels += [label] * len(rows[::step][:num_docs])
    return views_of(texts), np.array(labels)


def _seconds(work) -> tuple[float, object]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _speeds(model, views: TextViews, labels: np.ndarray) -> dict:
    megabytes = len(views.data) / 1e6
    results = {}
    sample_lines(views, 128)
    for max_bytes in (256, 512, 1024, 2048, 4096):
        for pieces in (1, 2, 4):
            best, correct = float("inf"), 0.0
            for _ in range(2):
                seconds, lines = _seconds(lambda m=max_bytes, p=pieces: sample_lines(views, m, p))
                more, guesses = _seconds(lambda rows=lines, m=max_bytes: detect(model, rows, 2 * m))
                best = min(best, seconds + more)
                correct = float(np.mean(np.array(guesses.lang.to_pylist(), dtype=object) == labels))
            results[f"{max_bytes} bytes in {pieces}"] = {
                "MB_per_cpu_s": round(megabytes / best, 1),
                "agrees": round(correct, 4),
            }
    whole = prepare(views, "one_line")
    seconds, found = _seconds(lambda: [model.model.predict(line, 1, 0.0, "strict") for _, line in iterate_lines(whole)])
    agrees = np.mean([row[0][1].removeprefix("__label__") for row in found] == labels)
    results["library, whole documents"] = {
        "MB_per_cpu_s": round(megabytes / seconds, 1),
        "agrees": round(float(agrees), 4),
    }
    best = min(_seconds(lambda: detect(model, views))[0] for _ in range(3))
    results["as configured"] = {
        "max_bytes": MAX_BYTES,
        "pieces": SAMPLE_PIECES,
        "MB_per_cpu_s": round(megabytes / best, 1),
        "docs_per_cpu_s": round(views.num_docs / best),
    }
    script_shares(views)
    results["script_shares"] = {"MB_per_cpu_s": round(megabytes / _seconds(lambda: script_shares(views))[0], 1)}
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, default=150, help="documents per file in the speed table")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = Path(os.environ.get("REFINERY_SHARED", ""), "data")
    if not (folder / "langid" / "nltk-udhr2.zip").is_file():
        print("set REFINERY_SHARED to the folder that holds data/langid/nltk-udhr2.zip", file=sys.stderr)
        return 2
    model = open_language_model()
    udhr = _udhr(model, folder / "langid" / "nltk-udhr2.zip")
    views, labels = _documents(folder, arguments.docs)
    result = {
        "model_sha256": model.sha256,
        "udhr": udhr,
        "must": {label: udhr["accuracy"][label] for label in _MUST},
        "documents": {"num_docs": views.num_docs, "mean_bytes": round(len(views.data) / views.num_docs)},
        "speed": _speeds(model, views, labels),
        "versions": {"python": platform.python_version(), "numpy": version("numpy"), "machine": platform.machine()},
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return int(any(value < _FLOOR for value in result["must"].values()))


if __name__ == "__main__":
    sys.exit(main())
