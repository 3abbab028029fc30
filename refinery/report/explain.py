"""One document's way through a run: where it came from, what every stage said about it, and where it lies now."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest
from refinery.contracts.tables import PART_SHIFT
from refinery.errors import ConfigError
from refinery.hashing import key_prefix_uint64
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.recipe import STAGE_ORDER
from refinery.report.contained import contained_lines, contained_of
from refinery.report.cut_samples import WHOLE_TEXT_CHARS
from refinery.report.document_signals import Signals, signal_lines, signals_of
from refinery.report.found_lines import found_lines, line_texts
from refinery.report.hit_samples import hits_of
from refinery.report.samples import LEFT, RuleBound, Sample, find_keys, read_texts, rule_bounds, word_diff
from refinery.report.telling_line import telling_lines
from refinery.report.visible import number, plain, size
from refinery.shards.manifest import load_manifest
from refinery.shards.reader import ShardReader
from refinery.stages.workspace import load_stage, need_stage

MIN_PREFIX_CHARS = 6
MAX_NAMED_KEYS = 5
MAX_NAMED_ROWS = 8
EXCERPT_CHARS = 400
_FIGURES = {"screen": "language", "quality": "quality", "select": "importance"}
"""Stage -> aligned table of the numbers on which it decides; rules have their own bounds."""
_SEGMENT_ROWS = 65_536
_DIFF_CHARS = 6000
_TELLING_CHARS = 200_000
_KEY = re.compile(r"[0-9a-f]+")
_ROW_MASK = (1 << PART_SHIFT) - 1


def explain(workdir: str, doc_key: str) -> dict[str, Any]:
    """Return everything that a run knows about one document.

    Args:
        workdir: the run's folder.
        doc_key: key of a document, or its first digits (at least `MIN_PREFIX_CHARS`) if they are its alone.

    Returns: JSON-able values: identity and place, ``outcome`` (kept | dropped), ``dropped_at``, ``reason``, ``stages``
        (one verdict each), ``twin`` for a removed duplicate, ``num_tokens``, ``stream``, and ``rows`` of shards.

    Raises:
        ConfigError: no such key (near ones are named), several keys begin so, or nothing has been ingested.
        IntegrityError: a table is missing or damaged.
    """
    ingest = need_stage(workdir, "ingest")
    manifests = {s: m for s in STAGE_ORDER if s != "report" and (m := load_stage(workdir, s)) is not None}
    doc_id, key = find_document(workdir, ingest, doc_key)
    told = _identity(workdir, doc_id)
    verdicts = [_verdict(workdir, m, doc_id) for m in manifests.values() if m.part_hashes("decisions")]
    dropped = next((v for v in verdicts if v["verdict"] == "dropped"), None)
    told |= {
        "outcome": "dropped" if dropped else "kept",
        "dropped_at": dropped["stage"] if dropped else None,
        "reason": dropped["reason"] if dropped else None,
        "stages": verdicts,
        "not_run": [s for s in ("tokenize", "mix", "pack") if s not in manifests],
        "cuts": _cuts(workdir, manifests, doc_id),
        "lines": _lines(workdir, manifests, doc_id),
        "hits": hits_of(workdir, doc_id),
        "contained": contained_of(workdir, manifests, doc_id),
        "num_tokens": _value(workdir, manifests, ("tokenize", "tokens", "num_tokens"), doc_id),
        "stream": _value(workdir, manifests, ("mix", "selection", "stream"), doc_id),
        "cluster": _cluster(workdir, doc_id),
        "twin": None,
        "rows": [],
    }
    if dropped and dropped["because_of"]:
        told["twin"] = _twin(workdir, ingest, doc_id, dropped["because_of"])
    if told["stream"] and "pack" in manifests:
        told["rows"] = shard_rows(workdir, told["stream"], key)
    return told


def find_document(workdir: str, ingest: StageManifest, doc_key: str) -> tuple[int, str]:
    """Return (doc_id, full doc_key) of a key or a prefix that one key alone has.

    Raises:
        ConfigError: as `explain`.
    """
    wanted = doc_key.strip().lower()
    if len(wanted) < MIN_PREFIX_CHARS or not _KEY.fullmatch(wanted):
        raise ConfigError(
            f"{plain(doc_key)!r} is no document key; give at least {MIN_PREFIX_CHARS} of its hexadecimal digits, "
            "as the report shows them"
        )
    found: list[tuple[int, str]] = []
    near: list[str] = []
    for part in sorted(ingest.part_hashes("documents")):
        table = part_files.read_part(workdir, "ingest", "documents", part, ["doc_id", "doc_key"])
        close = table.filter(pc.starts_with(table.column("doc_key"), wanted[: MIN_PREFIX_CHARS - 2]))
        for doc_id, key in zip(close.column("doc_id").to_pylist(), close.column("doc_key").to_pylist(), strict=True):
            if key == wanted:
                return doc_id, key
            if key.startswith(wanted):
                found.append((doc_id, key))
            else:
                near.append(key)
    if len(found) == 1:
        return found[0]
    if found:
        named = ", ".join(sorted(key for _, key in found)[:MAX_NAMED_KEYS])
        raise ConfigError(f"{len(found)} documents have keys that begin with {wanted}: {named}; give more digits")
    hint = f"; near: {', '.join(sorted(near)[:MAX_NAMED_KEYS])}" if near else ""
    raise ConfigError(
        f"no document has the key {wanted} in {workdir}{hint}; keys stand in the report and in .seg files"
    )


def _identity(workdir: str, doc_id: int) -> dict[str, Any]:
    part, row = doc_id >> PART_SHIFT, doc_id & _ROW_MASK
    columns = ["doc_key", "source", "domain", "role", "split", "lang", "url", "date", "license", "text_hash"]
    columns += ["num_bytes", "num_chars"]
    table = part_files.read_part(workdir, "ingest", "documents", part, columns).slice(row, 1)
    [sample] = read_texts(workdir, [Sample(doc_id, "", "")], EXCERPT_CHARS)
    place = {"doc_id": doc_id, "part": part, "row": row}
    return {**table.to_pylist()[0], **place, "excerpt": sample.excerpt, "excerpt_is_whole": not sample.shortened}


def _verdict(workdir: str, manifest: StageManifest, doc_id: int) -> dict[str, Any]:
    part, row = doc_id >> PART_SHIFT, doc_id & _ROW_MASK
    columns = ["keep", "drop_reason", "rule_bits", "because_of"]
    table = part_files.read_part(workdir, manifest.stage, "decisions", part, columns)
    [values] = table.slice(row, 1).to_pylist()
    verdict = {True: "kept", False: "dropped", None: "not asked"}[values["keep"]]
    signals = signals_of(workdir, doc_id) if manifest.stage == "rules" else {}
    rules = _rules(workdir, manifest, doc_id, values["rule_bits"], signals) if manifest.stage == "rules" else []
    return {
        "stage": manifest.stage,
        "verdict": verdict,
        "reason": values["drop_reason"],
        "because_of": values["because_of"],
        "rules": rules,
        "figures": _figures(workdir, manifest.stage, doc_id),
        "signals": signals,
    }


def _rules(
    workdir: str, manifest: StageManifest, doc_id: int, bits: int, signals: Signals
) -> list[dict[str, Any]]:
    """Return every rule that would remove the document, with the signal's value beside the bounds."""
    part, row = doc_id >> PART_SHIFT, doc_id & _ROW_MASK
    domain = part_files.read_part(workdir, "ingest", "documents", part, ["domain"]).column("domain")[row].as_py()
    hit = [bound for index, bound in enumerate(rule_bounds(manifest, domain)) if bits >> index & 1]
    if not hit:
        return []
    [sample] = read_texts(workdir, [Sample(doc_id, "", "")], _TELLING_CHARS)
    telling = telling_lines(sample.excerpt, hit)
    return [
        {
            "rule": bound.name,
            "signal": bound.signal,
            "value": signals.get(_judged(bound), {}).get(bound.signal),
            "judged": _judged(bound),
            "min": bound.min,
            "max": bound.max,
            "citation": bound.citation,
            "line": None if line is None else {"number": line[0], "text": line[1]},
        }
        for bound, line in zip(hit, telling, strict=True)
    ]


