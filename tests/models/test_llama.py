"""One model definition equals each family's own implementation in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reference_models import FAMILIES, TOKENS, reference_logits, save_reference

from wootz.models import Decoder, PackedContext, load, read_config
from wootz.models.names import checkpoint_views


@torch.inference_mode()
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    reference = save_reference(tmp_path, family, tied=tied)
    expected = reference_logits(reference)
    model = load(tmp_path)
    assert model.num_parameters == reference.num_parameters()
    # Gemma 3's embeddings are scaled up and its norms have weights of any size: sums in another order show earlier.
    atol = 2e-4 if family.startswith("gemma3") else 1e-4
    torch.testing.assert_close(model.logits(TOKENS), expected, atol=atol, rtol=0)
    model.prepare_for_inference()
    torch.testing.assert_close(model.logits(TOKENS), expected, atol=atol, rtol=0)


@torch.inference_mode()
def test_config_of_older_transformers_is_read(tmp_path: Path) -> None:
    """Before version 5, rope_theta stood alone and scaling under rope_scaling, its kind sometimes called "type"."""
    expected = reference_logits(save_reference(tmp_path, "llama3"))
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    del config["head_dim"]
    file.write_text(json.dumps(config))
    torch.testing.assert_close(load(tmp_path).logits(TOKENS), expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_shards_are_read_as_one_model(tmp_path: Path) -> None:
    expected = reference_logits(save_reference(tmp_path, "qwen3", max_shard_size="100KB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    torch.testing.assert_close(load(tmp_path).logits(TOKENS), expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_half_precision_stays_close_and_keeps_angles_exact(tmp_path: Path) -> None:
    expected = reference_logits(save_reference(tmp_path, "llama3"))
    model = load(tmp_path, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert model.layers[0].mixer.rotary.frequencies.dtype == torch.float32
    logits = model.logits(TOKENS)
    assert logits.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(logits, expected).min() > 0.99


def test_end_tokens_come_from_the_generation_config(tmp_path: Path) -> None:
    save_reference(tmp_path, "qwen2")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert load(tmp_path).config.eos_token_ids == (7, 8)


def small_model(**settings) -> Decoder:
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    others = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    torch.manual_seed(0)
    return read_config({"model_type": "qwen3"} | sizes | others | settings).build()


def test_packed_documents_equal_separate_ones() -> None:
    model = small_model(attention_bias=True).double()
    lengths = [5, 1, 17, 9]
    documents = [torch.randint(50, (length,)) for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed = model.unembed(model(torch.cat(documents), positions, PackedContext(lengths)))
    separate = torch.cat([model.logits(document) for document in documents])
    torch.testing.assert_close(packed, separate, atol=1e-12, rtol=0)


def test_positions_are_relative() -> None:
    model = small_model().double()
    tokens, positions = torch.randint(50, (12,)), torch.arange(12)
    shifted = model(tokens, positions + 100, PackedContext([12]))
    torch.testing.assert_close(model(tokens, positions, PackedContext([12])), shifted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_weight_learns(tied: bool) -> None:
    model = small_model(tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    tokens = torch.randint(50, (40,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(model.logits(tokens[:-1]), tokens[1:])
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.3


def test_checkpoint_views_are_the_checkpoint(tmp_path: Path) -> None:
    """What `load` copies into is also what a saver writes: transformers' own names, shapes and values."""
    expected = save_reference(tmp_path, "qwen3", tied=True).state_dict()
    views = checkpoint_views(load(tmp_path))
    assert views.keys() == expected.keys() - {"lm_head.weight"}
    for name, view in views.items():
        assert torch.equal(view, expected[name])


def test_preparing_for_inference_gives_the_plain_weights_back() -> None:
    model = small_model(tie_word_embeddings=True).prepare_for_inference()
    assert model.layers[0].ffn.down.weight is None
    assert model.embedding.weight is not None
    assert not any(parameter.requires_grad for parameter in model.parameters())
