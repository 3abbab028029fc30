"""Sentence embeddings: texts in, unit vectors out, on CUDA or CPU.

Batches are sorted by token count and cut by a budget of padded tokens: they are a function of the texts alone, so a
part gives the same vectors wherever and whenever it is embedded on one build and device. (A batch for which a device
has no memory left is halved until it fits: then the last bits may differ.) Weights run in bfloat16 where the hardware
multiplies in it (twice float32 on CPUs with it, at a cosine of 1.000 to float32); vectors are pooled by the model, then
normalised in float32. Models are read from safetensors only, and their code is never run.

On CUDA nothing waits for a batch before the next ones are on their way: ids go up from pinned memory, vectors come
down into it, and the host pads batch n + 1 while the device works on n.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from refinery.errors import ConfigError, DataError, TransientError
from refinery.gpu.model_files import PACKAGED_MODEL, model_path

MAX_UNKNOWN_FRAC = 0.05
"""Largest share of unknown tokens in a language that a model is said to read."""
_CHARS_PER_TOKEN = 16  # texts are clipped here before the tokenizer: no 5 MB sentence costs seconds to be cut to 256
_TOKENIZE_ROWS = 1024  # the tokenizer holds strings and offsets of every token of a call: 0.7 GB for 110,000 sentences
_CPU_BATCH_TOKENS = 4096
_CUDA_BATCH_TOKENS = 131_072
_IN_FLIGHT = 4  # batches that the device may be behind: enough to hide padding, few enough to bound pinned memory
_BF16_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}


def resolve_device(device: str) -> str:
    """Return cpu or cuda for auto, cpu or cuda.

    Raises:
        ConfigError: unknown device, or CUDA is asked for and not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {device!r} is unknown; choose auto, cpu or cuda")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError(
            f"device 'cuda' is asked for, but torch {torch.__version__} sees no CUDA device; set device: auto, or "
            "install a CUDA build of torch on a machine with a GPU"
        )
    return "cuda" if available and device != "cpu" else "cpu"