def _judged(bound: RuleBound) -> str:
    return "left" if bound.table == LEFT else "whole"


def _figures(workdir: str, stage: str, doc_id: int) -> dict[str, Any]:
    """Return what a stage measured of the document, where it keeps a table of that."""
    table, part = _FIGURES.get(stage, ""), doc_id >> PART_SHIFT
    if not table or not storage.exists(part_files.part_path(workdir, stage, table, part)):
        return {}
    row = part_files.read_part(workdir, stage, table, part).slice(doc_id & _ROW_MASK, 1).to_pylist()[0]
    return {name: value for name, value in row.items() if name != "doc_id" and value is not None}


def _cuts(workdir: str, stages: Iterable[str], doc_id: int) -> list[dict[str, Any]]:
    """Return what stages cut out of the document, with the text that went."""
    part = doc_id >> PART_SHIFT
    found: list[dict[str, Any]] = []
    for stage in stages:
        if storage.exists(part_files.part_path(workdir, stage, "cuts", part)):
            table = part_files.read_part(workdir, stage, "cuts", part)
            found += table.filter(pc.equal(table.column("doc_id"), doc_id)).drop_columns(["doc_id"]).to_pylist()
    if found:
        [sample] = read_texts(workdir, [Sample(doc_id, "", "")], WHOLE_TEXT_CHARS)
        text = sample.excerpt.encode()
        for cut in found:
            cut["text"] = text[cut["start"] : cut["end"]].decode("utf-8", "ignore")[:EXCERPT_CHARS]
    return found


