"""Named model shapes: our own ladder, the 42 sizes of the cross-lingual CPT study, OPT's table, LLaMA's table.

The study's names count neither gated nor plain feed-forwards consistently: with gated blocks, as here, the sizes
without embeddings lie between 0.94 (49M) and 1.27 (4016M) of the name. Take `num_non_embedding_params` for fits.

A preset fixes the shape; the vocabulary comes from the tokenizer. Recommended learning rates and batch sizes stand
beside the shapes with their source.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

from refinery.errors import ConfigError
from refinery.trainer.config import ModelConfig


class Preset(NamedTuple):
    """Shape and the hyper-parameters its source used."""

    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    max_lr: float
    batch_tokens: int
    sequence_length: int
    source: str


_OWN = "own ladder; rates follow OPT's table by size"
_STUDY = "arXiv 2407.02118 Table 4: cosine from 2e-4, warm-up 5%, context 2048, 20 tokens per parameter"
_OPT = "OPT, arXiv 2205.01068 Table 1, with a gated feed-forward of about the same parameters"
_LLAMA = "LLaMA, arXiv 2302.13971 Table 2"

# name: d, layers, heads, kv heads, head_dim, ff, max_lr, batch tokens, context
_LADDER = {
    "tiny": (128, 4, 4, 2, 32, 384, 2e-3, 8_192, 256),
    "50m": (512, 12, 8, 4, 64, 1536, 1e-3, 524_288, 4096),
    "125m": (768, 14, 12, 4, 64, 2048, 6e-4, 524_288, 4096),
    "350m": (1024, 28, 16, 4, 64, 2816, 3e-4, 524_288, 4096),
    "760m": (1536, 28, 12, 4, 128, 4096, 2.5e-4, 524_288, 4096),
    "1.3b": (2048, 28, 16, 4, 128, 5632, 2e-4, 1_048_576, 4096),
    "2.7b": (2560, 38, 20, 4, 128, 6912, 1.6e-4, 1_048_576, 4096),
    "5b": (3584, 36, 28, 4, 128, 9728, 1.4e-4, 2_097_152, 4096),
}

# size in millions as the paper names it: hidden, feed-forward, heads, layers (its 42 rows, all multi-head)
_STUDY_SHAPES = {
    49: (512, 3072, 8, 8), 66: (576, 3584, 9, 9), 86: (640, 3584, 10, 10), 105: (640, 3584, 10, 13),
    125: (640, 3584, 10, 16), 137: (768, 4608, 12, 12), 166: (768, 4608, 12, 15), 194: (768, 4608, 12, 18),
    208: (896, 5120, 14, 14), 234: (896, 5120, 14, 16), 259: (896, 5120, 14, 18), 301: (1024, 5632, 16, 16),
    334: (1024, 5632, 16, 18), 368: (1024, 5632, 16, 20), 512: (1280, 7168, 10, 18), 591: (1280, 7168, 10, 21),
    616: (1408, 7680, 11, 18), 670: (1280, 7168, 10, 24), 711: (1408, 7680, 11, 21), 766: (1536, 8704, 12, 19),
    806: (1408, 7680, 11, 24), 879: (1536, 8704, 12, 22), 992: (1536, 8704, 12, 25), 1085: (1792, 9728, 14, 20),
    1239: (1792, 9728, 14, 23), 1393: (1792, 9728, 14, 26), 1542: (2048, 11264, 16, 22), 1736: (2176, 11776, 17, 22),
    1743: (2048, 11264, 16, 25), 1944: (2048, 11264, 16, 28), 1963: (2176, 11776, 17, 25), 2112: (2304, 12800, 18, 24),
    2191: (2176, 11776, 17, 28), 2452: (2304, 12800, 18, 28), 2791: (2304, 12800, 18, 32), 2808: (2560, 13824, 20, 26),
    3227: (2560, 13824, 20, 30), 3647: (2560, 13824, 20, 34), 4016: (2688, 14848, 22, 34), 4248: (2688, 14848, 21, 36),
    4657: (2816, 15360, 22, 36), 5534: (3072, 16896, 24, 36),
}

# name: layers, heads, d, max_lr, batch tokens
_OPT_SHAPES = {
    "opt-125m": (12, 12, 768, 6e-4, 500_000), "opt-350m": (24, 16, 1024, 3e-4, 500_000),
    "opt-1.3b": (24, 32, 2048, 2e-4, 1_000_000), "opt-2.7b": (32, 32, 2560, 1.6e-4, 1_000_000),
    "opt-6.7b": (32, 32, 4096, 1.2e-4, 2_000_000), "opt-13b": (40, 40, 5120, 1e-4, 4_000_000),
    "opt-30b": (48, 56, 7168, 1e-4, 4_000_000), "opt-66b": (64, 72, 9216, 0.8e-4, 2_000_000),
    "opt-175b": (96, 96, 12288, 1.2e-4, 2_000_000),
}

# name: d, heads, layers, max_lr
_LLAMA_SHAPES = {
    "llama-6.7b": (4096, 32, 32, 3e-4), "llama-13b": (5120, 40, 40, 3e-4),
    "llama-32.5b": (6656, 52, 60, 1.5e-4), "llama-65b": (8192, 64, 80, 1.5e-4),
}


def _gated_width(d_model: int) -> int:
    """Return the gated feed-forward width with the parameters of a plain 4 d one: 8/3 d, up to a multiple of 256."""
    return -(-(8 * d_model) // (3 * 256)) * 256


def _study_head_dim(d_model: int, num_heads: int) -> int:
    """Return d / heads, rounded up to even.

    The table's 4016M row has hidden 2688 with 22 heads, which does not divide; a head of 124 is then 40 wider in all.
    """
    head_dim = -(-d_model // num_heads)
    return head_dim + head_dim % 2


def all_presets() -> dict[str, Preset]:
    """Return every preset by name, built anew."""
    presets = {name: Preset(*values, _OWN) for name, values in _LADDER.items()}
    for size, (d, ff, heads, layers) in _STUDY_SHAPES.items():
        batch = 1_000_000 if size < 1000 else 2_000_000 if size < 2700 else 4_000_000
        presets[f"cpt-{size}m"] = Preset(
            d, layers, heads, heads, _study_head_dim(d, heads), ff, 2e-4, batch, 2048, _STUDY)
    for name, (layers, heads, d, rate, batch) in _OPT_SHAPES.items():
        presets[name] = Preset(d, layers, heads, heads, d // heads, _gated_width(d), rate, batch, 2048, _OPT)
    for name, (d, heads, layers, rate) in _LLAMA_SHAPES.items():
        presets[name] = Preset(
            d, layers, heads, heads, d // heads, _gated_width(d), rate, 4_000_000, 2048, _LLAMA)
    return presets


def find_preset(name: str) -> Preset:
    """Return one preset.

    Raises: ConfigError: no such name; the nearest is given.
    """
    presets = all_presets()
    if name not in presets:
        near = difflib.get_close_matches(name, list(presets), n=3)
        raise ConfigError(f"unknown model preset {name!r}; near: {', '.join(near) or ', '.join(_LADDER)}")
    return presets[name]


def preset_model(name: str, vocab_size: int, sequence_length: int = 0) -> ModelConfig:
    """Return the model of a preset for a vocabulary.

    Args:
        name: for example "tiny", "125m", "cpt-259m", "opt-1.3b".
        vocab_size: rows of the embedding.
        sequence_length: row length in tokens; 0 = the preset's.
    Raises: ConfigError: unknown name.
    """
    preset = find_preset(name)
    tied = not name.startswith("llama-")
    return ModelConfig(
        vocab_size=vocab_size, d_model=preset.d_model, num_layers=preset.num_layers, num_heads=preset.num_heads,
        num_kv_heads=preset.num_kv_heads, head_dim=preset.head_dim, d_ff=preset.d_ff,
        max_sequence_length=sequence_length or preset.sequence_length, tie_embeddings=tied)
