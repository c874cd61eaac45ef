"""RWKV-7 equals its published recurrence (arXiv 2503.14456), here written token by token from a checkpoint's tensors.

Transformers has no such class; the names are those of ``RWKV/RWKV7-Goose-…-HF``."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity import prove_engine, prove_training
from safetensors.torch import save_file

from wootz.models import Decoder, PackedContext, load, read_config
from wootz.models.names import checkpoint_views

HEADS, SIZE, VOCAB = 3, 8, 53
RAW = {
    "model_type": "rwkv7",
    "vocab_size": VOCAB,
    "hidden_size": HEADS * SIZE,
    "num_hidden_layers": 2,
    "head_dim": SIZE,
    "intermediate_size": 40,
    "decay_low_rank_dim": 5,
    "a_low_rank_dim": 4,
    "v_low_rank_dim": 3,
    "gate_low_rank_dim": 6,
    "norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 0,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = read_config(RAW).build()
    assert isinstance(model, Decoder)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * (0.2 if parameter.ndim < 2 else 0.1)
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    save_file(
        {name: view.contiguous() for name, view in checkpoint_views(model).items()}, tmp_path / "model.safetensors"
    )
    return tmp_path


class Published:
    """The formulas, for one text, from the tensors of a checkpoint."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm("model.layers.0.pre_norm", self.weights["model.embeddings.weight"][tokens])
        first_values = None
        for layer in range(RAW["num_hidden_layers"]):
            at = f"model.layers.{layer}"
            mixed, first_values = self.time_mix(f"{at}.attn", self.norm(f"{at}.attn_norm", x), first_values)
            x = x + mixed
            x = x + self.channel_mix(f"{at}.ffn", self.norm(f"{at}.ffn_norm", x))
        return self.norm("model.norm", x) @ self.weights["lm_head.weight"].mT

    def norm(self, name, x):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, RAW["norm_eps"])

    def low_rank(self, name, x, activation):
        up = activation(x @ self.weights[f"{name}.lora.0.weight"].mT) @ self.weights[f"{name}.lora.2.weight"].mT
        return up + self.weights.get(f"{name}.lora.2.bias", 0)

    def time_mix(self, at, x, first_values):
        weights = {name.removeprefix(f"{at}."): tensor for name, tensor in self.weights.items() if name.startswith(at)}
        state = torch.zeros(HEADS, SIZE, SIZE, dtype=x.dtype)
        before, outputs, values = torch.zeros_like(x[0]), [], []
        for t, now in enumerate(x):
            r_in, w_in, k_in, v_in, a_in, g_in = (
                torch.lerp(now, before, weights[f"x_{part}"].flatten()) for part in "rwkvag"
            )
            r, k, v = weights["r_proj.weight"] @ r_in, weights["k_proj.weight"] @ k_in, weights["v_proj.weight"] @ v_in
            if first_values is not None:
                v = torch.lerp(v, first_values[t], self.low_rank(f"{at}.v_lora", v_in, lambda y: y).sigmoid())
            values.append(v)
            w = torch.exp(-math.exp(-0.5) * self.low_rank(f"{at}.w_lora", w_in, torch.tanh).sigmoid())
            a = self.low_rank(f"{at}.a_lora", a_in, lambda y: y).sigmoid()
            g = self.low_rank(f"{at}.g_lora", g_in, torch.sigmoid)
            kappa = F.normalize((k * weights["k_k"]).view(HEADS, SIZE), dim=-1)
            k = torch.lerp(k, k * a, weights["k_a"])
            r, w, k, v, a = (vector.view(HEADS, SIZE) for vector in (r, w, k, v, a))
            change = w.diag_embed() - kappa[:, :, None] * (a * kappa)[:, None]
            state = state @ change + v[:, :, None] * k[:, None]
            y = torch.einsum("hij,hj->hi", state, r)
            y = F.group_norm(
                y.view(1, -1), HEADS, weights["g_norm.weight"], weights["g_norm.bias"], SIZE * RAW["norm_eps"]
            )
            bonus = (r * k * weights["r_k"]).sum(-1, keepdim=True) * v
            outputs.append(weights["o_proj.weight"] @ (g * (y[0] + bonus.flatten())))
            before = now
        return torch.stack(outputs), torch.stack(values) if first_values is None else first_values

    def channel_mix(self, at, x):
        before = torch.cat((torch.zeros_like(x[:1]), x[:-1]))
        inner = torch.lerp(x, before, self.weights[f"{at}.x_k"].flatten()) @ self.weights[f"{at}.key.weight"].mT
        return inner.relu().square() @ self.weights[f"{at}.value.weight"].mT


def tokens_of(length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(1))


def test_logits_and_gradients_are_those_of_the_published_recurrence(folder):
    model, tokens = load(folder), tokens_of(45)
    weights = {name: view.clone().requires_grad_() for name, view in checkpoint_views(model).items()}
    published = Published(weights)
    expected = published.logits(tokens)
    torch.testing.assert_close(model.logits(tokens), expected, atol=1e-4, rtol=0)

    F.cross_entropy(model.logits(tokens)[:-1], tokens[1:]).backward()
    F.cross_entropy(expected[:-1], tokens[1:]).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.data = parameter.grad
    for name, gradient in checkpoint_views(model).items():
        theirs = weights[name].grad
        assert theirs is not None
        assert (gradient - theirs).norm() < 1e-3 * theirs.norm().clamp_min(1e-6), name


@torch.inference_mode()
def test_packed_documents_are_separate(folder):
    model, tokens, lengths = load(folder), tokens_of(45), [7, 1, 37]
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed = model.unembed(model(tokens, positions, PackedContext(lengths)))
    published = Published(checkpoint_views(model))
    expected = torch.cat([published.logits(document) for document in tokens.split(lengths)])
    torch.testing.assert_close(packed, expected, atol=1e-4, rtol=0)


def test_it_learns(folder):
    prove_training(folder)


def test_the_engine_gives_each_request_the_tokens_it_would_get_alone(folder):
    model = load(folder, dtype="float64")
    model.config = replace(model.config, max_position_embeddings=64)
    prove_engine(model)


def test_checkpoint_names_are_the_published_ones():
    model = read_config(RAW).build()
    assert isinstance(model, Decoder)
    first, second = (
        {name.removeprefix(f"model.layers.{layer}.") for name in checkpoint_views(model) if f"layers.{layer}." in name}
        for layer in (0, 1)
    )
    low_rank = {f"attn.{part}_lora.lora.{n}.weight" for part in "wavg" for n in (0, 2)}
    low_rank |= {f"attn.{part}_lora.lora.2.bias" for part in "wav"}
    norms = {f"{norm}.{leaf}" for norm in ("attn_norm", "ffn_norm", "attn.g_norm") for leaf in ("weight", "bias")}
    linear = {f"attn.{part}_proj.weight" for part in "rkvo"} | {"ffn.key.weight", "ffn.value.weight", "ffn.x_k"}
    vectors = {f"attn.x_{part}" for part in "rwkvag"} | {"attn.k_k", "attn.k_a", "attn.r_k"}
    assert second == low_rank | norms | linear | vectors
    own_values = {name for name in low_rank if "v_lora" in name}
    assert first == second - own_values | {"pre_norm.weight", "pre_norm.bias"}
    assert checkpoint_views(model)["model.layers.0.attn.x_r"].shape == (1, 1, HEADS * SIZE)
    assert checkpoint_views(model)["model.layers.0.ffn.x_k"].shape == (HEADS * SIZE,)
