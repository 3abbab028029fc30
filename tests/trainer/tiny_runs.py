from __future__ import annotations

import numpy as np

from refinery.trainer.config import (
    CheckpointConfig,
    EvalConfig,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
)
from refinery.trainer.memory import MemorySource, join_rows, rows_of_documents, take_rows

LENGTH = 64
VOCAB = 128


def tiny_model(**changes) -> ModelConfig:
    values = {"vocab_size": VOCAB, "d_model": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
              "d_ff": 64, "max_sequence_length": LENGTH}
    return ModelConfig(**(values | changes))


def tiny_config(**changes) -> TrainConfig:
    values = {
        "model": tiny_model(), "steps": 8, "batch_tokens": 8 * LENGTH, "micro_batch_rows": 8,
        "schedule": ScheduleConfig(kind="cosine", max_lr=3e-3, warmup_steps=2),
        "evaluate": EvalConfig(), "checkpoint": CheckpointConfig()}
    return TrainConfig(**(values | changes))


def documents(seed: int, num_docs: int, low: int, high: int) -> list[np.ndarray]:
    """Learnable documents: each token is a fixed function of the one before, with some noise."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(num_docs):
        length = int(rng.integers(3, 60))
        ids = [int(rng.integers(low, high))]
        for _ in range(length - 1):
            follow = (ids[-1] * 7 + 3) % (high - low) + low
            ids.append(follow if rng.random() < 0.9 else int(rng.integers(low, high)))
        out.append(np.array(ids, dtype=np.uint16))
    return out


def memory_source(seed: int = 0) -> MemorySource:
    target = rows_of_documents(documents(seed, 120, 0, 64), LENGTH, stream=0)
    replay = rows_of_documents(documents(seed + 1, 60, 64, VOCAB), LENGTH, stream=1)
    rows = join_rows([target, replay])
    order = np.random.default_rng(7).permutation(len(rows.tokens))
    return MemorySource(
        rows=take_rows(rows, order), vocab_size=VOCAB, streams=("law/target", "web/replay"),
        replay_streams=("web/replay",),
        validation={"law": rows_of_documents(documents(seed + 2, 20, 0, 64), LENGTH),
                    "web": rows_of_documents(documents(seed + 3, 20, 64, VOCAB), LENGTH)})