def _lines(workdir: str, manifests: Mapping[str, StageManifest], doc_id: int) -> list[dict[str, Any]]:
    """Return the lines on which line rules fired, whether or not the document stays."""
    rules = manifests.get("rules")
    if rules is None or not rules.part_hashes("line_findings"):
        return []
    [sample] = read_texts(workdir, [Sample(doc_id, "", "")], WHOLE_TEXT_CHARS)
    return found_lines(workdir, rules, doc_id, sample.excerpt.encode())


def _value(workdir: str, manifests: Mapping[str, StageManifest], place: tuple[str, str, str], doc_id: int) -> Any:
    stage, table, column = place
    if stage not in manifests:
        return None
    values = part_files.read_part(workdir, stage, table, doc_id >> PART_SHIFT, [column]).column(column)
    return values[doc_id & _ROW_MASK].as_py()


def _cluster(workdir: str, doc_id: int) -> dict[str, Any] | None:
    part = doc_id >> PART_SHIFT
    if not storage.exists(part_files.part_path(workdir, "dedup_documents", "clusters", part)):
        return None
    columns = ["doc_id", "cluster_id", "size", "representative", "jaccard"]
    table = part_files.read_part(workdir, "dedup_documents", "clusters", part, columns)
    rows = table.filter(pc.equal(table.column("doc_id"), doc_id)).drop_columns(["doc_id"]).to_pylist()
    return rows[0] if rows else None


def _twin(workdir: str, ingest: StageManifest, doc_id: int, twin_key: str) -> dict[str, Any]:
    cluster = _cluster(workdir, doc_id)
    told: dict[str, Any] = {"doc_key": twin_key, "jaccard": cluster["jaccard"] if cluster else None}
    home, place = _home_of(workdir, ingest, doc_id, twin_key)
    if place is None:
        return told
    mine = read_texts(workdir, [Sample(doc_id, "", "")], _DIFF_CHARS)[0]
    twin = read_texts(home, [Sample(place, "", "")], _DIFF_CHARS)[0]
    identity = _identity(home, place)
    told |= {name: identity[name] for name in ("doc_id", "source", "url", "split", "num_bytes")}
    told |= {"run": home} if home != workdir else {}
    return {**told, "diff": [list(piece) for piece in word_diff(mine.excerpt, twin.excerpt)]}


