"""Continuations to look at: greedy or by temperature, one prompt at a time.

``python -m refinery.trainer.sample --run WORKDIR [--prompt TEXT]`` prints some; `refinery sample` calls it. Without a
prompt, documents of each validation stream are begun, the model goes on, and how they really go on stands beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refinery.errors import ConfigError, IntegrityError, RefineryError
from refinery.shards.format import STARTS_DOCUMENT
from refinery.shards.reader import ShardReader
from refinery.shards.verify import verify_dataset
from refinery.tokenization.encode import open_encoder
from refinery.trainer.attention import plan_attention
from refinery.trainer.checkpoint import load_model
from refinery.trainer.model import Decoder


@torch.no_grad()
def continue_tokens(
    model: Decoder, prompt: Sequence[int], num_tokens: int, *, temperature: float = 0.0, seed: int = 0,
    stop_id: int | None = None) -> list[int]:
    """Return the tokens that the model appends to a prompt.

    The whole prefix is recomputed for each token: meant for a few looks at a small model, not for serving.

    Args:
        model: unsharded.
        prompt: token ids, at least one.
        num_tokens: at most this many new tokens; ends earlier at the model's maximum length.
        temperature: 0 = the most likely token.
        seed: of the draws; equal seeds give equal text.
        stop_id: ends the continuation (and is left out).
    Raises: ConfigError: empty prompt or an id outside the vocabulary.
    """
    vocab_size = model.config.vocab_size
    if not prompt or min(prompt) < 0 or max(prompt) >= vocab_size:
        raise ConfigError(f"prompt must be one or more ids in [0, {vocab_size}); begin with the document-start token")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    model.eval()
    for _ in range(min(num_tokens, model.config.max_sequence_length - len(tokens))):
        length = len(tokens)
        plan = plan_attention(np.array([length]), 1, length, device, doc_mask=False)
        hidden = model.hidden_states(torch.tensor([tokens], device=device), plan)[0, -1]
        logits = (model.head_weight().to(hidden.dtype) @ hidden).float().cpu()
        if temperature <= 0:
            chosen = int(logits.argmax())
        else:
            chosen = int(torch.multinomial(torch.softmax(logits / temperature, 0), 1, generator=generator))
        if chosen == stop_id:
            break
        tokens.append(chosen)
    model.train()
    return tokens[len(prompt) :]


PROMPT_TOKENS = 24
"""Tokens of a held-out document that the model is given."""


@dataclass(frozen=True, slots=True)
class Begun:
    """Something to go on from."""

    domain: str
    """Validation stream; "" for a prompt that a person gave."""
    prompt: tuple[int, ...]
    """Token ids."""
    rest: tuple[int, ...] = ()
    """How the document really goes on."""


def begun_documents(root: Path, per_stream: int, num_tokens: int) -> list[Begun]:
    """Return beginnings of held-out documents, the longest first documents of each validation stream's rows.

    Args:
        root: folder of the shard manifest.
        per_stream: documents of each stream; fewer where a stream has fewer.
        num_tokens: how much of the rest to return.
    Raises:
        ConfigError: no validation stream. IntegrityError: damaged shards.
    """
    manifest = verify_dataset(root, "start")
    reader = ShardReader(root, manifest)
    found = []
    for index, stream in enumerate(manifest.streams):
        if stream.key.split != "validation":
            continue
        rows = np.arange(min(stream.rows, 64))
        tokens = np.empty((len(rows), manifest.sequence_length), dtype=reader.dtype)
        reader.read_rows(index, rows, tokens)
        segments = reader.segments(index, rows)
        starts = np.cumsum(segments.seg_len) - segments.seg_len
        whole = np.flatnonzero(segments.flags & STARTS_DOCUMENT)
        chosen = whole[np.argsort(-segments.seg_len[whole], kind="stable")][:per_stream]
        for at in chosen.tolist():
            ids = tokens.reshape(-1)[starts[at] : starts[at] + segments.seg_len[at]].tolist()
            cut = min(PROMPT_TOKENS, max(1, len(ids) // 2))
            found.append(Begun(stream.name, tuple(ids[:cut]), tuple(ids[cut : cut + num_tokens])))
    reader.close()
    if not found:
        raise ConfigError(f"{root} has no validation stream to begin documents from; give --prompt")
    return found


def sample_run(
    workdir: Path, prompts: Sequence[str], num_tokens: int, *, per_domain: int = 2, temperature: float = 0.0,
    seed: int = 0) -> list[dict[str, Any]]:
    """Let the newest checkpoint of a run go on, with the run's own tokenizer.

    Args:
        workdir: the run's folder: model in ``train``, vocabulary in ``tokenize/tokenizer``, shards in ``pack/shards``.
        prompts: texts, an empty one begins a document; none = held-out documents of each domain.
        num_tokens: at most this many new tokens each.
        per_domain: held-out documents of each validation stream.
        temperature: 0 = the most likely token.
        seed: of the draws.
    Returns: prompt, continuation and number of new tokens of each; domain and real continuation of held-out ones.

    Raises:
        ConfigError: no model, tokenizer or shards there. IntegrityError: they do not belong together.
    """
    folder = workdir / "tokenize" / "tokenizer"
    if not folder.is_dir():
        raise ConfigError(f"{workdir} holds no tokenize/tokenizer; give the workdir of a run that was trained")
    encoder = open_encoder(folder)
    model = load_model(workdir / "train")
    info = encoder.info
    if info.vocab_size > model.config.vocab_size:
        raise IntegrityError(
            f"the tokenizer in {folder} has {info.vocab_size} ids, the model {model.config.vocab_size}; "
            "run the stage train again")
    begun = [Begun("", tuple(encoder.encode_text(prompt).tolist())) for prompt in prompts]
    if not begun:
        begun = begun_documents(workdir / "pack" / "shards", per_domain, num_tokens)
    # rows hold documents end to end, so the end token is also what stands before a beginning
    start = () if info.eos_id is None else (info.eos_id,)
    found = []
    for number, one in enumerate(begun):
        new = continue_tokens(
            model, start + one.prompt, num_tokens, temperature=temperature, seed=seed, stop_id=info.eos_id)
        known = [token for token in new if token < info.vocab_size]  # the head is padded to a round number
        told: dict[str, Any] = {"prompt": prompts[number] if prompts else encoder.decode(list(one.prompt)),
                                "continuation": encoder.decode(known), "num_tokens": len(new)}
        if one.domain:
            told |= {"domain": one.domain, "real": encoder.decode(list(one.rest))}
        found.append(told)
    return found


def _text(one: dict[str, Any]) -> str:
    """Return one continuation for people; `│` stands where the model begins."""
    lines = [f"{one['prompt']}│{one['continuation']}"]
    if "domain" in one:
        lines = [f"── {one['domain']}", *lines, f"really: {one['real']}"]
    return "\n".join(lines) + "\n\n"


def main(arguments: list[str] | None = None) -> int:
    """Print continuations; return the exit code of `refinery.errors`."""
    parser = argparse.ArgumentParser(prog="python -m refinery.trainer.sample", description="Go on from a prompt.")
    parser.add_argument("--run", required=True, type=Path, help="workdir of a run")
    parser.add_argument("--prompt", default=[], action="append", help="none: held-out documents of each domain")
    parser.add_argument("--per-domain", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    try:
        found = sample_run(
            parsed.run, parsed.prompt, parsed.tokens, per_domain=parsed.per_domain, temperature=parsed.temperature,
            seed=parsed.seed)
    except RefineryError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    if parsed.json:
        sys.stdout.write(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.write("".join(map(_text, found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
