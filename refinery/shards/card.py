"""The data set card: ``README.md`` in the form that the Hugging Face hub reads, written beside the shards.

YAML front matter for machines, then what is inside, how it came about and how to load it. Everything is counted; what
is not known is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from refinery.shards.manifest import ShardManifest

CARD_NAME = "README.md"
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
          (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"),
          (10**12, "100B<n<1T"))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says besides what the shard manifest knows; empty fields are said to be unknown."""

    name: str = ""
    sources: Sequence[tuple[str, str, str, str]] = ()
    """(source, domain, role, declared licence or the empty string)."""
    funnel: Sequence[tuple[str, int, int, int]] = ()
    """(stage, documents that came in, documents kept, bytes kept)."""
    licences: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Domain -> licence -> tokens of packed documents."""
    dedup: str = ""
    """How duplicates were removed."""
    decontamination: str = ""
    """What evaluation sets were looked for, and what was done."""
    plan: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Domain -> share, epochs, first_repeat_row of the plan `main`."""
    configs: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    """(configuration, ((split, glob of files), ...)) for exports that the hub's viewer loads."""


def card_values(facts: CardFacts) -> dict[str, Any]:
    """Return the facts as JSON values, for the manifest's `unhashed`; plan and configurations are not among them."""
    return {name: value for name, value in asdict(facts).items() if name not in ("plan", "configs")}


def facts_of(manifest: ShardManifest) -> CardFacts:
    """Return the facts that pack stored with the manifest; empty ones for a data set of other origin."""
    stored = manifest.unhashed.get("card") or {}
    plain = ("name", "licences", "dedup", "decontamination")
    known: dict[str, Any] = {name: stored[name] for name in plain if name in stored}
    known |= {name: tuple(tuple(row) for row in stored.get(name, ())) for name in ("sources", "funnel")}
    return CardFacts(**known)


def card_text(manifest: ShardManifest, facts: CardFacts) -> str:
    """Return the card of a data set.

    Args:
        manifest: what was written.
        facts: where it comes from.
    Returns: Markdown with YAML front matter.
    """
    name = facts.name or "packed tokens"
    sections = [
        f"# {_plain(name)}",
        f"Packed token shards for pretraining: {_total(manifest, 'rows'):,} rows of {manifest.sequence_length:,} "
        f"tokens, {_total(manifest, 'documents'):,} documents, {_total(manifest, 'tokens'):,} tokens. "
        f"Content hash `{manifest.content_hash}`.",
        "## Composition\n\n" + _composition(manifest),
        "## Plan\n\n" + _plan(facts) if facts.plan else "",
        "## Sources\n\n" + _sources(facts),
        "## Funnel\n\n" + _funnel(facts),
        "## Licences\n\n" + _licences(facts),
        "## Deduplication and decontamination\n\n"
        + f"Deduplication: {facts.dedup or 'none in this pipeline'}.\n\n"
        + f"Decontamination: {facts.decontamination or 'none: benchmark items may be inside'}.",
        "## Tokenizer\n\n" + _tokenizer(manifest),
        "## Loading\n\n" + (_loading_exports(facts) if facts.configs else _LOADING),
    ]
    return _front_matter(manifest, facts, name) + "\n\n".join(section for section in sections if section) + "\n"


_LOADING = """\
```python
from pathlib import Path
from refinery.shards.plan import load_plan
from refinery.shards.reader import ShardReader
from refinery.shards.verify import verify_dataset

root = Path(".")
plan = load_plan(root / "plan" / "main.json")
with ShardReader(root, verify_dataset(root)) as reader:
    batch = reader.batch(plan, k0=0, count=256)   # tokens, documents inside the rows, labels()
```

Every `.bin` file is a raw array of rows of token ids, so other trainers read it as it is. `refinery export megatron`
writes one prefix per stream and the blend, `refinery export hf-parquet` files for the `datasets` library."""