def _home_of(workdir: str, ingest: StageManifest, doc_id: int, twin_key: str) -> tuple[str, int | None]:
    """Return (workdir, doc_id) of a twin: in this run, or in one of its index (there it can have the same key)."""
    place = find_keys(workdir, [twin_key], sorted(ingest.part_hashes("documents"))).get(twin_key)
    if place is not None and place != doc_id:
        return workdir, place
    dedup = load_stage(workdir, "dedup_documents")
    for home in dedup.volatile.get("index_runs", []) if dedup is not None else []:
        theirs = load_stage(home, "ingest")
        parts = sorted(theirs.part_hashes("documents")) if theirs is not None else []
        place = find_keys(home, [twin_key], parts).get(twin_key)
        if place is not None:
            return home, place
    return workdir, None


def shard_rows(workdir: str, stream: str, doc_key: str) -> list[dict[str, Any]]:
    """Return where a document's tokens lie: shard part, row of the stream, place and length inside the row."""
    root = storage.local_path(storage.join(workdir, "pack", "shards"))
    manifest = load_manifest(root / "manifest.json")
    if stream not in [s.name for s in manifest.streams]:
        return []
    doc_hash = key_prefix_uint64([doc_key])[0]
    found: list[dict[str, Any]] = []
    with ShardReader(root, manifest) as reader:
        index = reader.stream_index(stream)
        parts = manifest.streams[index].parts
        for first in range(0, manifest.streams[index].rows, _SEGMENT_ROWS):
            rows = np.arange(first, min(first + _SEGMENT_ROWS, manifest.streams[index].rows))
            segments = reader.segments(index, rows)
            ends = np.cumsum(segments.seg_len.astype(np.int64))
            for at in np.flatnonzero((segments.doc_hash == doc_hash) & ~segments.is_padding).tolist():
                row = int(np.searchsorted(segments.row_ptr, at, side="right")) - 1
                start = int(ends[at] - segments.seg_len[at]) - int(np.r_[0, ends][segments.row_ptr[row]])
                part = next(p for p in reversed(parts) if p.first_row <= first + row)
                found.append(
                    {
                        "part": part.path,
                        "row": first + row,
                        "row_of_part": first + row - part.first_row,
                        "first_token": start,
                        "num_tokens": int(segments.seg_len[at]),
                    }
                )
    return found


def explain_text(told: Mapping[str, Any]) -> str:
    """Return an explanation as lines for people."""
    lines = [
        f"document {told['doc_key']}",
        f"  from {told['source']} (domain {told['domain']}, role {told['role']}, split {told['split']}"
        + (f", language {told['lang']})" if told["lang"] else ")"),
        f"  part {told['part']}, row {told['row']}; {size(told['num_bytes'])}, {number(told['num_chars'])} characters"
        + (f"; {told['url']}" if told["url"] else ""),
        f"  begins: {told['excerpt'][:160].strip()!r}",
        "",
    ]
    for verdict in told["stages"]:
        lines += _verdict_lines(verdict)
    lines += [f"  {line}" for line in line_texts(told["lines"])]
    for cut in told["cuts"]:
        if told["lines"] and cut["stage"] == "rules":
            continue  # told line by line
        stays = f", stays in {cut['because_of']}" if cut["because_of"] else ""
        lines.append(f"  cut at bytes {cut['start']} to {cut['end']} ({cut['reason']}{stays}): {cut['text'][:120]!r}")
    for hit in told["hits"]:
        shares = f"{hit['item_covered_frac']:.0%} of the item, {hit['doc_covered_frac']:.0%} of the document"
        place = f"bytes {hit['doc_start']} to {hit['doc_end']}"
        lines.append(f"  holds {hit['eval']} {hit['item']} {hit['field']} at {place} ({shares}): {hit['text'][:120]!r}")
    lines += contained_lines(told["doc_key"], told["contained"])
    lines += ["", *_outcome_lines(told)]
    if told["twin"]:
        lines += _twin_lines(told["twin"])
    return plain("\n".join(lines)).rstrip() + "\n"


