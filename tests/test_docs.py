"""What the docs say exists: commands, recipes, keys, links, stages, terms."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from refinery.cli import app
from refinery.contracts.tables import TABLES
from refinery.errors import ConfigError, DataError, IntegrityError, SchemaError, TransientError
from refinery.io.input_options import FORMAT_OPTIONS, FORMATS
from refinery.io.records import REASONS
from refinery.kernels.pii import TOKENS
from refinery.kernels.preset import preset_names
from refinery.recipe import STAGE_ORDER, Recipe, Section, load_recipe
from refinery.tokenization.recipe import TokenizerRecipe

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SECTION_OF_STAGE = {"tokenize": "tokenizer"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def shell_lines(text: str) -> list[str]:
    """Return the lines of code blocks and the spans of code that call make, refinery or spark-submit."""
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [span.strip() for span in re.findall(r"`([^`\n]+)`", prose)]
    starts = re.compile(r"(?:\.venv/bin/)?(refinery|make|spark-submit)(?: [a-z-]|$)")
    return [line for line in lines if starts.match(line)]


def all_shell_lines() -> list[tuple[str, str]]:
    return [(name_of(path), line) for path in DOCS for line in shell_lines(text_of(path))]


def make_targets() -> set[str]:
    makefile = text_of(ROOT / "Makefile")
    stages = re.search(r"^STAGES := (.*)$", makefile, flags=re.MULTILINE)
    return {*re.findall(r"^([a-z_]+):", makefile, flags=re.MULTILINE), *(stages.group(1).split() if stages else ())}


def command_problem(line: str) -> str | None:
    """Say what of a documented command does not exist."""
    words = shlex.split(line)
    program, words = words[0].rpartition("/")[2], words[1:]
    if program == "make":
        unknown = [w for w in words if "=" not in w and w not in make_targets()]
        return f"make has no target {unknown}" if unknown else None
    if program == "spark-submit":
        jobs = [w for w in words if w.startswith("jobs/") and "STAGE" not in w]
        gone = [job for job in jobs if not (ROOT / job).is_file()]
        return f"no such job {gone}" if gone else None
    command = get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"refinery has no command {words[0]}; it has {', '.join(sorted(command.commands))}"
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [w for w in words if w.startswith("--") and w.partition("=")[0] not in {*known, "--help"}]
    return f"{command.name} has no option {unknown}" if unknown else None


def sections() -> dict[str, type[Section]]:
    """Return recipe section name -> its model."""
    found = {}
    for name, field in Recipe.model_fields.items():
        model = section_of(field.annotation)
        if model is not None:
            found[name] = model
    return found


def section_of(annotation: object) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, (section_of(inner) for inner in getattr(annotation, "__args__", ()))), None)


def keys_of(model: type[Section]) -> set[str]:
    """Return the keys of a section and of the sections inside it."""
    keys = set(model.model_fields)
    for field in model.model_fields.values():
        inner = section_of(field.annotation)
        keys |= keys_of(inner) if inner is not None else set()
    return keys


def documented(text: str) -> set[str]:
    return set(re.findall(r"^\| `([a-z0-9_]+)`", text, flags=re.MULTILINE))


@pytest.mark.parametrize(("where", "line"), all_shell_lines())
def test_documented_commands_exist(where: str, line: str) -> None:
    assert command_problem(line) is None, f"{where}: {line}"


@pytest.mark.parametrize(
    "line",
    ["make nothing", "refinery fly RECIPE", "refinery run R --fast", "spark-submit jobs/fly.py", "refinery export fly"],
)
def test_planted_commands_are_found(line: str) -> None:
    assert command_problem(line)


def test_readme_names_the_test_command_that_ci_runs() -> None:
    assert "make test" in text_of(ROOT / "README.md")
    assert "make test" in text_of(ROOT / ".ci" / "run")


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_load(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in re.findall(r"\$\{([A-Z_]+)\}", text_of(path)):
        monkeypatch.setenv(variable, str(tmp_path))
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    if recipe.tokenizer is not None and recipe.tokenizer.train:
        assert (ROOT / recipe.tokenizer.train).is_file()


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_recipes_in_docs_load(path: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", text_of(path), flags=re.MULTILINE | re.DOTALL):
        content = yaml.safe_load(block)
        if isinstance(content, dict) and {"name", "inputs"} <= set(content):
            Recipe.model_validate(content)
        elif isinstance(content, dict) and set(content) <= set(sections()):
            for name, values in content.items():
                sections()[name].model_validate(values)


@pytest.mark.parametrize("stage", [s for s in STAGE_ORDER if s != "report"])
def test_every_stage_runs_three_ways(stage: str) -> None:
    assert stage in make_targets()
    assert command_problem(f"refinery {stage} RECIPE --force --json") is None
    assert (ROOT / "jobs" / f"{stage}.py").is_file()


def test_every_stage_has_a_page() -> None:
    pages = {p.stem for p in (ROOT / "docs" / "stages").glob("*.md")}
    assert set(STAGE_ORDER) <= pages


@pytest.mark.parametrize("stage", STAGE_ORDER)
def test_every_key_of_a_stage_is_on_its_page(stage: str) -> None:
    model = sections()[SECTION_OF_STAGE.get(stage, stage)]
    page = ROOT / "docs" / "stages" / f"{stage}.md"
    assert keys_of(model) <= documented(text_of(page)), f"{page}: describe the missing keys"


def test_every_other_key_of_the_recipe_is_in_recipe_md() -> None:
    said = documented(text_of(ROOT / "docs" / "recipe.md"))
    models = sections()
    assert set(Recipe.model_fields) <= said
    assert keys_of(models["inputs"]) | keys_of(models["spark"]) <= said


def test_tokenizer_recipe_keys_are_described() -> None:
    assert set(TokenizerRecipe.model_fields) <= documented(text_of(ROOT / "docs" / "stages" / "tokenize.md"))


def test_presets_are_described() -> None:
    assert set(preset_names()) <= documented(text_of(ROOT / "docs" / "stages" / "rules.md"))


def test_data_format_names_everything() -> None:
    text = text_of(ROOT / "docs" / "data-format.md")
    rows = set(re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE))
    options = {option for known in FORMAT_OPTIONS.values() for option in known}
    cells = re.findall(r"^\| (`[^|]+) \|", text, flags=re.MULTILINE)
    listed = {name.strip(" `") for cell in cells for name in cell.split(",")}
    assert options <= rows
    assert set(REASONS) <= rows
    assert set(TOKENS) <= rows
    assert set(FORMATS) <= listed
    for token in TOKENS.values():
        assert f"`{token}" in text
    for table in TABLES:
        assert re.search(rf"[/`]{table}`", text), f"table {table} is not described"
    for column in TABLES["documents"].names:
        assert f"`{column}`" in text, f"column {column} is not described"


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_relative_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        pointed = (path.parent / file) if file else path
        assert pointed.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(text_of(pointed)), f"{target}: no such heading"


def anchors(text: str) -> set[str]:
    """Return the anchors that a forge makes of headings."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_exit_codes_are_described() -> None:
    text = text_of(ROOT / "docs" / "data-format.md")
    for error in (ConfigError, SchemaError, IntegrityError, DataError, TransientError):
        assert f"| {error.exit_code} | {error.__name__} |" in text


def test_glossary_has_the_terms() -> None:
    terms = set(re.findall(r"^\| \*\*(.+?)\*\* \|", text_of(ROOT / "docs" / "glossary.md"), flags=re.MULTILINE))
    needed = """document doc_id doc_key source domain role signal rule decision cut shingle signature band edge cluster
    representative twin token stream row segment packing part shard partition manifest fingerprint mix plan epoch replay
    stage job recipe run conservation"""
    assert set(needed.split()) <= terms
    assert {"content hash", "token budget", "unique tokens", "importance weight", "run record"} <= terms


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(p.name[:3]) for p in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))
