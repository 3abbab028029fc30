"""Where a run's vocabulary comes from: trained on its sample, taken as given, or a given one with tokens added."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refinery.contracts.manifest import canonical_json, fingerprint_of
from refinery.errors import ConfigError
from refinery.hashing import sha256_hex
from refinery.io import storage
from refinery.recipe import Recipe
from refinery.tokenization.extend import extend_bpe
from refinery.tokenization.info import adopt_tokenizer, read_definition, tokenizer_folder
from refinery.tokenization.recipe import TokenizerRecipe, load_recipe
from refinery.tokenization.train import CountedSample, train_counted


@dataclass(frozen=True)
class Origin:
    """What a vocabulary is made of."""

    recipe: TokenizerRecipe | None
    """Trained by this recipe."""
    folder: Path | None
    """Or taken from here,"""
    add: int
    """with so many tokens added."""
    sample_bytes: int
    """Text that training or extending reads; 0 for a vocabulary taken as it is."""
    identity: dict[str, Any]
    """The recipe slice that the vocabulary is a function of."""


def origin_of(recipe: Recipe) -> Origin:
    """Return where the recipe's vocabulary comes from.

    Raises:
        ConfigError: no tokenizer section, or what it names is missing.
    """
    given = recipe.tokenizer
    if given is None:
        raise ConfigError("the recipe has no tokenizer section; add `tokenizer: {train: ...}`, path or extend")
    shares = [s.model_dump(mode="json") for s in recipe.mix.stages] if recipe.mix else []
    drawn = {"shares": shares, "seed": recipe.seed}
    if given.train is not None:
        made = load_recipe(given.train)
        plain = json.loads(canonical_json(made.model_dump(mode="json")))
        return Origin(made, None, 0, made.sample_bytes, {"train": plain, **drawn})
    folder = tokenizer_folder(str(given.path or given.extend))
    sha256 = sha256_hex(read_definition(folder))
    if given.path is not None:
        return Origin(None, folder, 0, 0, {"path_sha256": sha256})
    added = {"extend_sha256": sha256, "add": given.add, "sample_bytes": given.sample_bytes}
    return Origin(None, folder, given.add or 0, given.sample_bytes, {**added, **drawn})


def make_vocabulary(
    folder: Path,
    origin: Origin,
    counted: Callable[[TokenizerRecipe], CountedSample],
    texts: Callable[[], Iterator[str]],
    sample_print: str,
) -> None:
    """Make the vocabulary in `folder`; one that stands there and was made of the same things stays.

    Args:
        folder: where ``tokenizer.json`` goes.
        origin: what it is made of.
        counted: counts the sample's pretokens, for a recipe.
        texts: yields the sample's documents, for extending.
        sample_print: fingerprint of the sample.
    """
    if origin.recipe is None and not origin.add:
        adopt_tokenizer(str(origin.folder), folder)
        return
    marker = folder / "_fingerprint"
    wanted = fingerprint_of(sample_print, origin.identity)
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return
    marker.unlink(missing_ok=True)
    if origin.recipe is not None:
        train_counted(counted(origin.recipe), origin.recipe, folder)
    else:
        base = folder.with_name("base_tokenizer")
        adopt_tokenizer(str(origin.folder), base)
        extend_bpe(base, texts(), origin.add, folder)
    storage.write_atomic(str(marker), wanted.encode())
