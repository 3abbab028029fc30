"""Continuations to look at: greedy or by temperature, one prompt at a time.

``python -m refinery.trainer.sample --run WORKDIR --prompt TEXT`` prints some; `refinery sample` calls it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refinery.errors import ConfigError, IntegrityError, RefineryError
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


def sample_run(
    workdir: Path, prompts: Sequence[str], num_tokens: int, *, temperature: float = 0.0, seed: int = 0
) -> list[dict[str, Any]]:
    """Let the newest checkpoint of a run go on from prompts, with the run's own tokenizer.

    Args:
        workdir: the run's folder: model in ``train``, vocabulary in ``tokenize/tokenizer``.
        prompts: texts; an empty one begins a document.
        num_tokens: at most this many new tokens each.
        temperature: 0 = the most likely token.
        seed: of the draws.
    Returns: prompt, continuation and number of new tokens of each.

    Raises:
        ConfigError: no model or no tokenizer there. IntegrityError: they do not belong together.
    """
    folder = workdir / "tokenize" / "tokenizer"
    if not folder.is_dir():
        raise ConfigError(f"{workdir} holds no tokenize/tokenizer; give the workdir of a run that was trained")
    encoder = open_encoder(folder)
    model = load_model(workdir / "train")
    if encoder.info.vocab_size > model.config.vocab_size:
        raise IntegrityError(
            f"the tokenizer in {folder} has {encoder.info.vocab_size} ids, the model {model.config.vocab_size}; "
            "run the stage train again")
    # rows hold documents end to end, so the end token is also what stands before a beginning
    start = [] if encoder.info.eos_id is None else [encoder.info.eos_id]
    found = []
    for prompt in prompts:
        ids = start + encoder.encode_text(prompt).tolist()
        new = continue_tokens(
            model, ids, num_tokens, temperature=temperature, seed=seed, stop_id=encoder.info.eos_id)
        known = [token for token in new if token < encoder.info.vocab_size]  # the head is padded to a round number
        found.append({"prompt": prompt, "continuation": encoder.decode(known), "num_tokens": len(new)})
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print continuations; return the exit code of `refinery.errors`."""
    parser = argparse.ArgumentParser(prog="python -m refinery.trainer.sample", description="Go on from a prompt.")
    parser.add_argument("--run", required=True, type=Path, help="workdir of a run")
    parser.add_argument("--prompt", required=True, action="append")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    try:
        found = sample_run(
            parsed.run, parsed.prompt, parsed.tokens, temperature=parsed.temperature, seed=parsed.seed)
    except RefineryError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    if parsed.json:
        sys.stdout.write(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.write("".join(f"{one['prompt']}│{one['continuation']}\n\n" for one in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
