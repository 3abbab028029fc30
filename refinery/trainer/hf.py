"""Hugging Face checkpoints of the Llama, Qwen2 and Qwen3 families: read, write, compare.

Rotary layout is the same, so no permutation of query and key rows is ever needed; only our joined matrices are split
(query, key, value; gate, up). Names and shapes are checked strictly both ways, and an export is read back and its
logits compared before it counts as done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from refinery.errors import ConfigError, IntegrityError
from refinery.trainer.attention import plan_attention
from refinery.trainer.config import ModelConfig, RopeScaling
from refinery.trainer.model import Decoder, ParameterSource, fill_parameters

FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}


def family_of(config: ModelConfig) -> str:
    """Return the family whose code runs this model: query/key norm = qwen3, bias = qwen2, else llama.

    Raises: ConfigError: both a bias and query/key norms, which no family has.
    """
    if config.qk_norm and config.qkv_bias:
        raise ConfigError("model has qk_norm and qkv_bias, no Hugging Face family has both; set one to false")
    return "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"


def to_hf_config(config: ModelConfig, *, bos_id: int | None = None, eos_id: int | None = None) -> dict[str, Any]:
    """Return the content of config.json."""
    family = family_of(config)
    values: dict[str, Any] = {
        "architectures": [FAMILIES[family]], "model_type": family, "vocab_size": config.vocab_size,
        "hidden_size": config.d_model, "intermediate_size": config.d_ff, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim, "hidden_act": {v: k for k, v in _ACTIVATIONS.items()}[config.activation],
        "max_position_embeddings": config.max_sequence_length, "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta, "tie_word_embeddings": config.tie_embeddings, "torch_dtype": "float32",
        "initializer_range": config.init_std, "use_cache": True, "attention_dropout": 0.0,
        "bos_token_id": bos_id, "eos_token_id": eos_id,
    }
    if family != "qwen2":
        values["attention_bias"] = False
    if family == "llama":
        values["mlp_bias"] = False
    if family == "qwen2" and config.num_heads * config.head_dim != config.d_model:
        raise ConfigError(f"Qwen2 needs head_dim = d_model / num_heads, this model has {config.head_dim}; use qk_norm")
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        values["rope_scaling"] = {
            "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions}
    return values


def from_hf_config(values: dict[str, Any]) -> ModelConfig:
    """Return the model of a config.json.

    Raises: ConfigError: a family or a feature that this trainer does not have.
    """
    family = values.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(f"model_type is {family!r}, must be one of {', '.join(FAMILIES)}; convert the checkpoint")
    biased = values.get("mlp_bias") or (family != "qwen2" and values.get("attention_bias"))
    if biased or values.get("use_sliding_window"):
        raise ConfigError("the checkpoint uses sliding windows or biases outside Qwen2's; this trainer has neither")
    activation = values.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise ConfigError(f"hidden_act is {activation!r}, must be one of {', '.join(_ACTIVATIONS)}")
    heads = values["num_attention_heads"]
    # transformers 5 keeps theta and scaling together under rope_parameters
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ConfigError(f"rope type is {kind!r}, must be default or llama3; train at the original context instead")
    scaling = None if kind == "default" else RopeScaling(
        factor=float(rope["factor"]), low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_positions=rope["original_max_position_embeddings"])
    return ModelConfig(
        vocab_size=values["vocab_size"], d_model=values["hidden_size"], num_layers=values["num_hidden_layers"],
        num_heads=heads, num_kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or values["hidden_size"] // heads, d_ff=values["intermediate_size"],
        max_sequence_length=values["max_position_embeddings"], activation=_ACTIVATIONS[activation],
        rope_theta=float(values.get("rope_theta") or rope.get("rope_theta") or 10_000.0), rope_scaling=scaling,
        norm_eps=values["rms_norm_eps"], qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
        tie_embeddings=bool(values.get("tie_word_embeddings", False)), init_std=values.get("initializer_range", 0.02))


def read_hf_config(folder: Path) -> ModelConfig:
    """Return the model of a checkpoint folder; errors as `from_hf_config`."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{path} is not there; give the folder of a local Hugging Face checkpoint")
    return from_hf_config(json.loads(path.read_text(encoding="utf-8")))


def _sources(name: str) -> list[str]:
    """Return the Hugging Face names whose rows, joined, make one of our parameters."""
    if not name.startswith("blocks."):
        return [{"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
                 "head.weight": "lm_head.weight"}[name]]
    _, index, rest = name.split(".", 2)
    prefix = f"model.layers.{index}."
    kind = rest.rsplit(".", 1)[1]
    inner = {
        "attention_norm": ["input_layernorm"], "ffn_norm": ["post_attention_layernorm"],
        "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attention.out": ["self_attn.o_proj"], "attention.q_norm": ["self_attn.q_norm"],
        "attention.k_norm": ["self_attn.k_norm"], "ffn.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "ffn.down": ["mlp.down_proj"],
    }[rest.rsplit(".", 1)[0]]
    return [f"{prefix}{part}.{kind}" for part in inner]


