"""A forecast in words: the line at a run's start, the table of a dry run, the line that compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refinery.forecast import Forecast, size_text


def duration_text(seconds: float) -> str:
    """Return seconds as people read them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def short_text(found: Forecast) -> str:
    """Return what is said when a run starts: one line, and one per warning."""
    standing = sum(row.stands for row in found.stages)
    unknown = [row.stage for row in found.stages if row.seconds is None and not row.stands]
    time_ = f"{duration_text(found.seconds)} on {found.num_cores} core{'s' if found.num_cores > 1 else ''}"
    free = f" of {size_text(found.free_disk_bytes)} free" if found.free_disk_bytes is not None else ""
    time_ += f" (load of others: {found.load_factor:.1f} times as long)" if found.load_factor >= 1.2 else ""
    also = f" and {', '.join(unknown)}" if unknown else ""
    line = (
        f"forecast: {size_text(found.text_bytes)} of text in {found.num_parts} parts, about "
        f"{found.tokens / 1e6:,.1f} M tokens; {time_}{also}, disk {size_text(found.disk_bytes)}{free}, memory "
        f"{size_text(found.memory_bytes)} of {size_text(found.free_memory_bytes)} free"
    )
    if standing:
        line += f"; {standing} of {len(found.stages)} stages stand"
    return "\n".join([line, *(f"warning: {warning}" for warning in found.warnings)])


def full_text(found: Forecast) -> str:
    """Return the table that a dry run shows."""
    lines = [f"{'stage':<16} {'time':>8} {'disk':>10}  state"]
    sources: dict[str, list[str]] = {}
    for row in found.stages:
        seconds = "unknown" if row.seconds is None else duration_text(found.load_factor * row.seconds)
        state = "complete" if row.stands else "to do"
        lines.append(f"{row.stage:<16} {seconds:>8} {size_text(row.disk_bytes):>10}  {state}")
        sources.setdefault(row.source, []).append(row.stage)
    lines += [f"figures of {', '.join(names)}: {source}" for source, names in sources.items()]
    memory = (
        f"memory: {size_text(found.driver_memory_bytes)} driver, {size_text(found.task_memory_bytes)} per part task, "
        f"largest part {size_text(found.largest_part_bytes)}"
    )
    if found.train_tokens is not None:
        memory += f"; training reads {found.train_tokens / 1e6:,.1f} M tokens"
    lines += [memory]
    if found.eval_index is not None:
        index = found.eval_index
        lines.append(
            f"evals: {index.num_items:,} texts with at most {index.num_ngrams:,} n-grams; their index takes "
            f"{size_text(index.index_bytes)} in every process that scans (table {size_text(index.table_bytes)}, "
            f"prefilter {size_text(index.bitmap_bytes)}), {size_text(index.process_bytes)} while it is built"
        )
    return "\n".join([*lines, short_text(found)])


def actual_text(actual: Mapping[str, Any]) -> str:
    """Return the line that compares forecast and run; empty if nothing was done."""
    rows = {name: row for name, row in actual["stages"].items() if row["forecast_seconds"] is not None}
    if not actual["stages"]:
        return ""
    line = (
        f"forecast {duration_text(actual['forecast_seconds'])}, took {duration_text(actual['seconds'])}; "
        f"disk {size_text(actual['forecast_disk_bytes'])} forecast, {size_text(actual['disk_bytes'])} used"
    )
    if rows:
        worst = max(rows, key=lambda name: abs(rows[name]["seconds"] - rows[name]["forecast_seconds"]))
        predicted = duration_text(rows[worst]["forecast_seconds"])
        line += f"; furthest off: {worst}, {predicted} forecast, {duration_text(rows[worst]['seconds'])} taken"
    return line
