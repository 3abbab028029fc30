"""Continuations to look at: greedy or by temperature, one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from refinery.errors import ConfigError
from refinery.trainer.attention import plan_attention
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