def _row_counts(name: str, config: ModelConfig) -> list[int]:
    """Return how many rows each source of a joined parameter has; empty for a single source."""
    if ".qkv." in name:
        return [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    return [config.d_ff, config.d_ff] if ".gate_up." in name else []


def pretrained_values(folder: Path, config: ModelConfig, vocab_extension: str = "") -> ParameterSource:
    """Return initial weights from a Hugging Face checkpoint.

    Args:
        folder: with config.json and *.safetensors.
        config: the model to fill; may have a larger vocabulary and another maximum length than the checkpoint.
        vocab_extension: path of a JSON file {new id: [old ids]}; needed when the vocabulary is larger.
    Raises:
        ConfigError: another shape, or new rows without a map.
        IntegrityError: tensors missing, unexpected, or of the wrong shape.
    """
    saved = read_hf_config(folder)
    for key in ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "activation", "rope_theta",
                "rope_scaling", "norm_eps", "qkv_bias", "qk_norm", "tie_embeddings"):
        if getattr(saved, key) != getattr(config, key):
            raise ConfigError(f"model.{key} is {getattr(config, key)!r}, {folder} has {getattr(saved, key)!r}; "
                              "leave the model out of the config to take the checkpoint's")
    pieces = _read_extension(vocab_extension, saved.vocab_size, config.vocab_size)
    handles: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        handle = safe_open(str(file), framework="pt")
        handles.update(dict.fromkeys(handle.keys(), handle))
    with torch.device("meta"):
        wanted = {source for name, _ in Decoder(saved).named_parameters() for source in _sources(name)}
    # some tied checkpoints store the head a second time
    surplus = set(handles) - wanted - ({"lm_head.weight"} if saved.tie_embeddings else set())
    if wanted - set(handles) or surplus:
        raise IntegrityError(f"{folder}: missing tensors {sorted(wanted - set(handles))[:3]}, unexpected "
                             f"{sorted(surplus)[:3]}; the checkpoint is incomplete or of another architecture")

    def value(name: str, shape: torch.Size) -> torch.Tensor:
        parts = [handles[source].get_tensor(source).float() for source in _sources(name)]
        counts = _row_counts(name, config)
        if counts and [len(part) for part in parts] != counts:
            raise IntegrityError(f"{name}: rows {[len(part) for part in parts]} in {folder}, config says {counts}")
        joined = torch.cat(parts)
        extend = name in ("embed.weight", "head.weight") and config.vocab_size > saved.vocab_size
        return extend_rows(joined, pieces, shape[0]) if extend else joined

    return value


def _read_extension(path: str, old_size: int, new_size: int) -> dict[int, list[int]]:
    """Read and check the map of new tokens; empty when the vocabulary keeps its size."""
    if new_size < old_size:
        raise ConfigError(f"model.vocab_size is {new_size}, the checkpoint has {old_size}; it cannot shrink")
    if new_size == old_size:
        return {}
    if not path:
        raise ConfigError(f"the vocabulary grows from {old_size} to {new_size} but vocab_extension is not set; "
                          "give the map of new tokens to old pieces")
    pieces = {int(key): list(ids) for key, ids in json.loads(Path(path).read_text(encoding="utf-8")).items()}
    for new_id, ids in pieces.items():
        if not old_size <= new_id < new_size or not ids or not all(0 <= old < old_size for old in ids):
            raise ConfigError(f"vocab_extension[{new_id}] = {ids}: new ids must be in [{old_size}, {new_size}) and "
                              f"old ids in [0, {old_size})")
    return pieces


def extend_rows(rows_VD: torch.Tensor, pieces: dict[int, list[int]], new_size: int) -> torch.Tensor:
    """Append rows: a new token is the mean of its old pieces, an unnamed (padding) row the mean of all.

    Args:
        rows_VD: float32 embedding or head of the old vocabulary.
        pieces: new id -> old ids.
        new_size: rows afterwards.
    """
    added = rows_VD.mean(0).repeat(new_size - len(rows_VD), 1)
    for new_id, ids in pieces.items():
        added[new_id - len(rows_VD)] = rows_VD[ids].mean(0)
    return torch.cat((rows_VD, added))


def hf_tensors(model: Decoder) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield Hugging Face names and float32 tensors of an unsharded model."""
    for name, parameter in model.named_parameters():
        full = parameter.detach().float().cpu()
        counts = _row_counts(name, model.config)
        parts = full.split(counts) if counts else (full,)
        for source, part in zip(_sources(name), parts, strict=True):
            yield source, part.contiguous().clone()


def export_hf(
    model: Decoder, folder: Path, *, tokenizer_files: tuple[Path, ...] = (),
    bos_id: int | None = None, eos_id: int | None = None) -> None:
    """Write a checkpoint that `transformers` loads, read it back and compare logits.

    Args:
        model: unsharded.
        folder: new or empty.
        tokenizer_files: copied beside the weights.
        bos_id: id that begins a document, if any.
        eos_id: id that ends a document, if any.
    Raises:
        ConfigError: the folder is not empty.
        IntegrityError: the export read back gives other logits.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; export into a new folder")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    config = to_hf_config(model.config, bos_id=bos_id, eos_id=eos_id)
    (temporary / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(dict(hf_tensors(model)), temporary / "model.safetensors", metadata={"format": "pt"})
    for file in tokenizer_files:
        shutil.copy2(file, temporary / file.name)
    _compare_logits(model, temporary)
    if folder.exists():
        folder.rmdir()
    temporary.rename(folder)


@torch.no_grad()
def _compare_logits(model: Decoder, folder: Path) -> None:
    again = Decoder(read_hf_config(folder))
    fill_parameters(again, pretrained_values(folder, again.config))
    device = next(model.parameters()).device
    again.to(device)
    length = min(16, model.config.max_sequence_length)
    tokens = (torch.arange(length, device=device) * 7919 % model.config.vocab_size)[None]
    plan = plan_attention(np.array([length]), 1, length, device, doc_mask=False)
    kept, model.compute_dtype = model.compute_dtype, torch.float32
    try:
        difference = (model(tokens, plan) - again(tokens, plan)).abs().max().item()
    finally:
        model.compute_dtype = kept
    if not difference < 1e-4:
        raise IntegrityError(f"exported weights give logits that differ by {difference:.3g} (bound 1e-4) in {folder}; "
                             "do not use this export, and report the model's config")
