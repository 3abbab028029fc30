"""select: what the weights say about the choice, and what the choice did."""

from __future__ import annotations

import base64
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import CountRow
from refinery.errors import DataError
from refinery.io import parts as part_files
from refinery.io.survivors import keep_mask, read_labels
from refinery.kernels import dsir
from refinery.recipe import Mix
from refinery.stages.budget_cut import KeyColumns, budget_limits
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.quality_scores import score_keys
from refinery.stages.select_weights import GROUP, STAGE, SelectTask, sides_of, survivors_of
from refinery.stages.workspace import Run

NUM_NGRAMS = 20
NAMING_PARTS = 8
NAMING_BYTES = 1_000_000
"""Text of each side that names buckets, per part."""
_UNKNOWN = ("", "und")
_LACKING_FRAC = 0.1


def check_languages(task: SelectTask, counts: Sequence[CountRow]) -> list[str]:
    """Compare the languages of targets and pool; return warnings about those that the pool lacks.

    Raises:
        DataError: the pool has no document in any language of a target.
    """
    pool = {c.lang for c in counts if c.kind == "kept" and c.role == "pool" and c.split == "train"}
    told = []
    for name in task.targets:
        sizes: dict[str, int] = {}
        for c in counts:
            if c.kind == "kept" and c.role == "target" and c.domain == name and c.split == "train":
                sizes[c.lang] = sizes.get(c.lang, 0) + c.bytes
        if not sizes:
            raise DataError(
                f"target {name} has 0 training documents after the stages before; loosen those or add target text"
            )
        known = {lang for lang in sizes if lang not in _UNKNOWN}
        if len(known) < len(sizes) or pool & set(_UNKNOWN):
            continue
        if not known & pool:
            raise DataError(
                f"target {name} is in {', '.join(sorted(known))}, the pool in {', '.join(sorted(pool)) or 'nothing'}: "
                "no document of it can be like the target; add pool text in that language, or another target"
            )
        total = sum(sizes.values())
        told += [
            f"{sizes[lang] / total:.0%} of target {name} is in {lang}, of which the pool has nothing"
            for lang in sorted(known - pool)
            if sizes[lang] >= _LACKING_FRAC * total
        ]
    return told


def check_budget(task: SelectTask, weighed: Sequence[Mapping[str, Any]], budget: int, mix: Mix | None) -> list[str]:
    """Compare the budget with the pool.

    Returns: a warning where all of the pool is kept.

    Raises:
        DataError: the pool cannot give what is wanted, with the numbers and what would do.
    """
    docs, size = sum(r["docs"] for r in weighed), sum(r["bytes"] for r in weighed)
    short = sum(r["short"] for r in weighed)
    left_out = f" ({short} more are under min_words {task.settings['min_words']})" if short else ""
    if not docs:
        raise DataError(f"select found 0 pool documents to choose from{left_out}; loosen the stages before")
    if task.settings["keep_docs"] is not None:
        if budget > docs:
            raise DataError(
                f"select.keep_docs is {budget}, the pool has {docs} documents{left_out}; lower keep_docs or add text"
            )
        return []
    if budget <= size or task.settings["keep_frac"] is not None:
        return []
    oversample = task.settings["oversample"]
    epochs = max((mix.max_epochs or {}).values(), default=4.0) if mix is not None else 1.0
    epochs = max(epochs, 4.0)
    needed = budget / oversample / epochs
    if needed > size:
        raise DataError(
            f"the mix reads about {budget / oversample:.4g} bytes of the pool, which has {size} in {docs} "
            f"documents{left_out}: more than {epochs:g} epochs; lower mix.budget_tokens by a factor of "
            f"{needed / size:.2f}, give the pool's domains a smaller share, or add text"
        )
    return [
        f"the pool has {size} bytes, {budget} were wanted ({oversample:g} times what the mix reads): everything is "
        "kept, select changes nothing; lower oversample or set keep_frac"
    ]


