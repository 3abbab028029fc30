from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from refinery.errors import ConfigError
from refinery.trainer import forecast
from refinery.trainer.attention import plan_attention
from refinery.trainer.config import OptimConfig
from refinery.trainer.forecast import Hardware, check_memory, memory_need_bytes, predicted_step_seconds
from refinery.trainer.metrics import effective_flops
from refinery.trainer.model import Decoder, fill_parameters, initial_values
from refinery.trainer.presets import preset_model
from tests.trainer.tiny_runs import tiny_config, tiny_model

CPU = torch.device("cpu")
SHAPE = {"d_model": 64, "head_dim": 16, "d_ff": 192, "num_layers": 4, "max_sequence_length": 64}


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_activations_kept_for_backward_are_as_forecast(recompute):
    model = Decoder(tiny_model(**SHAPE), activation_checkpointing=recompute)
    fill_parameters(model, initial_values(model.config, 1))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, held = {}, []

    def remember(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    tokens = torch.zeros(8, 64, dtype=torch.int64)
    plan = plan_attention(np.array([64] * 8), 8, 64, CPU, doc_mask=False)
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        hidden = model.hidden_states(tokens, plan)
    measured = sum(kept.values())
    hidden.sum().backward()
    config = tiny_config(activation_checkpointing=recompute)
    need = memory_need_bytes(config, model.config, 64, 1, 4) - memory_need_bytes(config, model.config, 0, 1, 4)
    chunk = min(config.chunk_tokens, 512) * model.config.vocab_size * 12
    one_block = forecast.eager_activation_values(model.config, 64) * 512 * 4 if recompute != "none" else 0
    assert measured == pytest.approx(need - chunk - one_block, rel=0.1)


def test_memory_grows_with_what_it_should():
    config, model = tiny_config(), preset_model("125m", 32_000)
    base = memory_need_bytes(config, model, 4096, 1, 2)
    assert memory_need_bytes(config, model, 4096, 8, 2) == base - int(16 * model.num_params * 7 / 8)
    assert base > memory_need_bytes(tiny_config(activation_checkpointing="selective"), model, 4096, 1, 2)
    small = memory_need_bytes(tiny_config(optim=OptimConfig(moments="bfloat16")), model, 4096, 1, 2)
    assert base - small == 4 * model.num_params
    # 16 bytes of state per parameter make 5b about 80 GB, which full recomputation fits beside on one device
    full = tiny_config(activation_checkpointing="full", micro_batch_rows=1)
    assert 80e9 < memory_need_bytes(full, preset_model("5b", 32_000), 4096, 1, 2) < 100e9


def test_a_compiled_model_takes_what_was_measured_on_an_h200():
    """Peaks of `benchmarks/gpu_train.py`'s bare loop on one NVIDIA H200, torch 2.11, vocabulary 32,768."""
    for preset, rows, measured in (("125m", 16, 26.8e9), ("1.3b", 4, 56.2e9)):
        config = tiny_config(micro_batch_rows=rows, chunk_tokens=8192, compile=True)
        need = memory_need_bytes(config, preset_model(preset, 32_768, 4096), 4096, 1, 2)
        assert need == pytest.approx(measured, rel=0.03)
        eager_need = memory_need_bytes(replace(config, compile=False), preset_model(preset, 32_768, 4096), 4096, 1, 2)
        assert need < eager_need


def test_too_little_memory_names_the_largest_preset_that_fits(monkeypatch):
    monkeypatch.setattr(forecast, "available_bytes", lambda device: 30_000_000_000)
    config = tiny_config(model=preset_model("5b", 32_000, 1024), micro_batch_rows=1)
    with pytest.raises(ConfigError, match=r"needs about \d+\.\d GB.*30\.0 GB free.*largest preset that fits: 1\.3b"):
        check_memory(config, 1024, 1, CPU)
    assert check_memory(tiny_config(), 64, 1, CPU) < 10_000_000


# DESIGN's roofline of one H200 with causal attention over rows of 4,096: ceiling of MFU by size
@pytest.mark.parametrize(("preset", "ceiling"), [("125m", 0.55), ("350m", 0.59), ("1.3b", 0.66)])
def test_predicted_steps_lie_under_the_roofline(preset, ceiling):
    model = preset_model(preset, 32_768, 4096)
    rows = 32
    pairs = rows * 4096 * 4097 // 2
    seconds = predicted_step_seconds(model, rows * 4096, pairs)
    mfu = effective_flops(model, rows * 4096, pairs) / seconds / forecast.H200.peak_flops
    assert ceiling - 0.25 < mfu < ceiling
    twice = Hardware(2 * forecast.H200.peak_flops, 2 * forecast.H200.bytes_per_second)
    assert predicted_step_seconds(model, rows * 4096, pairs, twice) == pytest.approx(seconds / 2)
    assert predicted_step_seconds(model, rows * 4096, pairs // 4) < seconds


@pytest.mark.parametrize(
    ("preset", "tokens", "context", "measured"),
    [("125m", 131_072, 1116.5, 0.3125), ("350m", 131_072, 1116.5, 0.8638), ("1.3b", 65_536, 1058.8, 1.1868)],
)
def test_predicted_steps_are_what_an_h200_took_or_a_little_less(preset, tokens, context, measured):
    """docs/benchmarks.md, torch 2.11: nothing between the parts overlaps, and nothing else is counted."""
    seconds = predicted_step_seconds(preset_model(preset, 32_768, 4096), tokens, int(context * tokens))
    assert 0.84 * measured < seconds < measured