def _verdict_lines(verdict: Mapping[str, Any]) -> list[str]:
    word = {"kept": "kept", "dropped": f"dropped: {verdict['reason']}", "not asked": "not asked (left earlier)"}
    lines = [f"  {verdict['stage']:<16} {word[verdict['verdict']]}"]
    figures = [f"{name} {_short(value)}" for name, value in verdict["figures"].items()]
    lines += [f"{'':18} {', '.join(figures)}"] if figures else []
    for rule in verdict["rules"]:
        bounds = [f"at least {rule['min']:g}"] if rule["min"] is not None else []
        bounds += [f"at most {rule['max']:g}"] if rule["max"] is not None else []
        value = "not known" if rule["value"] is None else f"{float(rule['value']):.4g}"
        if rule["signal"] == rule["rule"]:
            lines.append(f"{'':18} {rule['rule']}: {value} lines trip over it, kept is none")
            continue
        of = ", of what line rules left" if rule["judged"] == "left" else ""
        lines.append(f"{'':18} {rule['rule']}: {rule['signal']} is {value}, kept is {' and '.join(bounds)}{of}")
        if rule["line"]:
            lines.append(f"{'':20} line {rule['line']['number']}: {rule['line']['text'].strip()[:120]!r}")
    return lines + signal_lines(verdict["signals"], 18)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _outcome_lines(told: Mapping[str, Any]) -> list[str]:
    if told["outcome"] == "dropped":
        lines = [f"  left at {told['dropped_at']}: {told['reason']}"]
        if told["reason"] in ("mix.over_ceiling", "mix.no_share"):
            lines[0] += " (good text that this token budget does not need)"
    else:
        lines = ["  kept" + (f"; not run yet: {', '.join(told['not_run'])}" if told["not_run"] else "")]
    if told["num_tokens"] is not None:
        lines.append(f"  {number(told['num_tokens'])} tokens")
    if told["stream"]:
        lines.append(f"  in stream {told['stream']}")
    lines += [
        f"    {r['part']} row {r['row_of_part']}: tokens {r['first_token']} to {r['first_token'] + r['num_tokens'] - 1}"
        for r in told["rows"][:MAX_NAMED_ROWS]
    ]
    if len(told["rows"]) > MAX_NAMED_ROWS:
        lines.append(f"    and {number(len(told['rows']) - MAX_NAMED_ROWS)} more pieces")
    cluster = told["cluster"]
    if cluster:
        place = "its representative" if cluster["representative"] else "not its representative"
        lines.append(f"  one of {cluster['size']} in cluster {cluster['cluster_id']}, {place}")
    return lines


def _twin_lines(twin: Mapping[str, Any]) -> list[str]:
    jaccard = f", Jaccard {twin['jaccard']:.3f}" if twin["jaccard"] is not None else ""
    source = f" from {twin['source']} ({twin['split']})" if "source" in twin else ""
    lines = [f"  twin {twin['doc_key']}{source}{jaccard}" + (f", in {twin['run']}" if "run" in twin else "")]
    if "diff" in twin:
        shown: Sequence[str] = [_MARKS[kind].format(text) for kind, text in twin["diff"]]
        lines += ["  words only here [-so-], only in the twin {+so+}:", ""] + ["    " + line for line in
                  "".join(shown).splitlines()]  # fmt: skip
    return lines


_MARKS = {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}", "skipped": " [… {} …] "}