def placed_knots(task: SelectTask, weighed: Sequence[Mapping[str, Any]]) -> dict[str, tuple[bytes, bytes]]:
    """Return for each target which share-weighted amount stands before a key, at up to 4,096 keys."""
    knots = {}
    for name, share in task.targets.items():
        keys = np.concatenate([np.frombuffer(base64.b64decode(r[f"keys:{name}"]), dtype=np.uint64) for r in weighed])
        sizes = np.concatenate([np.frombuffer(base64.b64decode(r[f"sizes:{name}"]), dtype=np.int64) for r in weighed])
        if not len(keys):
            raise DataError(
                f"no pool document is nearest to target {name}, which should get {share:.0%} of the choice; leave it "
                "out, or add pool text like it"
            )
        amounts = np.ones(len(keys)) if task.settings["keep_docs"] is not None else sizes.astype(np.float64)
        order = np.lexsort((amounts, keys))
        places = np.cumsum(amounts[order]) / share / task.sample_rate
        chosen = np.unique(np.linspace(0, len(order) - 1, min(len(order), 4096)).astype(np.int64))
        knots[name] = keys[order][chosen].tobytes(), places[chosen].tobytes()
    return knots


def name_part(task: SelectTask, buckets: Mapping[str, list[int]], part: int) -> dict[str, Any]:
    """Name buckets by a part's text: attracting ones by targets, repelling ones by the pool."""
    found: dict[str, dict[str, list[Any]]] = {}
    left = dict.fromkeys(buckets, NAMING_BYTES)
    for piece in survivors_of(task, part, ["role", "domain", "split", "text"]):
        masks = sides_of(task, piece.table)
        for side, wanted in buckets.items():
            rows = np.flatnonzero(masks[side])
            sizes = pc.binary_length(piece.table.column("text")).to_numpy()[rows]
            num = int(np.searchsorted(np.cumsum(sizes), left[side]))
            mask = np.zeros(len(piece.rows), dtype=bool)
            mask[rows[: num + 1]] = True
            if left[side] <= 0 or not mask.any():
                continue
            left[side] -= int(sizes[: num + 1].sum())
            views, *boundaries = task.words(piece, mask)
            arguments = np.array(wanted, dtype=np.int64), task.settings["num_buckets"], 3
            named = task.features().bucket_words(views, *arguments, *boundaries)
            for bucket, ngrams in named.items():
                found.setdefault(side, {}).setdefault(str(bucket), []).extend(ngrams)
    return {"names": found}


