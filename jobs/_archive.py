"""Write the archive that ``spark-submit --py-files`` ships: ``python jobs/_archive.py dist/refinery.zip``.

Same sources, same bytes: names sorted, dates and modes fixed, nothing compressed (zlib's output differs by version, and
an archive of a megabyte gains nothing). ``_run.py`` goes in too, so that jobs also start where only the one script and
the archive arrive (YARN and Kubernetes in cluster mode).
"""

from __future__ import annotations

import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
OLDEST = (1980, 1, 1, 0, 0, 0)


def archive_names() -> dict[str, Path]:
    """Return name in the archive -> file: all modules, and the package data that ``pyproject.toml`` lists."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = listed["tool"]["setuptools"]["package-data"]["refinery"]
    package = ROOT / "refinery"
    files = [*package.rglob("*.py"), *(p for pattern in patterns for p in package.glob(pattern))]
    names = {p.relative_to(ROOT).as_posix(): p for p in files if p.is_file() and "__pycache__" not in p.parts}
    return {"_run.py": ROOT / "jobs" / "_run.py", **names}


def write_archive(target: Path) -> None:
    """Write the archive under its name only when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, path in sorted(archive_names().items()):
            entry = zipfile.ZipInfo(name, OLDEST)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # Unix, rw-r--r--
            archive.writestr(entry, path.read_bytes())
    temporary.replace(target)


if __name__ == "__main__":
    write_archive(Path(sys.argv[1]))
