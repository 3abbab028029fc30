"""A first recipe from a few answers, with comments that say what to change."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from refinery.errors import ConfigError
from refinery.init_sources import Source, describe_source, with_unique_names
from refinery.recipe import parse_recipe

_SMALL_TEXT_BYTES = 256 * 2**20
"""Less text than this gets small parts, so that every core has work, and short rows."""
_VOCAB_SIZES = ((100_000, 512), (1_000_000, 1024), (8_000_000, 4096), (_SMALL_TEXT_BYTES, 8192))
"""(text bytes below which, ids): less text cannot teach more merges, and small models want small vocabularies."""
_REPLAY = 0.2
Prompt = Callable[[str, str], str]
"""(question, default) -> answer."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a recipe is written from."""

    name: str
    sources: tuple[Source, ...]
    workdir: str = ""
    """Empty: runs/NAME."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes to keep; empty keeps all."""
    budget_tokens: int | None = None
    """None: the largest that the caps allow."""
    tokenizer: str = ""
    """Folder or tokenizer.json of an existing tokenizer, or a tokenizer recipe; empty: one is written and trained."""
    train: bool = True


def ask(prompt: Prompt, name: str) -> Answers:
    """Ask for what a recipe needs; an empty answer to a role's question goes on to the next.

    Raises:
        ConfigError: an answer that cannot be used; the message says why.
    """
    sources: list[Source] = []
    questions = {
        "target": "Text of the domain you want, as it is (path, [DOMAIN=]PATH; empty: none)",
        "pool": "Text to filter and choose from (path; empty: none)",
        "replay": "General text against forgetting (path; empty: none)",
    }
    for role, first in questions.items():
        question = first
        while answer := prompt(question, "").strip():
            sources.append(describe_source(answer, role))
            question = f"One more of role {role}? (path; empty: no)"
    languages = tuple(re.findall(r"[A-Za-z-]+", prompt("Languages to keep (ISO codes; empty: all)", "")))
    budget = prompt("Tokens to train on (a number, or auto: as many as the text gives)", "auto").strip()
    train = prompt("Train a small model at the end? (yes/no)", "yes").strip().lower()
    return Answers(
        name=prompt("Name of the run", name).strip() or name,
        sources=with_unique_names(sources),
        languages=languages,
        budget_tokens=None if budget in ("", "auto") else parse_count(budget),
        train=train in ("y", "yes", "true", "1"),
    )


def parse_count(text: str) -> int:
    """Return a whole number as people write it: 2000000, 2_000_000, 2e6, 2M, 1.5B.

    Raises:
        ConfigError: it is none, or not above 0.
    """
    found = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*([kKmMbBgGtT]?)", text.strip())
    scale = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
    value = float(re.sub("[_,]", "", found.group(1))) * scale[found.group(2).lower()] if found else 0.0
    if not (math.isfinite(value) and value >= 1):
        raise ConfigError(f"{text!r} is no number of tokens; write for example 2000000, 2e6 or 2M")
    return round(value)


def write_recipe(out: Path, answers: Answers, *, force: bool = False) -> list[Path]:
    """Write the recipe, and beside it the recipe of its tokenizer unless one was named; return the files.

    Raises:
        ConfigError: no input, a file is there already and `force` is not given, or the answers make no valid recipe.
    """
    if all(s.role == "replay" for s in answers.sources):
        raise ConfigError("a recipe needs text to learn from: name a path with --target or --pool (or --input)")
    tokenizer = out.with_name(f"{out.stem}-tokenizer.yaml")
    files = {} if answers.tokenizer else {tokenizer: tokenizer_text(answers)}
    files[out] = recipe_text(answers, tokenizer)
    parse_recipe(yaml.safe_load(files[out]), str(out))
    taken = [str(path) for path in files if path.exists()]
    if taken and not force:
        raise ConfigError(f"{' and '.join(taken)} exist already; --force writes over them")
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)


