from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from refinery.errors import ConfigError, IntegrityError
from refinery.trainer.attention import plan_attention
from refinery.trainer.config import RopeScaling
from refinery.trainer.hf import _sources, export_hf, extend_rows, pretrained_values, read_hf_config, to_hf_config
from refinery.trainer.model import Decoder, fill_parameters, initial_values
from tests.trainer.tiny_runs import LENGTH, VOCAB, tiny_model

SCALING = RopeScaling(factor=4.0, original_max_positions=32)
FAMILIES = {
    "llama": {"tie_embeddings": False, "rope_scaling": SCALING},
    "llama-geglu-mqa": {"activation": "gelu", "num_kv_heads": 1},
    "llama-mha": {"num_kv_heads": 4, "head_dim": 16},
    "qwen2": {"qkv_bias": True, "norm_eps": 1e-6},
    "qwen3": {"qk_norm": True, "head_dim": 16, "tie_embeddings": False, "rope_theta": 1e6},
}


def built(**changes) -> Decoder:
    model = Decoder(tiny_model(init_std=0.2, **changes), chunk_tokens=50)
    values = initial_values(model.config, 1)
    # gains and biases off their neutral values, so that a missing one shows
    fill_parameters(model, lambda name, shape: values(name, shape) + (
        0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(len(name))) if len(shape) == 1 else 0.0))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal_transformers(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = built(**FAMILIES[family])
    export_hf(ours, tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", attn_implementation="eager", dtype=torch.float32)
    assert theirs.config.model_type == family.partition("-")[0]
    tokens = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    plan = plan_attention(np.array([LENGTH] * 2), 2, LENGTH, torch.device("cpu"), doc_mask=True)
    torch.testing.assert_close(ours(tokens, plan), theirs(tokens).logits, rtol=1e-5, atol=1e-5)

    mine, others = gradients(ours, theirs, tokens, plan)
    exact = gradients(ours.double(), theirs.double(), tokens, plan)[1]
    for name, gradient in mine.items():
        assert distance(gradient, others[name]) < 1e-5, name
        # rounding, not a difference of method: ours is as close to their float64 gradient as their own float32 is
        assert distance(gradient, exact[name]) < max(2 * distance(others[name], exact[name]), 2e-6), name


def gradients(ours, theirs, tokens, plan) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return gradients of the mean loss of both models, theirs joined under our names."""
    ours.compute_dtype = next(ours.parameters()).dtype
    ours.zero_grad()
    theirs.zero_grad()
    labels = torch.cat((tokens[:, 1:], torch.full((2, 1), -100)), dim=1)
    (ours(tokens, plan, labels).total / (labels != -100).sum()).backward()
    theirs(tokens, labels=tokens).loss.backward()
    parts = {name: p.grad for name, p in theirs.named_parameters()}
    joined = {name: torch.cat([parts[part] for part in _sources(name)]) for name, _ in ours.named_parameters()}
    return {name: p.grad.clone() for name, p in ours.named_parameters()}, joined


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the larger of the relative error in norm and the largest error beside the largest entry."""
    a, b = a.double(), b.double()
    return float(max((a - b).norm() / b.norm(), (a - b).abs().max() / b.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_written_by_transformers_is_read(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = to_hf_config(tiny_model(**FAMILIES[family]))
    kind = config.pop("model_type")
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **config))
    theirs.save_pretrained(tmp_path)
    ours = Decoder(read_hf_config(tmp_path))
    assert ours.config == tiny_model(**FAMILIES[family])
    fill_parameters(ours, pretrained_values(tmp_path, ours.config))
    tokens = torch.arange(LENGTH)[None]
    plan = plan_attention(np.array([LENGTH]), 1, LENGTH, torch.device("cpu"), doc_mask=False)
    torch.testing.assert_close(ours(tokens, plan), theirs.eval()(tokens).logits, rtol=1e-5, atol=1e-5)


def test_export_reads_back_bit_equal_and_refuses_a_full_folder(tmp_path):
    model = built()
    (tmp_path / "tokenizer.json").write_text("{}")
    export_hf(model, tmp_path / "hf", tokenizer_files=(tmp_path / "tokenizer.json",))
    assert (tmp_path / "hf" / "tokenizer.json").exists()
    again = Decoder(read_hf_config(tmp_path / "hf"))
    fill_parameters(again, pretrained_values(tmp_path / "hf", again.config))
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ConfigError, match="not empty"):
        export_hf(model, tmp_path / "hf")


def test_new_tokens_start_as_the_mean_of_their_pieces(tmp_path):
    model = built(tie_embeddings=False)
    export_hf(model, tmp_path / "hf")
    larger = tiny_model(vocab_size=VOCAB + 3, tie_embeddings=False)
    with pytest.raises(ConfigError, match="vocab_extension is not set"):
        pretrained_values(tmp_path / "hf", larger)
    path = tmp_path / "map.json"
    path.write_text(json.dumps({str(VOCAB): [1, 2], str(VOCAB + 1): [7]}))
    values = pretrained_values(tmp_path / "hf", larger, str(path))
    for name, old in (("embed.weight", model.embed.weight), ("head.weight", model.head.weight)):
        rows = values(name, torch.Size((VOCAB + 3, 32)))
        torch.testing.assert_close(rows[VOCAB], old[1:3].mean(0))
        torch.testing.assert_close(rows[VOCAB + 1], old[7])
        torch.testing.assert_close(rows[VOCAB + 2], old.mean(0))
    path.write_text(json.dumps({str(VOCAB): [VOCAB]}))
    with pytest.raises(ConfigError, match="old ids"):
        pretrained_values(tmp_path / "hf", larger, str(path))
    assert extend_rows(torch.eye(2), {}, 2).shape == (2, 2)


def test_strict_about_shape_family_and_tensors(tmp_path):
    model = built()
    export_hf(model, tmp_path / "hf")
    with pytest.raises(ConfigError, match="d_ff"):
        pretrained_values(tmp_path / "hf", tiny_model(d_ff=96))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(IntegrityError, match="missing tensors"):
        pretrained_values(tmp_path / "hf", tiny_model(num_layers=3))
    for change, message in (({"model_type": "gpt2"}, "model_type"), ({"hidden_act": "relu"}, "hidden_act"),
                            ({"rope_scaling": {"rope_type": "yarn"}}, "rope type"), ({"mlp_bias": True}, "bias")):
        (tmp_path / "hf" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ConfigError, match=message):
            read_hf_config(tmp_path / "hf")
    with pytest.raises(ConfigError, match="no Hugging Face family"):
        to_hf_config(tiny_model(qk_norm=True, qkv_bias=True))
