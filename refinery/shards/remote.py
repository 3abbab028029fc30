"""Open a data set on an object store: manifest checked, sizes of all files compared, rows by ranged reads."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import fsspec
import orjson

from refinery.errors import IntegrityError, TransientError
from refinery.shards.files import BLOCK_BYTES, RangedFiles
from refinery.shards.manifest import CHECKSUM_NAME, MANIFEST_NAME, ShardManifest, from_json
from refinery.shards.plan import MixPlan, parse_plan
from refinery.shards.reader import ShardReader

DEFAULT_CACHE_BYTES = 8 << 30


def open_remote(
    url: str,
    cache: Path,
    *,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    block_bytes: int = BLOCK_BYTES,
    storage_options: dict[str, Any] | None = None,
) -> ShardReader:
    """Open a data set by URL (``s3://``, ``gs://``, ``memory://``, …) for reading rows.

    Checks what level ``start`` checks without reading parts: both hashes of the manifest, its checksum file, and the
    size of every file by one listing. Rows then come by ranged reads of whole blocks through a local cache.

    Args:
        url: folder of the manifest.
        cache: local folder for blocks; may be kept between runs and shared by readers on one machine.
        cache_bytes: most bytes of blocks in it.
        block_bytes: bytes of a ranged read; a full shuffle reads rows far apart, so larger blocks waste more.
        storage_options: for the fsspec file system.
    Returns: a reader; its `manifest` was verified.
    Raises: IntegrityError: manifest refused, a file missing or of another size. TransientError: the store failed.
    """
    fs, root = fsspec.core.url_to_fs(url, **(storage_options or {}))
    raw = _read(fs, root, MANIFEST_NAME)
    stated = _read(fs, root, CHECKSUM_NAME).decode().split()[:1]
    if stated != [hashlib.sha256(raw).hexdigest()]:
        raise IntegrityError(f"{url}: {CHECKSUM_NAME} does not match {MANIFEST_NAME}: restore both or pack again")
    try:
        document = orjson.loads(raw)
    except ValueError as error:
        raise IntegrityError(f"{url}/{MANIFEST_NAME}: not JSON ({error}): restore it or pack again") from error
    if not isinstance(document, dict):
        raise IntegrityError(f"{url}/{MANIFEST_NAME}: a JSON object is needed")
    manifest = from_json(document, f"{url}/{MANIFEST_NAME}")
    sizes = _listed_sizes(fs, root)
    _check_sizes(url, manifest, sizes)
    files = RangedFiles(fs, root, cache, cache_bytes=cache_bytes, sizes=sizes, block_bytes=block_bytes)
    return ShardReader(Path(root), manifest, files=files)


def load_remote_plan(url: str, name: str = "main", storage_options: dict[str, Any] | None = None) -> MixPlan:
    """Read ``plan/NAME.json`` of a data set by URL.

    Raises: IntegrityError: missing, not a plan, or edited.
    """
    fs, root = fsspec.core.url_to_fs(url, **(storage_options or {}))
    return parse_plan(_read(fs, root, f"plan/{name}.json"), f"{url}/plan/{name}.json")


def _read(fs: Any, root: str, relative: str) -> bytes:
    try:
        return bytes(fs.cat_file(f"{root}/{relative}"))
    except FileNotFoundError as error:
        raise IntegrityError(f"{root}/{relative}: missing: the data set was never finished; run pack again") from error
    except OSError as error:
        raise TransientError(f"{root}/{relative} cannot be read ({error}): try again") from error


def _listed_sizes(fs: Any, root: str) -> dict[str, int]:
    try:
        found = fs.find(root, detail=True)
    except OSError as error:
        raise TransientError(f"{root} cannot be listed ({error}): try again") from error
    prefix = root.rstrip("/") + "/"
    return {name.partition(prefix)[2]: int(info["size"]) for name, info in found.items()}


def _check_sizes(url: str, manifest: ShardManifest, sizes: dict[str, int]) -> None:
    problems = [
        f"{part.path}{suffix}: " + ("missing" if found is None else f"{found} bytes, not {entry.num_bytes}")
        for stream in manifest.streams
        for part in stream.parts
        for suffix, entry in part.files.items()
        if (found := sizes.get(part.path + suffix)) != entry.num_bytes
    ]
    if problems:
        listed = "; ".join(problems[:10])
        raise IntegrityError(f"{url}: {len(problems)} files contradict the manifest; restore them: {listed}")