class _OnItsWay(NamedTuple):
    """Vectors of a batch that the device may still be working on."""

    vectors: torch.Tensor
    """float32, shape (rows, features), on the host."""
    done: torch.cuda.Event | None
    """Passed once they are there; None where they are."""


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """An opened model; open once per worker with `open_embedder`."""

    name: str
    """What was asked for."""
    device: str
    """cpu or cuda."""
    num_features: int
    """Length of a vector."""
    max_tokens: int
    """Longer texts are cut off here, special tokens included."""
    batch_tokens: int
    """Padded tokens per batch."""
    dtype: str
    """bfloat16 or float32."""
    model: Any
    """The sentence_transformers model."""
    bare_tokenizer: Any = None
    """The `tokenizers.Tokenizer` inside the model's wrapper, cutting at `max_tokens`; None where there is none."""

    def token_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids of each text, int32, special tokens included, cut at `max_tokens`."""
        prompt, most_chars = self._prompt(), _CHARS_PER_TOKEN * self.max_tokens
        found: list[np.ndarray] = []
        for first in range(0, len(texts), _TOKENIZE_ROWS):
            rows = [prompt + text[:most_chars] for text in texts[first : first + _TOKENIZE_ROWS]]
            if self.bare_tokenizer is not None:
                found += [np.array(row.ids, dtype=np.int32) for row in self.bare_tokenizer.encode_batch_fast(rows)]
                continue
            encoded = self.model.tokenizer(
                rows, truncation=True, max_length=self.max_tokens, padding=False, return_attention_mask=False
            )
            found += [np.array(row, dtype=np.int32) for row in encoded["input_ids"]]
        return found

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts.

        Args:
            texts: S strings; an empty one gets the vector of the empty text.
        Returns: float32, shape (S, features), unit length, in the order of the texts.

        Raises:
            DataError: the model gave a vector that is not finite.
        """
        return self.encode_ids(self.token_ids(texts))

    def encode_ids(self, ids: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """Embed texts that `token_ids` tokenised; as `encode`.

        Raises:
            DataError: as `encode`. TransientError: the device has no memory for one text.
        """
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        out = np.empty((len(ids), self.num_features), dtype=np.float32)
        order = np.lexsort((np.arange(len(ids)), -lengths))
        waiting: deque[tuple[np.ndarray, list[_OnItsWay]]] = deque()
        for rows in _batches(order, lengths, self.batch_tokens):
            waiting.append((rows, self._launch([ids[row] for row in rows])))
            if len(waiting) > _IN_FLIGHT:
                _settle(out, *waiting.popleft())
        for rows, sent in waiting:
            _settle(out, rows, sent)
        bad = np.flatnonzero(~np.isfinite(out).all(axis=1))
        if len(bad):
            raise DataError(
                f"model {self.name!r} gave {len(bad)} vectors that are not finite, the first for text {bad[0]} of "
                f"{len(ids)} ({lengths[bad[0]]} tokens); open it with dtype='float32', or drop the texts"
            )
        return out

    def unknown_frac(self, texts: Sequence[str]) -> float:
        """Return the share of tokens that the vocabulary lacks, special tokens left out; 0 where nothing is unknown."""
        tokenizer = self.model.tokenizer
        unknown = tokenizer.unk_token_id
        if unknown is None:
            return 0.0
        special = {token for token in tokenizer.all_special_ids if token != unknown}
        tokens = [token for row in self.token_ids(texts) for token in row.tolist() if token not in special]
        return tokens.count(unknown) / len(tokens) if tokens else 0.0

    def check_language(self, language: str, texts: Sequence[str], max_unknown_frac: float = MAX_UNKNOWN_FRAC) -> float:
        """Refuse a language that the model does not read; return its share of unknown tokens.

        Raises:
            ConfigError: more than `max_unknown_frac` of the tokens of the sample are unknown.
        """
        share = self.unknown_frac(texts)
        if share > max_unknown_frac:
            raise ConfigError(
                f"model {self.name!r} does not read {language!r}: {share:.1%} of the tokens of {len(texts)} samples "
                f"are unknown to it, the bound is {max_unknown_frac:.0%}; give the path of a multilingual model, or "
                "set embeddings: off for this language (exact repeats are still removed)"
            )
        return share

    def _prompt(self) -> str:
        name = getattr(self.model, "default_prompt_name", None)
        return str(self.model.prompts.get(name, "")) if name else ""

    def _launch(self, ids: Sequence[Sequence[int] | np.ndarray]) -> list[_OnItsWay]:
        """Send a batch to the device, in halves where it has no memory for the whole."""
        try:
            return [self._forward(ids)]
        except torch.OutOfMemoryError as error:
            if len(ids) == 1:
                raise TransientError(
                    f"{self.device} has no memory for one text of {len(ids[0])} tokens in model {self.name!r} "
                    f"({error}); let fewer worker processes share the device, or set device: cpu"
                ) from error
        # The exception is gone here, and with it what its frames held.
        torch.cuda.empty_cache()
        half = len(ids) // 2
        return [*self._launch(ids[:half]), *self._launch(ids[half:])]

    @torch.inference_mode()
    def _forward(self, ids: Sequence[Sequence[int] | np.ndarray]) -> _OnItsWay:
        on_gpu = self.device == "cuda"
        tokens, mask = padded_ids(ids, self.model.tokenizer.pad_token_id or 0)
        features = {}
        for name, array in (("input_ids", tokens), ("attention_mask", mask)):
            host = torch.from_numpy(array)
            features[name] = (host.pin_memory() if on_gpu else host).to(self.device, non_blocking=on_gpu)
        vectors = torch.nn.functional.normalize(self.model(features)["sentence_embedding"].float(), dim=1)
        if not on_gpu:
            return _OnItsWay(vectors, None)
        host = torch.empty(vectors.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(vectors, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return _OnItsWay(host, done)


def _settle(out: np.ndarray, rows: np.ndarray, sent: Sequence[_OnItsWay]) -> None:
    """Wait for the vectors of a batch and put them where they belong."""
    for _, done in sent:
        if done is not None:
            done.synchronize()
    out[rows] = np.concatenate([vectors.numpy() for vectors, _ in sent])


def padded_ids(ids: Sequence[Sequence[int] | np.ndarray], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids padded on the right, and the mask of those that count: int64, shape (rows, longest)."""
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    mask = np.arange(int(lengths.max())) < lengths[:, None]
    tokens = np.full(mask.shape, pad, dtype=np.int64)
    tokens[mask] = np.concatenate([np.asarray(row, dtype=np.int32) for row in ids])
    return tokens, mask.astype(np.int64)


def _batches(order: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Cut rows, longest first, into batches of at most `batch_tokens` padded tokens (one row at least)."""
    batches, first = [], 0
    while first < len(order):
        rows = max(1, batch_tokens // max(1, int(lengths[order[first]])))
        batches.append(order[first : first + rows])
        first += rows
    return batches


def open_embedder(
    model: str = PACKAGED_MODEL,
    device: str = "auto",
    *,
    revision: str | None = None,
    dtype: str = "auto",
    batch_tokens: int | None = None,
) -> Embedder:
    """Open a sentence-transformers model.

    Args:
        model: `PACKAGED_MODEL`, a folder with safetensors weights, or a hub id with `revision` (HF_HUB_OFFLINE in the
            environment is respected).
        device: auto, cpu or cuda.
        revision: commit of a hub model; needed for one, so that the same bytes come back.
        dtype: auto (bfloat16 on CUDA and on CPUs that multiply in it), bfloat16 or float32.
        batch_tokens: padded tokens per batch; 4096 on CPU, 131072 on CUDA if not given.

    Raises:
        ConfigError: no CUDA, sentence-transformers or model missing, no safetensors, no revision, unknown dtype.
    """
    chosen = resolve_device(device)
    if dtype not in ("auto", "bfloat16", "float32"):
        raise ConfigError(f"dtype {dtype!r} is unknown; choose auto, bfloat16 or float32")
    if batch_tokens is not None and batch_tokens < 1:
        raise ConfigError(f"batch_tokens {batch_tokens} is out of bounds, 1 is the least; leave it out for the default")
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ConfigError("sentence-transformers is not installed; pip install it, or set embeddings: off")
    path = model_path(model, revision)
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - optional, and 3 CPU seconds to import

    _silence_bars()
    width = ("bfloat16" if has_bfloat16(chosen) else "float32") if dtype == "auto" else dtype
    try:
        opened = SentenceTransformer(
            path,
            device=chosen,
            revision=revision,
            trust_remote_code=False,
            local_files_only=os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {model!r} cannot be opened ({error}); give a folder with safetensors") from error
    opened = opened.to(getattr(torch, width)).eval()
    features = getattr(opened, "get_embedding_dimension", None) or opened.get_sentence_embedding_dimension
    max_tokens = int(opened.max_seq_length or 512)
    return Embedder(
        name=model,
        device=chosen,
        num_features=int(features() or 0),
        max_tokens=max_tokens,
        bare_tokenizer=_bare_tokenizer(opened.tokenizer, max_tokens),
        batch_tokens=batch_tokens or (_CUDA_BATCH_TOKENS if chosen == "cuda" else _CPU_BATCH_TOKENS),
        dtype=width,
        model=opened,
    )


def _bare_tokenizer(wrapped: Any, max_tokens: int) -> Any:
    """Return a copy of the tokenizer inside transformers' wrapper that gives ids alone; None where there is none.

    Offsets, words and dictionaries of what the model does not ask for took up to half of the time of tokenising.
    """
    inner: Any = getattr(wrapped, "backend_tokenizer", None)
    if not hasattr(inner, "encode_batch_fast"):
        return None
    try:
        bare = type(inner).from_str(inner.to_str())
    except Exception:  # a part in Python, which has no written form: the library raises no narrower class
        return None
    bare.no_padding()
    bare.enable_truncation(max_tokens, direction=wrapped.truncation_side)
    return bare


def use_gpu(address: str | None) -> None:
    """Work on one of the machine's GPUs from here on in this process; None, or no CUDA, changes nothing.

    Args:
        address: number of the GPU, as Spark's discovery script named it.

    Raises:
        ConfigError: the address is no number of a GPU that is there.
    """
    if address is None or not torch.cuda.is_available():
        return
    if not address.isdecimal() or int(address) >= torch.cuda.device_count():
        raise ConfigError(
            f"GPU address {address!r} is not one of the {torch.cuda.device_count()} that torch sees; the discovery "
            "script must print their numbers"
        )
    torch.cuda.set_device(int(address))


@functools.lru_cache(maxsize=1)
def worker_embedder(model: str, device: str, revision: str | None = None, gpu: str | None = None) -> Embedder:
    """Return `open_embedder` of these, opened once per process: a worker embeds many parts with one model."""
    use_gpu(gpu)
    return open_embedder(model, device, revision=revision)


def _silence_bars() -> None:
    """Keep transformers from drawing progress bars into the log of every worker."""
    from transformers.utils import logging  # noqa: PLC0415 - comes with sentence-transformers

    logging.disable_progress_bar()


def has_bfloat16(device: str) -> bool:
    """Tell whether a device multiplies in bfloat16 itself; cards before Ampere emulate it, slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_has_bfloat16()


def cpu_has_bfloat16() -> bool:
    """Tell whether this CPU multiplies in bfloat16 (Linux; elsewhere False)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return any(_BF16_CPU_FLAGS & set(line.split()) for line in text.splitlines() if line.startswith("flags"))