def mix_shares(sources: Sequence[Source], replay: float) -> dict[str, float]:
    """Return a first mix: half of what is not replay for the target, the rest for the pool, by size inside each.

    Shares are whole percents, none below one, and sum to 1 with `replay`.
    """
    sizes: Counter[str] = Counter()
    wanted = {s.domain for s in sources if s.role == "target"}
    for source in sources:
        if source.role != "replay":
            sizes[source.domain] += source.num_bytes or 1
    groups = [g for g in ([d for d in sizes if d in wanted], [d for d in sizes if d not in wanted]) if g]
    percents = 100 - round(100 * replay)
    exact = {d: percents / len(groups) * sizes[d] / sum(sizes[x] for x in g) for g in groups for d in g}
    whole = {d: max(1, int(v)) for d, v in exact.items()}
    largest = sorted(exact, key=lambda d: (whole[d] - exact[d], d))
    for n in range(percents - sum(whole.values())):
        whole[largest[n % len(largest)]] += 1
    while sum(whole.values()) > percents:
        whole[max(whole, key=lambda d: (whole[d], d))] -= 1
    return {d: v / 100 for d, v in whole.items()}


def is_small(answers: Answers) -> bool:
    """Say whether all of the text is known and would fill only a few parts of the default size."""
    return all(s.num_bytes for s in answers.sources) and sum(s.num_bytes for s in answers.sources) < _SMALL_TEXT_BYTES


def tokenizer_text(answers: Answers) -> str:
    """Return the recipe of a tokenizer whose vocabulary fits the amount of text."""
    total = _total_bytes(answers)
    vocab_size = next((size for bound, size in _VOCAB_SIZES if 0 < total < bound), 32768)
    sample_bytes = min(200_000_000, max(1_000_000, total)) if total else 200_000_000
    return f"""\
# Vocabulary of {answers.name}: byte-level BPE, trained on a sample of the kept documents.
name: {json.dumps(answers.name + "-bpe")}
vocab_size: {vocab_size}          # under 65,500 ids fit 16 bits; small models want small ones
split_pattern: gpt4_digits3
special_tokens: ["<|endoftext|>", "<|pad|>"]
num_reserved: 6
min_frequency: 2
sample_bytes: {sample_bytes}      # bounds the trainer's memory: about 30 bytes per byte of sample
seed: 1
"""


def recipe_text(answers: Answers, tokenizer: Path) -> str:
    """Return the recipe as commented YAML.

    Args:
        answers: what is wanted.
        tokenizer: where the tokenizer's recipe will lie, if the answers name no tokenizer.
    """
    sections = (_head(answers), _inputs(answers), _cleaning(answers), _choosing(answers), _ending(answers, tokenizer))
    return "\n".join(line.rstrip() for line in "\n".join(sections).splitlines()) + "\n"


def _total_bytes(answers: Answers) -> int:
    known = all(s.num_bytes for s in answers.sources)
    return sum(s.num_bytes for s in answers.sources) if known else 0


def _head(answers: Answers) -> str:
    workdir = answers.workdir or f"runs/{answers.name}"
    return f"""\
# {answers.name}: written by `refinery init`. Every key is described in docs/recipe.md and docs/stages.
# `refinery run THIS --dry-run` says what it needs; `refinery run THIS` runs it.
name: {json.dumps(answers.name)}
seed: 1                       # every draw is a function of it: same seed, same shards
workdir: {json.dumps(workdir)}
"""


def _inputs(answers: Answers) -> str:
    lines = [
        "# target: the domain that is wanted, as it is; pool: filtered and chosen from; replay: general text",
        "inputs:",
    ]
    for s in answers.sources:
        size = f"about {s.num_bytes / 1e6:,.1f} MB of text" if s.num_bytes else "size not known before reading"
        lines.append(f"  # {size}")
        fields = {"source": s.source, "domain": s.domain, "role": s.role, "format": s.format}
        if s.format == "python_environment":
            entry = ", ".join(f"{k}: {json.dumps(v)}" for k, v in fields.items())
            lines.append(f"  - {{{entry}, options: {{collection: {s.path.removeprefix('python:')}}}}}")
            continue
        shown = [f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in fields.items()]
        shown.append(f"paths: [{json.dumps(s.path, ensure_ascii=False)}]")
        if s.text_field != "text":
            shown.append(f"text_field: {json.dumps(s.text_field, ensure_ascii=False)}")
        if s.id_field != "id":
            shown.append(f"id_field: {json.dumps(s.id_field, ensure_ascii=False)}")
        lines.append(f"  - {{{', '.join(shown)}}}")
    return "\n".join(lines) + "\n"


