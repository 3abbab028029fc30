"""``refinery export``: shards in the layout of another trainer. Parse, call, show."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

export_app = typer.Typer(help="Write shards in the layout of another trainer.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON value instead of text")]


@export_app.command("megatron")
def export_megatron(
    manifest: Path,
    out: Path,
    plan: Annotated[str, typer.Option(help="name of the mix plan whose stages become blends")] = "main",
    json_: AsJson = False,
) -> None:
    """Merge each stream into one Megatron .bin/.idx prefix and write the blend."""
    from refinery.shards.export_megatron import export_megatron as export  # noqa: PLC0415
    from refinery.shards.plan import load_plan  # noqa: PLC0415
    from refinery.shards.verify import verify_dataset  # noqa: PLC0415

    root = _root(manifest)
    written = export(root, verify_dataset(root), out, load_plan(root / "plan" / f"{plan}.json"))
    facts = {"out": str(out), "prefixes": {n: str(p) for n, p in written.prefixes.items()}}
    _show({**facts, "blends": [str(path) for path in written.blends]}, json_, f"written to {out}")


@export_app.command("hf-parquet")
def export_parquet(manifest: Path, out: Path, json_: AsJson = False) -> None:
    """Write rows and the documents inside them as Parquet, with a card that the datasets library reads."""
    from refinery.shards.card import facts_of  # noqa: PLC0415
    from refinery.shards.export_parquet import export_parquet as export  # noqa: PLC0415
    from refinery.shards.verify import verify_dataset  # noqa: PLC0415

    root = _root(manifest)
    data = verify_dataset(root)
    written = export(root, data, out, facts_of(data))
    files = {name: [str(path) for path in paths] for name, paths in written.files.items()}
    _show({"out": str(out), "files": files}, json_, f"written to {out}")


def _root(manifest: Path) -> Path:
    return manifest.parent if manifest.name.endswith(".json") else manifest


def _show(value: Any, as_json: bool, text: str) -> None:
    sys.stdout.write((json.dumps(value, indent=1, ensure_ascii=False) if as_json else text) + "\n")
