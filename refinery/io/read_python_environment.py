"""The text that every Python installation carries: documentation, long descriptions, licences, source code.

It lets a run start with no data at all, on real prose and code with natural near-duplicates (licence texts). What it
holds depends on the Python and on the packages installed; for a given installation it is the same every time. Modules
are read as source and parsed, never imported.
"""

from __future__ import annotations

import ast
import email.parser
import email.policy
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from refinery.errors import ConfigError
from refinery.io.charset import decode_document
from refinery.io.records import BadRecord, InputSpec, RawDocument, Split, document_from_text

MIN_DOCSTRING_CHARS = 120
"""Shorter docstrings are one-line reminders."""
MAX_SOURCE_BYTES = 1 << 20
"""Longer modules are generated tables."""

_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "lib-dynload", "nvidia", "refinery"}
)
_LICENCE_NAME = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)
_LICENCE_SUFFIXES = frozenset({"", ".txt", ".md", ".rst", ".apache", ".bsd", ".mit", ".psf"})
_SPDX = re.compile(r"^[A-Za-z0-9.+-]{2,30}( (AND|OR|WITH) [A-Za-z0-9.+-]{2,30})*$")
_TOPICS = "topics:pydoc_data"
_SHARE_OF_DOCSTRINGS = 0.25
"""Docstring bytes per source byte, roughly, in the standard library: sizes the parts of ``docs`` without parsing."""


def plan_environment(spec: InputSpec, part_bytes: int) -> list[Split]:
    """List the items of a collection and group them into splits by size.

    An item is a module, a description or a licence file, named by root and relative path. ``options["max_bytes"]``
    keeps the items with the smallest hash of their name until their (expected) sizes reach it: the same subset on
    every run, spread over all packages. ``options["packages"]`` adds the modules of installed packages to the
    standard library's (docs, code).

    Raises:
        ConfigError: this Python holds nothing of the collection.
    """
    collection = spec.options["collection"]
    sizes = _items(collection, bool(spec.options.get("packages", False)))
    if not sizes:
        raise ConfigError(f"input {spec.source!r}: this Python holds no {collection}; leave the input out")
    budget = spec.options.get("max_bytes")
    if budget is not None:
        taken: dict[str, int] = {}
        left = int(budget)
        for name in sorted(sizes, key=lambda n: (xxhash.xxh3_64_intdigest(n.encode()), n)):
            if sizes[name] <= left:
                taken[name] = sizes[name]
                left -= sizes[name]
        sizes = taken
    splits: list[Split] = []
    group: list[str] = []
    held = 0
    for name in sorted(sizes):
        if group and held + sizes[name] > part_bytes:
            splits.append(Split((), "items", 0, len(group), tuple(group), held))
            group, held = [], 0
        group.append(f"{name}@{sizes[name]}")
        held += sizes[name]
    if group:
        splits.append(Split((), "items", 0, len(group), tuple(group), held))
    return splits


def read_python_environment(
    spec: InputSpec, split: Split, storage: Mapping[str, Any] | None
) -> Iterator[RawDocument | BadRecord]:
    """Read the items of one split; docstrings come as one document per module, class or function."""
    collection = spec.options["collection"]
    roots = _roots()
    for sized in split.items:
        item = sized.rpartition("@")[0]
        root, _, relative = item.partition(":")
        if item == _TOPICS:
            yield from _topic_documents(spec)
            continue
        path = roots[root] / relative
        try:
            data = path.read_bytes()
        except OSError as error:
            yield BadRecord(item, 0, "missing_file", str(error))
            continue
        licence = "PSF-2.0" if root == "stdlib" else _licence_of(root, relative)
        if collection == "docs":
            yield from _docstring_documents(spec, item, data, licence)
            continue
        text, _ = decode_document(data)
        upstream_id = item
        if collection == "readme":
            text = _description(text)
            upstream_id = f"readme:{relative.partition('/')[0].removesuffix('.dist-info')}"
        lang = None if collection == "code" else "en"
        yield document_from_text(spec, text, item, 0, upstream_id=upstream_id, license=licence, lang=spec.lang or lang)