def strongest_ngrams(run_: Run, task: SelectTask, counts: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the n-grams that pull documents hardest towards each target or away from it."""
    parts = sorted(task.upstream)
    chosen = parts[:: -(-len(parts) // NAMING_PARTS) or 1]
    rows: list[dict[str, Any]] = []
    wanted: dict[str, list[int]] = {}
    for name in task.targets:
        strong = dsir.strongest_buckets(counts[f"target:{name}"], counts["raw"], len(counts["raw"]))
        ranked = list(zip(*(a.tolist() for a in strong), strict=True))
        up = [row for row in ranked if row[2] > 0][: NUM_NGRAMS // 2]
        down = [row for row in ranked if row[2] < 0][: NUM_NGRAMS // 2]
        for bucket, pull, ratio in [*up, *down]:
            side = f"target:{name}" if ratio > 0 else "raw"
            wanted.setdefault(side, []).append(bucket)
            figures = {"pull": round(pull, 5), "log_ratio": round(ratio, 3)}
            rows.append({"target": name, "bucket": bucket, "of": side, **figures})
    named = run_part_tasks(run_.spark, chosen, functools.partial(name_part, task, wanted))
    totals: dict[tuple[str, int], Counter[str]] = {}
    for result in named:
        for side, found in result["names"].items():
            for bucket, ngrams in found.items():
                counter = totals.setdefault((side, int(bucket)), Counter())
                for ngram, times in ngrams:
                    counter[ngram] += times
    for row in rows:
        counter = totals.get((row.pop("of"), row.pop("bucket")), Counter())
        row["ngrams"] = [n for n, _ in sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:3]]
    return rows


def weight_facts(
    task: SelectTask, weighed: Sequence[Mapping[str, Any]], counts: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return effective sample size, quantiles, the share of the heaviest 1 % and warnings."""
    sample = np.concatenate([np.frombuffer(base64.b64decode(r["sample"])) for r in weighed])
    moments = [r["moments"] for r in weighed]
    whole = int(sum(m[0] for m in moments)), dsir.effective_sample_size(moments)
    fewest = min((int(counts[f"target:{name}"].sum()) for name in task.targets), default=0)
    size = task.settings["num_buckets"]
    pseudo = fewest if task.settings["target_pseudo_count"] == 0 else None
    found = dsir.diagnose(sample, pseudo, size, whole)._asdict()
    found["log_weight_quantiles"] = {str(k): v for k, v in found["log_weight_quantiles"].items()}
    return found


def choice_facts(
    task: SelectTask, decided: Sequence[Mapping[str, Any]], counts: Mapping[str, np.ndarray], selected: np.ndarray
) -> dict[str, Any]:
    """Return KL reduction, and what each target got.

    Raises:
        DataError: nothing was kept.
    """
    if not selected.sum():
        raise DataError("select kept no pool document; raise keep_frac, keep_docs or the mix's budget")
    wanted = sum(
        share * counts[f"target:{name}"] / counts[f"target:{name}"].sum() for name, share in task.targets.items()
    )
    picked = {name: [sum(r["picked"][name][i] for r in decided) for i in (0, 1)] for name in task.targets}
    total = max(1, sum(size for _, size in picked.values()))
    targets = {
        name: {"share": share, "docs": picked[name][0], "bytes": picked[name][1], "got": picked[name][1] / total}
        for name, share in task.targets.items()
    }
    told = [
        f"target {name} got {row['got']:.0%} of the choice, {row['share']:.0%} were wanted: the pool holds too little "
        "like it"
        for name, row in targets.items()
        if len(targets) > 1 and row["got"] < 0.9 * row["share"] and task.settings["keep_docs"] is None
    ]
    reduction = dsir.kl_reduction(np.asarray(wanted), counts["raw"], selected)
    return {"kl_reduction": reduction, "targets": targets, "warnings": told}


def quality_overlap(run_: Run, task: SelectTask) -> dict[str, Any] | None:
    """Return how many of the picks the quality scores would have picked at the same number; None without scores."""
    if "quality" not in task.upto:
        return None
    parts = sorted(task.upstream)
    counted = run_part_tasks(run_.spark, parts, functools.partial(overlap_part, task, -1))
    picked, docs = sum(r["picked"] for r in counted), sum(r["docs"] for r in counted)
    if not picked:
        return None
    limits = budget_limits(run_.spark, parts, functools.partial(_quality_columns, task), {GROUP: picked})
    both = run_part_tasks(run_.spark, parts, functools.partial(overlap_part, task, limits[GROUP]))
    return {
        "picked_docs": picked,
        "both_frac": round(sum(r["both"] for r in both) / picked, 4),
        "chance_frac": round(picked / docs, 4),
    }


def _quality_columns(task: SelectTask, part: int) -> KeyColumns:
    keys, _ = _scored(task, part)
    return KeyColumns(np.full(len(keys), GROUP, dtype=object), keys, np.ones(len(keys), dtype=np.int64))


def _scored(task: SelectTask, part: int) -> tuple[np.ndarray, np.ndarray]:
    """Return quality keys and "picked by select" of the documents that both know."""
    scores = part_files.read_part(task.workdir, "quality", "quality", part, ["score"]).column("score").to_numpy()
    orders = part_files.read_part(task.workdir, STAGE, "importance", part, ["order_key"]).column("order_key")
    documents = read_labels(task.workdir, part, ["split", "domain"], task.upto)
    entered = keep_mask(task.workdir, part, documents.num_rows, task.upto)
    exempt = pc.is_in(documents.column("domain"), pa.array(task.settings["exempt_domains"], pa.string()))
    mine = entered & orders.is_valid().to_numpy(zero_copy_only=False) & ~np.isnan(scores)
    mine &= pc.equal(documents.column("split"), "train").to_numpy(zero_copy_only=False)
    mine &= ~exempt.to_numpy(zero_copy_only=False)
    picked = orders.fill_null(0).to_numpy().view(np.uint64) <= np.uint64(task.limit)
    return score_keys(scores[mine]), picked[mine]


def overlap_part(task: SelectTask, limit: int, part: int) -> dict[str, Any]:
    """Count one part's picks, and those whose quality key is within the limit too."""
    keys, picked = _scored(task, part)
    both = int((picked & (keys <= np.uint64(limit))).sum()) if limit >= 0 else 0
    return {"docs": len(keys), "picked": int(picked.sum()), "both": both}
