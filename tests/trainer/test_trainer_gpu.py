from __future__ import annotations

import numpy as np
import pytest
import torch

from refinery.trainer.attention import plan_attention
from refinery.trainer.loop import train
from refinery.trainer.model import Decoder, fill_parameters, initial_values
from tests.trainer.tiny_runs import LENGTH, VOCAB, memory_source, tiny_config, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_varlen_on_cuda_equals_the_mask_on_cpu():
    config = tiny_model(d_model=64, head_dim=16, d_ff=128, init_std=0.1)
    lengths = np.array([20, 30, 14, 64])
    tokens = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    outputs, gradients = [], []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        model = Decoder(config, compute_dtype=dtype)
        fill_parameters(model, initial_values(config, 1))
        model.to(device)
        plan = plan_attention(lengths, 2, LENGTH, torch.device(device), doc_mask=True)
        outputs.append(model(tokens.to(device), plan).detach().cpu())
        model(tokens.to(device), plan, tokens.roll(-1, 1).to(device)).total.backward()
        gradients.append({name: parameter.grad.cpu().flatten() for name, parameter in model.named_parameters()})
    assert plan.kind == "varlen"
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0.05, atol=0.05)
    for name, gradient in gradients[0].items():
        assert torch.cosine_similarity(gradient, gradients[1][name], dim=0) > 0.99, name


@pytest.mark.parametrize("compiled", [False, True])
def test_training_on_cuda_learns(tmp_path, compiled):
    model = tiny_model(d_model=64, head_dim=16, d_ff=128)
    record = train(tiny_config(model=model, steps=40, device="cuda", compile=compiled), memory_source(), tmp_path)
    start = {point.stream: point.loss_nats for point in record.points if point.step == 0}
    assert all(loss < start[stream] - 1 for stream, loss in record.final_losses().items())