def _roots() -> dict[str, Path]:
    """Name the folders that are read: the standard library, and where packages are installed."""
    paths = sysconfig.get_paths()
    roots = {"stdlib": Path(paths["stdlib"]), "site": Path(paths["purelib"])}
    if Path(paths["platlib"]) != roots["site"]:
        roots["plat"] = Path(paths["platlib"])
    return roots


def _items(collection: str, packages: bool) -> dict[str, int]:
    """Return item -> expected bytes of text."""
    found: dict[str, int] = {}
    for root, base in _roots().items():
        if root == "stdlib" and collection == "docs":
            found[_TOPICS] = 700_000
        modules = collection in ("docs", "code")
        if modules and root != "stdlib" and not packages:
            continue
        if not modules and root == "stdlib":
            for name in ("LICENSE.txt", "LICENSE") if collection == "licences" else ():
                if (base / name).is_file():
                    found[f"stdlib:{name}"] = (base / name).stat().st_size
            continue
        for relative, size in _walk(base):
            if not _belongs(collection, relative, size):
                continue
            found[f"{root}:{relative}"] = int(size * _SHARE_OF_DOCSTRINGS) if collection == "docs" else size
    return found


def _walk(base: Path) -> Iterator[tuple[str, int]]:
    for folder, subfolders, names in os.walk(base):
        subfolders[:] = sorted(s for s in subfolders if s not in _SKIPPED_FOLDERS and not s.startswith("refinery-"))
        for name in sorted(names):
            path = Path(folder) / name
            try:
                yield path.relative_to(base).as_posix(), path.stat().st_size
            except OSError:
                continue


def _belongs(collection: str, relative: str, size: int) -> bool:
    name = relative.rpartition("/")[2]
    if not 0 < size <= MAX_SOURCE_BYTES:
        return False
    if collection == "readme":
        return relative.endswith(".dist-info/METADATA") and relative.count("/") == 1
    if collection == "licences":
        suffix = Path(name).suffix.lower()
        return bool(_LICENCE_NAME.match(name)) and (suffix in _LICENCE_SUFFIXES or ".dist-info/" in relative)
    return name.endswith(".py") and relative != "pydoc_data/topics.py"


def _topic_documents(spec: InputSpec) -> Iterator[RawDocument | BadRecord]:
    from pydoc_data.topics import topics  # noqa: PLC0415 - a table of text, no code

    for name in sorted(topics):
        text = topics[name]
        yield document_from_text(
            spec, text, _TOPICS, 0, upstream_id=f"topics:{name}", license="PSF-2.0", lang=spec.lang or "en"
        )


def _docstring_documents(
    spec: InputSpec, item: str, data: bytes, licence: str | None
) -> Iterator[RawDocument | BadRecord]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield BadRecord(item, 0, "bad_source", str(error)[:120])
        return
    root, _, relative = item.partition(":")
    module = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for count, (name, text) in enumerate(_docstrings(tree, module)):
        if len(text) >= MIN_DOCSTRING_CHARS:
            yield document_from_text(
                spec, text, item, count, upstream_id=f"{root}:{name}", license=licence, lang=spec.lang or "en"
            )


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=True)
        if text:
            yield name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try):
            yield from _docstrings(child, name)


def _description(metadata: str) -> str:
    message = email.parser.Parser(policy=email.policy.compat32).parsestr(metadata)
    body = message.get_payload()
    text = body if isinstance(body, str) and body.strip() else str(message.get("Description", ""))
    return "" if text.strip() == "UNKNOWN" else text


@cache
def _licence_of(root: str, relative: str) -> str | None:
    """Return the SPDX expression that the package of a file declares, if it declares one that looks like it."""
    base = _roots()[root]
    top = relative.partition("/")[0]
    if top.endswith(".dist-info"):
        folder = base / top
    else:
        folders = sorted(base.glob(f"{top.removesuffix('.py')}-*.dist-info"))
        if len(folders) != 1:
            return None
        folder = folders[0]
    try:
        head = (folder / "METADATA").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return None
    message = email.parser.HeaderParser(policy=email.policy.compat32).parsestr(head)
    for field in ("License-Expression", "License"):
        value = str(message.get(field, "")).strip()
        if _SPDX.match(value):
            return value
    return None