def _loading_exports(facts: CardFacts) -> str:
    first = facts.configs[0][0]
    return (
        f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset(".", "{first}", split="train")\n```\n\n'
        "`input_ids` are the tokens of a row. `seg_len` are the documents inside it: attention and labels stay within "
        "them. A flag of 4 in `seg_flags` is padding."
    )


def _front_matter(manifest: ShardManifest, facts: CardFacts, name: str) -> str:
    languages = sorted({s.key.lang for s in manifest.streams} - {"und"})
    stated = sorted({licence for found in facts.licences.values() for licence in found})
    values: dict[str, object] = {"pretty_name": name}
    if languages:
        values["language"] = languages
    values |= {"license": "other", "license_name": stated[0] if len(stated) == 1 else "mixed"}
    values |= {
        "task_categories": ["text-generation"],
        "size_categories": [_size_category(_total(manifest, "rows"))],
        "tags": ["pretraining", "tokenized", "packed"],
    }
    if facts.configs:
        values["configs"] = [
            {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in files]}
            for config, files in facts.configs
        ]
    return "---\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True) + "---\n\n"


def _size_category(rows: int) -> str:
    return next((name for bound, name in _SIZES if rows < bound), "n>1T")


def _composition(manifest: ShardManifest) -> str:
    total = max(1, _total(manifest, "tokens"))
    columns = ("documents", "rows", "tokens", "utf8_bytes")
    rows = [
        (s.name, *(s.total(column) for column in columns), f"{s.total('tokens') / total:.2%}") for s in manifest.streams
    ]
    table = _table(("stream", "documents", "rows", "tokens", "bytes of text", "share of tokens"), rows)
    packing = manifest.packing
    return (
        f"{table}\n\nA stream is domain / role / language / weight bucket / split. Packing: {packing.policy}; "
        f"{packing.documents_cut:,} documents lie in more than one row, {packing.dropped_tokens:,} tokens dropped; "
        f"{_total(manifest, 'padding_tokens'):,} positions are padding."
    )


def _plan(facts: CardFacts) -> str:
    rows = [
        (name, f"{entry['share']:.2%}", f"{entry['epochs']:.2f}", _row_or_never(entry["first_repeat_row"]))
        for name, entry in sorted(facts.plan.items())
    ]
    return _table(("domain", "share of predicted tokens", "epochs", "first repeated row"), rows)


def _row_or_never(row: float) -> str:
    return "never" if row < 0 else f"{int(row):,}"


def _sources(facts: CardFacts) -> str:
    if not facts.sources:
        return "Not recorded."
    rows = [(source, domain, role, licence or "see licences") for source, domain, role, licence in facts.sources]
    return _table(("source", "domain", "role", "declared licence"), rows)


def _funnel(facts: CardFacts) -> str:
    if not facts.funnel:
        return "Not recorded."
    return _table(("stage", "documents in", "documents kept", "bytes kept"), facts.funnel)


def _licences(facts: CardFacts) -> str:
    if not facts.licences:
        return "Not recorded: ask who made this data set before you publish it."
    rows = [
        (domain, licence, tokens)
        for domain, found in sorted(facts.licences.items())
        for licence, tokens in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ]
    return _table(("domain", "licence as its source states it", "tokens"), rows)


def _tokenizer(manifest: ShardManifest) -> str:
    info = manifest.tokenizer
    return (
        f"{info.vocab_size:,} ids as {manifest.dtype_name}, little-endian; end of document {info.eos_id}, padding "
        f"{info.pad_id}. sha256 of tokenizer.json: `{info.sha256}`."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else _plain(str(value))


def _plain(text: str) -> str:
    """Keep a name from a source from being Markdown or HTML."""
    flat = " ".join(text.split())
    for sign in "\\`|<>[]*_#":
        flat = flat.replace(sign, f"&#{ord(sign)};" if sign in "|<>" else f"\\{sign}")
    return flat


def _total(manifest: ShardManifest, column: str) -> int:
    return sum(stream.total(column) for stream in manifest.streams)