def _cleaning(answers: Answers) -> str:
    part_bytes = 4_000_000 if is_small(answers) else 64 * 2**20
    codes = json.dumps(list(answers.languages))
    code = any(s.domain == "code" for s in answers.sources)
    screen = f"screen: {{languages: {codes}, min_confidence: 0.5{', exempt_domains: [code]' if code else ''}}}"
    presets = ["gopher"]
    if not answers.languages or "en" in answers.languages:
        presets.append("fineweb")
    if not answers.languages or "zh" in answers.languages:
        presets.append("zh_web")
    return f"""\
ingest:
  part_bytes: {part_bytes}         # text per part: the unit of work and of memory
  validation_frac: {0.03 if is_small(answers) else 0.01}       # held out by hash of the text; never trained on
  pii: mask                   # e-mail addresses, public IPs, phone, card and id numbers

# Languages to keep, by a language model on every document.
{screen if answers.languages else "# screen: {languages: [en], min_confidence: 0.5}"}

# Rules made for web text. A domain that they treat wrongly gets presets of its own: an empty list exempts it.
rules:
  presets: [{", ".join(presets)}]
  by_domain: {"{code: [code]}" if code else "{}"}
"""


def _choosing(answers: Answers) -> str:
    targets = Counter[str]()
    for source in answers.sources:
        if source.role == "target":
            targets[source.domain] += source.num_bytes or 1
    has_pool = any(s.role == "pool" for s in answers.sources)
    lines = ["# A classifier that learns what good text is: name sources (of `inputs`) that are good and ordinary.",
             "# quality: {positives: [GOOD], negatives: [ORDINARY], keep_token_frac: 0.7}", ""]  # fmt: skip
    if has_pool and targets:
        target = json.dumps(targets.most_common(1)[0][0], ensure_ascii=False)
        lines += ["# What in the pool is most like the target, by hashed word pairs, as a share of its bytes.",
                  f"select: {{target: {target}, keep_frac: 0.5}}", ""]  # fmt: skip
    lines += [
        "dedup_documents: {jaccard: 0.8, keep: [longest]}   # exact copies, then near copies, each one verified",
        "",
    ]
    if has_pool:
        lines += ["# Sentences that stand in several pool documents are kept in one.",
                  "dedup_sentences: {exact: true}", ""]  # fmt: skip
    return "\n".join(lines)


def _ending(answers: Answers, tokenizer: Path) -> str:
    replay = _REPLAY if any(s.role == "replay" for s in answers.sources) else 0.0
    shares = ", ".join(
        f"{json.dumps(d, ensure_ascii=False)}: {v:.2f}" for d, v in mix_shares(answers.sources, replay).items()
    )
    given = answers.tokenizer
    kind = "train" if not given or given.endswith((".yaml", ".yml")) else "path"
    budget = "auto" if answers.budget_tokens is None else answers.budget_tokens
    length = 512 if is_small(answers) else 2048
    text = f"""\
tokenizer: {{{kind}: {json.dumps(given or str(tokenizer), ensure_ascii=False)}}}

# Shares of the tokens a run reads; they sum to 1 with replay. No domain is read more than four times.
mix:
  budget_tokens: {budget}{"         # the largest that shares and epochs allow" if budget == "auto" else ""}
  stages:
    - {{domains: {{{shares}}}, replay: {replay:.2f}}}

pack: {{sequence_length: {length}, policy: best_fit}}
"""
    steps = "" if answers.budget_tokens else "steps: 200, "
    train = f"train: {{preset: tiny, {steps}batch_tokens: {16 * length}, learning_rate: 0.002, schedule: wsd}}"
    note = "# tiny runs on a CPU; presets go to 5b. Without `steps` the plan is read once.\n"
    return text + "\n" + (note + train if answers.train else f"# {train}")
