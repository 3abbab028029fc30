"""Peers, each in a virtual environment of its own, so that their dependencies never meet ours.

    python benchmarks/peers.py             # makes the environment of every peer, prints where they are
    python benchmarks/peers.py datatrove   # only this one

A peer is `benchmarks/peers/NAME.txt`, its pinned requirements. A script that runs inside the peer's environment lies
beside it, takes its arguments from the command line and prints one JSON object as its last line. Another benchmark
calls it so:

    figures = run_peer("datatrove", "datatrove_minhash.py", "--input", folder)
    figures["result"], figures["cpu_s"], figures["peak_rss_bytes"]

CPU seconds are user and system time of the process and of every child it waited for, start and imports included: a
script that wants less measures it itself and puts it into its result.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_HERE = Path(__file__).parent
_REQUIREMENTS = _HERE / "peers"
# A process started from a large one counts that one's peak as its own (Linux carries it over fork and exec), so a small
# one stands between: it starts the command, waits, and writes what the command alone used to the file named first.
_LAUNCHER = """import json, os, sys
pid = os.spawnvp(os.P_NOWAIT, sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as out:
    json.dump([usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024], out)
sys.exit(os.waitstatus_to_exitcode(status) & 255)
"""
_CACHE = Path(os.environ.get("REFINERY_PEERS", _HERE.parent / ".cache" / "peers"))


class PeerError(RuntimeError):
    """A peer could not be installed or its script failed; the message ends with the last lines it printed."""


@dataclass(frozen=True)
class Usage:
    """What a finished process used."""

    stdout: str
    cpu_s: float
    peak_rss_bytes: int


def peer_names() -> list[str]:
    """Return the names of all peers that have requirements."""
    return sorted(path.stem for path in _REQUIREMENTS.glob("*.txt"))


def peer_python(name: str) -> Path:
    """Return the interpreter of a peer's environment, made on the first call and kept under .cache/peers.

    Raises:
        PeerError: there is no such peer, or its requirements cannot be installed here.
    """
    requirements = _REQUIREMENTS / f"{name}.txt"
    if not requirements.is_file():
        raise PeerError(f"no peer {name!r}; there are {', '.join(peer_names())}")
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = _CACHE / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "installed").is_file():
        venv.create(folder, with_pip=True, clear=True)
        run_measured([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)])
        (folder / "installed").touch()
    return python


def run_peer(name: str, script: str, *arguments: object) -> dict[str, Any]:
    """Run a script of `benchmarks/peers` in the peer's environment.

    Returns:
        ``result``: the JSON object of the script's last line; ``cpu_s``; ``peak_rss_bytes`` of its largest process.

    Raises:
        PeerError: as `peer_python`, or the script failed or printed no JSON.
    """
    used = run_measured([str(peer_python(name)), str(_REQUIREMENTS / script), *map(str, arguments)])
    lines = used.stdout.strip().splitlines()
    try:
        result = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError as error:
        raise PeerError(f"{script} of {name} ended with {lines[-1][:200]!r}, not with JSON") from error
    return {"result": result, "cpu_s": used.cpu_s, "peak_rss_bytes": used.peak_rss_bytes}


def run_measured(command: list[str]) -> Usage:
    """Run a command on one thread of the usual libraries and return what it printed and used.

    Raises:
        PeerError: it ended with another status than 0.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    with TemporaryDirectory() as temporary:
        used = Path(temporary, "used.json")
        launched = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(used), *command]
        done = subprocess.run(launched, capture_output=True, text=True, env=clean | threads, check=False)
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
            raise PeerError(f"{' '.join(command)} ended with {done.returncode}:\n{tail}")
        cpu_s, peak_rss_bytes = json.loads(used.read_text(encoding="utf-8"))
    return Usage(done.stdout, cpu_s, peak_rss_bytes)


def main() -> int:
    """Make the environments named on the command line, all without arguments."""
    for name in sys.argv[1:] or peer_names():
        print(name, peer_python(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
