"""``refinery health``: examine a vocabulary on text. Parse, call, show."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from refinery.stages.examine import Sample


def health(  # noqa: PLR0913, PLR0917 - typer reads a command's options from its parameters
    tokenizer: Annotated[
        Path, typer.Argument(metavar="TOKENIZER", help="folder of a tokenizer, or its tokenizer.json")
    ],
    run: Annotated[Path | None, typer.Option(help="folder of a run: its held-out text")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="JSON lines to examine it on, packed or not")] = None,
    text_field: Annotated[str, typer.Option(help="field of the text")] = "text",
    domain_field: Annotated[str, typer.Option(help="field of the domain")] = "domain",
    lang_field: Annotated[str, typer.Option(help="field of the language")] = "lang",
    max_bytes: Annotated[int, typer.Option(min=1, help="of text, per domain and language")] = 2_000_000,
    reference: Annotated[list[Path] | None, typer.Option(help="another tokenizer, on the same text")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for health.json and health.html")] = None,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON value instead of text")] = False,
) -> None:
    """Examine a vocabulary: compression, Chinese, tokens nobody uses, beside other vocabularies."""
    from refinery.forecast_vocabulary import vocabulary_costs  # noqa: PLC0415
    from refinery.report.tokenizer_page import write_health  # noqa: PLC0415
    from refinery.stages.examine import examine, texts_of_files, texts_of_run  # noqa: PLC0415

    samples: Iterator[Sample] | Sequence[Sample]
    if run is not None:
        samples = texts_of_run(str(run))
    else:
        fields = (text_field, domain_field, lang_field)
        samples = texts_of_files([str(path) for path in text or []], fields, max_bytes)
    report = examine(tokenizer, samples, reference or [])
    costs = vocabulary_costs(report["tokenizer"]["vocab_size"])
    body = write_health(out, report, costs) if out is not None else {**report, "parameter_costs": costs}
    if json_:
        sys.stdout.write(json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        return
    lines = [f"{body['tokenizer']['name']}: {body['tokenizer']['vocab_size']:,} tokens, {body['verdict']['word']}"]
    lines += [f"  {reason}" for reason in body["verdict"]["reasons"]]
    lines += [
        f"  {row['domain']}, {row['language']}: {row['bytes_per_token']:.3f} bytes per token"
        for row in body["by_domain_and_language"]
        if row["bytes_per_token"]
    ]
    lines += [f"  {row['name']}: {row['bytes_per_token']:.3f} bytes per token" for row in body["references"]]
    sys.stdout.write("\n".join(lines) + "\n")
