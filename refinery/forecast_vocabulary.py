"""What a vocabulary costs in parameters, for every preset of the trainer."""

from __future__ import annotations

from typing import Any

from refinery.trainer.presets import all_presets, preset_model


def vocabulary_costs(vocab_size: int) -> list[dict[str, Any]]:
    """Return per preset the parameters of the embedding and its share of the whole model, smallest model first."""
    rows = []
    for name in all_presets():
        model = preset_model(name, vocab_size)
        share = round(model.num_embedding_params / model.num_params, 6)
        row = {"preset": name, "vocabulary_params": model.num_embedding_params, "num_params": model.num_params}
        rows.append({**row, "frac": share})
    return sorted(rows, key=lambda row: (row["num_params"], row["preset"]))
