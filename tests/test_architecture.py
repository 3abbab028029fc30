"""The shape of the code, enforced: who may import whom, how long things are, what is not done here.

`docs/decisions/006-layering.md` gives the reason for every line of `ALLOWED` that is not plainly "down".
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "refinery").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))

FOUNDATION = {"errors", "hashing", "contracts", "__init__"}

# Layer -> layers of refinery that it may import, besides itself and FOUNDATION.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "hashing": set(),
    "process_memory": set(),
    "contracts": set(),
    "recipe": set(),
    "kernels": set(),
    "gpu": {"kernels"},
    "io": {"kernels"},
    "tokenization": {"kernels"},
    "shards": set(),
    "scaling": set(),
    "trainer": {"shards", "tokenization", "process_memory"},
    "stages": {"recipe", "kernels", "gpu", "io", "tokenization", "shards", "process_memory"},
    "doctor": {"stages", "io", "gpu", "recipe"},
    "init": {"recipe", "io"},
    # of the trainer only its presets, which import no torch: a model's size is known before it is built
    "forecast": {"recipe", "stages", "io", "tokenization", "trainer"},
    "schemas_export": {"recipe", "kernels", "shards"},
    "report": {"recipe", "stages", "kernels", "io", "tokenization", "shards", "scaling"},
    "cli": {
        *("recipe", "stages", "report", "doctor", "init", "forecast"),
        *("kernels", "io", "tokenization", "shards", "scaling"),
    },
    "jobs": {"recipe", "stages", "io", "report"},
}

# A module split in two stays one layer.
SAME_LAYER = {
    "recipe_sections": "recipe",
    "recipe_selection": "recipe",
    "init_sources": "init",
    "forecast_costs": "forecast",
    "forecast_sections": "forecast",
    "forecast_text": "forecast",
    "forecast_vocabulary": "forecast",
}

# `io` may use only these kernels: the one reader of text applies cuts.
KERNELS_OF_IO = {"refinery.kernels.boundaries", "refinery.kernels.cuts", "refinery.kernels.text"}

# Third-party package -> layers that may import it; packages that are not listed are free.
ONLY_IN: dict[str, set[str]] = {
    "torch": {"gpu", "trainer", "doctor"},
    "sentence_transformers": {"gpu"},
    "transformers": {"gpu", "trainer"},
    "faiss": {"gpu"},
    "pyspark": {"stages", "jobs", "doctor"},
    "pandas": set(),
    "jinja2": {"report"},
    "typer": {"cli"},
    "scipy": {"scaling", "kernels"},
    "tokenizers": {"tokenization"},
    "kitoken": {"tokenization"},
    "fastwarc": {"io"},
    "resiliparse": {"io"},
    "trafilatura": {"io"},
}

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib"}
FORBIDDEN_NAMES = {"utils", "util", "common", "base", "manager", "managers", "helpers", "helper", "misc"}
FORBIDDEN_CALLS = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "eval", "exec", "print"}
MACHINE_PATHS = re.compile("/" + "work/|/" + "tmp/venv|/" + "root/")

MAX_MODULE_LINES = 420
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7
MAX_JOB_LINES = 60


def _layer(path: Path) -> str:
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "jobs":
        return "jobs"
    layer = relative.parts[1].removesuffix(".py")
    return _one_layer(layer)


def _one_layer(module: str) -> str:
    return "cli" if module.startswith("cli_") else SAME_LAYER.get(module, module)


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_problems(path: Path, source: str) -> list[str]:
    """Return what a module imports and may not."""
    layer, module = _layer(path), _name(path)
    free = FOUNDATION | {layer} | ALLOWED.get(layer, set())
    if layer in ("errors", "hashing", "contracts", "__init__"):
        free = {"errors", "hashing", layer}
    problems = []
    for name in _imports(ast.parse(source)):
        package, _, rest = name.partition(".")
        if package == "refinery":
            target = rest.partition(".")[0] or "__init__"
            target = _one_layer(target)
            if target == "__version__":
                continue
            if target not in free:
                problems.append(f"{module} imports {name}: {layer} may not import {target}")
            if layer == "io" and target == "kernels" and name.rpartition(".")[0] not in KERNELS_OF_IO:
                problems.append(f"{module} imports {name}: io may use {sorted(KERNELS_OF_IO)} only")
        elif package in ONLY_IN and layer not in ONLY_IN[package]:
            problems.append(f"{module} imports {package}: only {sorted(ONLY_IN[package])} may")
        elif package in FORBIDDEN_IMPORTS:
            problems.append(f"{module} imports {package}: nothing here unpickles or pickles")
    return problems


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count lines from ``def`` to the end, the docstring left out: documenting a function never makes it too long."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total


def _num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def size_problems(path: Path, source: str) -> list[str]:
    """Return what is longer than it may be."""
    tree, lines, module = ast.parse(source), source.splitlines(), _name(path)
    problems = [f"{module} has {len(lines)} lines"] if len(lines) > MAX_MODULE_LINES else []
    is_job = _layer(path) == "jobs"
    if is_job and len(lines) > MAX_JOB_LINES:
        problems.append(f"{module} has {len(lines)} lines; jobs have at most {MAX_JOB_LINES}")
    for function in _functions(tree):
        if _code_lines(function) > MAX_FUNCTION_LINES:
            problems.append(f"{module}.{function.name} has {_code_lines(function)} lines")
        # typer reads a command's options from its parameters
        if _num_parameters(function) > MAX_PARAMETERS and _layer(path) != "cli":
            header = "\n".join(lines[function.lineno - 1 : function.body[0].lineno])
            excuse = re.search(r"# noqa: [^\n]*PLR0913[^\n]*?(?: - |\()\s*\w+", header)
            if not excuse:
                problems.append(f"{module}.{function.name} has {_num_parameters(function)} parameters and no reason")
    return problems


def habit_problems(path: Path, source: str) -> list[str]:
    """Return what is done here and is not to be done."""
    tree, module = ast.parse(source), _name(path)
    problems = []
    if source.strip() and ast.get_docstring(tree) is None:
        problems.append(f"{module} has no docstring")
    if path.stem in FORBIDDEN_NAMES:
        problems.append(f"{module}: a module is named for what it does, not {path.stem}")
    for node in ast.walk(tree):
        where = f"{module}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Assert):
            problems.append(f"{where} asserts; raise an error of refinery.errors")
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            problems.append(f"{where} has a bare except")
        elif isinstance(node, ast.Global):
            problems.append(f"{where} has module state that changes")
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in FORBIDDEN_CALLS:
                problems.append(f"{where} calls {ast.unparse(node.func)}")
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code" and getattr(keyword.value, "value", None) is not False:
                    problems.append(f"{where} trusts remote code")
    problems += [f"{module}:{line} {what}" for line, what in _module_level_problems(path, tree)]
    return problems


_CONTAINERS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
_MUTABLE_CALLS = {"list", "dict", "set", "defaultdict", "Counter", "deque", "bytearray", "OrderedDict"}


def _module_level_problems(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield mutable containers with a variable's name, and work done at import (the command line registers itself)."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            call = node.value.func if isinstance(node.value, ast.Call) else None
            mutable = isinstance(node.value, _CONTAINERS) or (
                call is not None and ast.unparse(call).rpartition(".")[2] in _MUTABLE_CALLS
            )
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if mutable and isinstance(target, ast.Name) and not target.id.isupper() and target.id != "__all__":
                    yield node.lineno, f"holds the mutable {target.id} at module level"
        elif isinstance(node, ast.For | ast.While | ast.With) and _layer(path) != "cli":
            yield node.lineno, "does work at import"
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _layer(path) != "cli":
            yield node.lineno, "calls a function at import"


@pytest.mark.parametrize("path", [*MODULES, *JOBS], ids=_name)
def test_imports_point_down(path: Path) -> None:
    assert import_problems(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [*MODULES, *JOBS], ids=_name)
def test_modules_and_functions_stay_small(path: Path) -> None:
    assert size_problems(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [*MODULES, *JOBS], ids=_name)
def test_habits(path: Path) -> None:
    assert habit_problems(path, path.read_text(encoding="utf-8")) == []


def test_every_layer_has_rules() -> None:
    layers = {_layer(path) for path in MODULES}
    assert layers <= set(ALLOWED), f"say in ALLOWED what {sorted(layers - set(ALLOWED))} may import"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("refinery/kernels/minhash.py", "import pyspark"),
        ("refinery/kernels/minhash.py", "from refinery.stages import pack"),
        ("refinery/kernels/minhash.py", "import torch"),
        ("refinery/contracts/tables.py", "from refinery.recipe import Recipe"),
        ("refinery/io/parts.py", "from refinery.kernels.minhash import signatures"),
        ("refinery/trainer/loop.py", "from refinery.stages.pack import run"),
        ("refinery/trainer/loop.py", "def late():\n    import pyspark"),
        ("refinery/scaling/cpt.py", "from refinery.trainer.config import TrainConfig"),
        ("refinery/shards/reader.py", "import torch"),
        ("refinery/stages/pack.py", "from refinery.report.page import write_report"),
        ("refinery/stages/pack.py", "import pickle"),
    ],
)
def test_planted_imports_are_found(path: str, source: str) -> None:
    assert import_problems(ROOT / path, source)


@pytest.mark.parametrize(
    "source",
    [
        '"""D."""\nseen = []',
        '"""D."""\nfrom collections import Counter\nseen = Counter()',
        '"""D."""\nprint(1)',
        '"""D."""\ndef f(x):\n    assert x',
        '"""D."""\ntry:\n    x = 1\nexcept:\n    x = 2',
        '"""D."""\nimport yaml\nyaml.load(open("a"))',
        '"""D."""\nload(trust_remote_code=True)',
        "x = 1",
    ],
)
def test_planted_habits_are_found(source: str) -> None:
    assert habit_problems(ROOT / "refinery/kernels/minhash.py", source)


def test_importing_the_command_line_loads_no_engine() -> None:
    code = (
        "import sys, refinery.cli; heavy = [m for m in ('torch', 'pyspark.sql', 'tensorflow') if m in sys.modules]; "
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_tracked_file_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # binary golden files
        found += [f"{name}:{i}" for i, line in enumerate(text.splitlines(), 1) if MACHINE_PATHS.search(line)]
    assert found == []
