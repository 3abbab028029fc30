"""Configuration of one training run: frozen values with units, bounds and sources; unknown keys are errors.

A run is described by JSON (`TrainConfig.from_dict`) that the pipeline's train stage writes or a person edits. The
resolved form (`to_dict`) is stored in every checkpoint and in the run record, so a run can be repeated from either.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from refinery.errors import ConfigError

ConfigT = TypeVar("ConfigT")

ACTIVATIONS = ("silu", "gelu")
SCHEDULES = ("constant", "linear", "cosine", "wsd", "inverse_sqrt", "rewarm")
CHECKPOINTING = ("none", "selective", "full")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16")
MOMENTS = ("float32", "bfloat16")


def _require(condition: bool, what: str, value: object, bound: str, remedy: str) -> None:
    if not condition:
        raise ConfigError(f"{what} is {value!r}, must be {bound}; {remedy}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Frequency scaling of Llama 3.1 ("llama3" in Hugging Face configs)."""

    factor: float = 8.0
    """Wavelengths longer than the original context are stretched by this much."""
    low_freq_factor: float = 1.0
    """Wavelengths over original / low are stretched fully."""
    high_freq_factor: float = 4.0
    """Wavelengths under original / high are left alone; between the two, linear interpolation."""
    original_max_positions: int = 8192
    """Context length of the model before scaling, tokens."""

    def __post_init__(self) -> None:
        _require(self.factor >= 1, "rope_scaling.factor", self.factor, ">= 1", "use the checkpoint's value")
        bounds = (self.low_freq_factor, self.high_freq_factor)
        _require(bounds[1] > bounds[0], "rope_scaling low/high", bounds, "low < high", "swap them")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of a decoder-only transformer with pre-RMSNorm, rotary positions and a gated feed-forward."""

    vocab_size: int
    """Rows of the embedding; at least the tokenizer's vocabulary (pad to a multiple of 64 or 128 for speed)."""
    d_model: int
    """Width of the residual stream."""
    num_layers: int
    """Transformer blocks."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key/value heads: num_heads = MHA, 1 = MQA, a divisor in between = GQA (Ainslie et al. 2305.13245)."""
    head_dim: int
    """Width of one head; num_heads * head_dim may differ from d_model (Qwen3)."""
    d_ff: int
    """Hidden width of the gated feed-forward (three matrices)."""
    max_sequence_length: int = 4096
    """Longest row the model is meant for, tokens."""
    activation: str = "silu"
    """Gate: "silu" = SwiGLU, "gelu" = GeGLU, tanh form (Shazeer 2002.05202)."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies (Su et al. 2104.09864)."""
    rope_scaling: RopeScaling | None = None
    """Llama 3.1 long-context scaling, or none."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    qkv_bias: bool = False
    """Bias on the query, key and value projections (Qwen2)."""
    qk_norm: bool = False
    """RMSNorm over head_dim on queries and keys before rotation (Qwen3)."""
    tie_embeddings: bool = True
    """The output head is the embedding matrix."""
    init_std: float = 0.02
    """Standard deviation of initial weights; output projections get init_std / sqrt(2 * num_layers) (GPT-2)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff"):
            _require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), ">= 1", "give a positive size")
        _require(self.num_heads % self.num_kv_heads == 0, "model.num_kv_heads", self.num_kv_heads,
                 f"a divisor of num_heads = {self.num_heads}", "choose a divisor")
        _require(self.head_dim % 2 == 0, "model.head_dim", self.head_dim, "even", "rotary positions rotate pairs")
        _require(self.activation in ACTIVATIONS, "model.activation", self.activation, f"one of {ACTIVATIONS}", "fix")

    @property
    def num_embedding_params(self) -> int:
        """Parameters of the embedding and, if untied, of the head."""
        return self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)

    @property
    def num_non_embedding_params(self) -> int:
        """Parameters of the blocks and the final norm: the N to use in scaling fits."""
        attention = self.d_model * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        if self.qkv_bias:
            attention += self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
        if self.qk_norm:
            attention += 2 * self.head_dim
        block = attention + 3 * self.d_model * self.d_ff + 2 * self.d_model
        return self.num_layers * block + self.d_model

    @property
    def num_params(self) -> int:
        """All parameters, a tied matrix counted once."""
        return self.num_non_embedding_params + self.num_embedding_params


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 1711.05101) as LLaMA used it (2302.13971)."""

    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """On matrices only; gains and biases are not decayed."""
    clip_norm: float = 1.0
    """Global gradient norm bound; 0 = off."""
    moments: str = "float32"
    """Stored type of both moments; "bfloat16" saves 4 bytes per parameter and rounds them after each step."""

    def __post_init__(self) -> None:
        _require(self.moments in MOMENTS, "optim.moments", self.moments, f"one of {MOMENTS}", "choose one")
        # a bfloat16 keeps 8 bits: with a slower second moment most of its changes would be rounded away
        _require(self.moments == "float32" or self.beta2 <= 0.99, "optim.beta2", self.beta2,
                 "<= 0.99 with moments in bfloat16", "use moments: float32")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "in [0, 1)", "fix it")
        for name in ("weight_decay", "clip_norm"):
            _require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), ">= 0", "fix it")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate as a pure function of the step (`schedule.learning_rate`)."""

    kind: str = "cosine"
    """constant, linear, cosine, wsd (1 - sqrt decay), inverse_sqrt, rewarm (start_lr -> max_lr -> cosine)."""
    max_lr: float = 6e-4
    """Peak learning rate."""
    min_lr_frac: float = 0.1
    """Final rate as a fraction of max_lr."""
    warmup_steps: int = 0
    """Steps of linear rise to max_lr."""
    start_lr: float = 0.0
    """rewarm only: rate before the first step, normally where the earlier run ended."""
    decay_frac: float = 0.2
    """wsd only: the last fraction of all steps, in which the rate falls."""

    def __post_init__(self) -> None:
        _require(self.kind in SCHEDULES, "schedule.kind", self.kind, f"one of {SCHEDULES}", "choose one")
        _require(self.max_lr > 0, "schedule.max_lr", self.max_lr, "> 0", "give a rate such as 6e-4")
        _require(0 <= self.min_lr_frac <= 1, "schedule.min_lr_frac", self.min_lr_frac, "in [0, 1]", "use 0.1")
        _require(0 < self.decay_frac <= 1, "schedule.decay_frac", self.decay_frac, "in (0, 1]", "use 0.2")
        _require(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, ">= 0", "use 0 for none")


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetyConfig:
    """When an update is refused (OLMo's skip-step rule: 6 sigma over 128 steps, once half of them are there)."""

    window_steps: int = 128
    """Steps, refused ones included, whose loss and gradient norm give mean and deviation."""
    min_history_steps: int = 64
    """No spike is called before this many steps; non-finite values are always refused."""
    max_sigmas: float = 6.0
    """Deviation over which a step is refused; 0 = only non-finite values."""
    max_skips_in_row: int = 8
    """This many refused steps in a row stop the run, or send it back to its last good checkpoint."""
    max_rise_nats: float = 0.0
    """So far the mean loss of 32 accepted steps may rise above its lowest; more = diverged. 0 = not looked at."""
    max_restarts: int = 0
    """Times that a run may go back to its last good checkpoint with a lower rate; 0 = it stops instead."""
    restart_lr_factor: float = 0.5
    """The learning rate of all later steps is multiplied by this at each restart (OPT, 2205.01068 section 2.5)."""

    def __post_init__(self) -> None:
        for name in ("window_steps", "max_skips_in_row"):
            _require(getattr(self, name) >= 1, f"safety.{name}", getattr(self, name), ">= 1", "give a positive number")
        for name in ("max_sigmas", "max_rise_nats", "max_restarts", "min_history_steps"):
            _require(getattr(self, name) >= 0, f"safety.{name}", getattr(self, name), ">= 0", "use 0 for off")
        _require(0 < self.restart_lr_factor <= 1, "safety.restart_lr_factor", self.restart_lr_factor, "in (0, 1]",
                 "use 0.5")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Validation per stream."""

    every_steps: int = 0
    """Validate at step 0, every so many steps, and at the end; 0 = at step 0 and the end only."""
    at_start: bool = True
    """Validate at step 0; without it no loss can be compared with that of the start."""
    max_rows: int = 0
    """At most this many rows per stream, the same rows every time; 0 = all."""
    streams: tuple[str, ...] = ()
    """Validation streams to use; empty = all the manifest has."""
    early_stop_stream: str = ""
    """Stop when this stream's loss has not improved for `patience` validations; empty = never."""
    patience: int = 3
    """Validations without improvement before an early stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When a checkpoint is written and how many are kept."""

    every_steps: int = 0
    """Save every so many steps; the last step and SIGTERM always save. 0 = only those."""
    keep: int = 2
    """Newest checkpoints kept."""
    resume: bool = True
    """Go on from the newest checkpoint in the output folder, if there is one."""

    def __post_init__(self) -> None:
        _require(self.keep >= 1, "checkpoint.keep", self.keep, ">= 1", "keep at least one")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything one run needs besides its rows."""

    model: ModelConfig
    """Shape; from a preset or from the checkpoint it starts from."""
    steps: int
    """Optimiser steps in total."""
    batch_tokens: int
    """Tokens in one global batch; a multiple of the row length."""
    batch_ramp: tuple[tuple[int, int], ...] = ()
    """(step, batch_tokens) pairs in rising order: from that step on the batch has that size."""
    micro_batch_rows: int = 8
    """Rows in one forward pass on one device; the rest of the batch is accumulated."""
    seed: int = 0
    """Seed of the initial weights; the data has its own in the plan."""
    doc_mask: bool = True
    """Attention and positions stay inside a document."""
    z_loss: float = 0.0
    """Weight of mean(logsumexp^2) (PaLM used 1e-4); 0 = off."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate."""
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    """Refused updates."""
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    """Validation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    init_from: str = ""
    """Folder of a Hugging Face checkpoint to start from; empty = random weights."""
    vocab_extension: str = ""
    """JSON file {new id: [old ids]}: rows of new tokens start as the mean of their old pieces."""
    device: str = "auto"
    """auto = cuda if there is one, else cpu."""
    precision: str = "auto"
    """Compute type over fp32 weights; auto = bfloat16 on cuda, float32 on cpu."""
    compile: bool = False
    """torch.compile per block; tens of seconds at the start, worth it on CUDA."""
    activation_checkpointing: str = "none"
    """none, selective (every second block) or full: recompute blocks in backward to save memory."""
    chunk_tokens: int = 2048
    """Tokens per chunk of the loss: the fp32 logits of one chunk are all that ever exists."""
    threads: int = 0
    """CPU threads of torch; 0 = leave as they are. Bit-equal resume needs the same number."""
    deterministic: bool = True
    """Ask torch for deterministic algorithms on CPU."""
    log_every_steps: int = 1
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard events into tensorboard/; needs that package."""
    profile: tuple[int, int] | None = None
    """[a, b): steps traced with torch.profiler into profile.json."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_tokens", "micro_batch_rows", "chunk_tokens", "log_every_steps"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1", "give a positive number")
        _require(self.device in DEVICES, "device", self.device, f"one of {DEVICES}", "choose one")
        _require(self.precision in PRECISIONS, "precision", self.precision, f"one of {PRECISIONS}", "choose one")
        _require(self.activation_checkpointing in CHECKPOINTING, "activation_checkpointing",
                 self.activation_checkpointing, f"one of {CHECKPOINTING}", "choose one")
        ramp = [step for step, _ in self.batch_ramp]
        _require(ramp == sorted(set(ramp)), "batch_ramp", self.batch_ramp, "rising in step", "sort it")

    def batch_tokens_at(self, step: int) -> int:
        """Return the size in tokens of the batch of a step (0-based)."""
        size = self.batch_tokens
        for start, tokens in self.batch_ramp:
            if step >= start:
                size = tokens
        return size

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` of it gives an equal config."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrainConfig:
        """Build a config from parsed JSON.

        Raises: ConfigError: an unknown key (the nearest known one is named), a missing key, or a value of a wrong type.
        """
        return _build(TrainConfig, values, "")


def _build(cls: type[ConfigT], values: object, where: str) -> ConfigT:
    """Build a dataclass from a mapping, recursing into dataclass fields."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'config'} is {type(values).__name__}, must be a mapping of keys to values")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"unknown key {where}{key!r}; {hint}")
    required = [n for n, f in known.items()
                if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"missing key {where}{missing[0]!r}; it has no default, add it")
    built = {key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()}
    return cls(**built)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one JSON value against a type hint and convert lists to tuples and mappings to dataclasses."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in typing.get_args(hint) if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}, must be a list")
        args = typing.get_args(hint)
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ConfigError(f"{where} has {len(value)} values, must have {len(inner)}")
        return tuple(_convert(kind, value[i], f"{where}[{i}]") for i, kind in enumerate(inner))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else _build(hint, value, f"{where}.")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} is {value!r} ({type(value).__name__}), must be {hint.__name__}; fix the value")
    return value


def model_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Build a `ModelConfig` from parsed JSON; the same checks as `TrainConfig.from_dict`."""
    return _build(ModelConfig, values, "model.")
