"""Recurrent, parallel and chunked are one: against loops in float64, and against MiniMax's layer in transformers."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from wootz.models.attention import linear
from wootz.models.attention.dense import attend
from wootz.models.context import PackedContext

B, T, H, D, E = 2, 23, 3, 4, 5


def inputs(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, T, H, width, generator=generator).to(dtype) for width in (D, D, E, D)]


def start(dtype=torch.float32):
    return linear.decayed_state(H, D, E).start(B, dtype, torch.device("cpu"))


def token_by_token(q, k, v, log_decay):
    """S_t = decay_t ⊙ S_(t-1) + kᵀv, out = q S, as it is written in the papers."""
    q, k, v, log_decay = (x.double() for x in (q, k, v, log_decay))
    total, outputs = torch.zeros(B, H, D, E, dtype=torch.float64), []
    for t in range(q.shape[1]):
        total = log_decay[:, t].exp().unsqueeze(-1) * total + torch.einsum("bhd,bhe->bhde", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhd,bhde->bhe", q[:, t], total))
    return torch.stack(outputs, 1), total


@settings(max_examples=40, deadline=None)
@given(chunk=st.sampled_from([1, 4, 7, 64]), cut=st.integers(1, T - 1), kind=st.sampled_from(["head", "dimension"]))
def test_every_chunking_and_every_cut_gives_the_recurrence(chunk, cut, kind):
    """Chunks of 1 are the recurrent form, one of 64 the parallel form; a cut is decoding that goes on."""
    q, k, v, gates = inputs()
    log_decay = -gates.abs() * 3 if kind == "dimension" else -gates[..., :1].abs() * 3
    expected, expected_state = token_by_token(q, k, v, log_decay)
    parts, state = [], start()
    for piece in (slice(0, cut), slice(cut, T)):
        part, state = linear.decayed_sum(state, q[:, piece], k[:, piece], v[:, piece], log_decay[:, piece], chunk=chunk)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), expected.float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state[0], expected_state.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_linear_attention_is_a_weighted_mean_with_the_features_products_as_weights(chunk):
    q, k, v, _ = inputs()
    q, k = linear.elu_plus_one(q), linear.elu_plus_one(k)
    weights = torch.einsum("bihd,bjhd->bhij", q, k).tril()
    expected = torch.einsum("bhij,bjhe->bihe", weights / weights.sum(-1, keepdim=True), v)
    state = linear.linear_attention_state(H, D, E).start(B, torch.float32, torch.device("cpu"))
    out, (state_after,) = linear.linear_attention(state, q, k, v, chunk=chunk)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    assert state_after.shape == (B, H, D, E + 1)
    assert (state[0] == 0).all()  # not changed in place


@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_retention_is_its_decay_matrix(chunk):
    q, k, v, _ = inputs()
    log_decay = linear.retention_log_decay(H)
    torch.testing.assert_close(log_decay.exp(), torch.tensor([1 - 2.0**-5, 1 - 2.0**-6, 1 - 2.0**-7]))
    distance = (torch.arange(T)[:, None] - torch.arange(T)).clamp_min(0)
    decay = (log_decay.exp()[:, None, None] ** distance).tril()
    expected = (torch.einsum("bihd,bjhd->bhij", q, k) * decay) @ v.transpose(1, 2)
    out, _ = linear.retention(start(), q, k, v, log_decay_H=log_decay, chunk=chunk)
    torch.testing.assert_close(out, expected.transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_retention_is_minimax_lightning_attention():
    config = transformers.MiniMaxConfig(
        hidden_size=12, num_attention_heads=H, head_dim=D, num_hidden_layers=2, block_size=8,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    layer = MiniMaxLightningAttention(config, 0)
    x = torch.randn(B, T, 12)
    expected, expected_state = layer(x, None, None)
    qkv = layer.act_fn(layer.qkv_proj(x)).unflatten(-1, (H, 3 * D))
    state = linear.decayed_state(H, D, D).start(B, torch.float32, torch.device("cpu"))
    out, state = linear.retention(state, *qkv.split(D, -1), log_decay_H=-layer.slope_rate.flatten(), chunk=5)
    out = layer.out_proj(layer.output_gate(x).sigmoid() * layer.norm(out.flatten(2)))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state[0], expected_state, atol=1e-5, rtol=1e-4)


def test_gated_linear_attention_survives_gates_that_close():
    """exp(-cumulative decay) would be infinite here: 23 tokens that each forget by e^-50."""
    q, k, v, gates = inputs()
    gates = gates * 20 - 800
    log_decay = torch.nn.functional.logsigmoid(gates) / 16
    out, state = linear.gated_linear_attention(start(), q, k, v, gates)
    expected, _ = token_by_token(q, k, v, log_decay)
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-4)
    assert state[0].isfinite().all()


def test_gradients_are_right():
    q, k, v, gates = (x[:1, :5, :1].clone().requires_grad_() for x in inputs(dtype=torch.float64))
    state = (torch.randn(1, 1, D, E, dtype=torch.float64, requires_grad=True),)

    def run(q, k, v, gates, state):
        out, (after,) = linear.gated_linear_attention((state,), q, k, v, gates, chunk=2)
        return out, after

    assert torch.autograd.gradcheck(run, (q, k, v, gates, *state))


def test_it_runs_through_the_context():
    q, k, v, _ = inputs()
    spec = linear.decayed_state(H, D, E)

    def advance(state, q, k, v):
        return linear.retention(state, q, k, v, log_decay_H=linear.retention_log_decay(H))

    flat = [x.flatten(0, 1) for x in (q, k, v)]
    side_by_side = PackedContext([T, T]).recur(0, spec, advance, *flat)
    uneven = PackedContext([T, T - 1, 1]).recur(0, spec, advance, *flat)
    torch.testing.assert_close(side_by_side[: 2 * T - 1], uneven[: 2 * T - 1], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(side_by_side[-1], uneven[-1])


@pytest.mark.slow
def test_random_features_estimate_softmax_attention_the_better_the_more():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (0.7 * torch.randn(1, 32, 1, 8, generator=generator) for _ in range(3))
    exact = attend(*(x.transpose(1, 2) for x in (q, k, v)), scale=8**-0.5, is_causal=True).transpose(1, 2)

    def error(num_features):
        errors = []
        for seed in range(10):
            features = linear.FavorFeatures(8, num_features, seed)
            state = linear.linear_attention_state(1, num_features, 8).start(1, torch.float32, torch.device("cpu"))
            out, _ = linear.linear_attention(state, features(q), features(k), v)
            errors.append((out - exact).square().mean().sqrt())
        return sum(errors) / len(errors)

    scaled = linear.FavorFeatures(8, 64)
    torch.testing.assert_close(  # a query's features divided by the largest: the factor cancels
        *(
            linear.linear_attention(
                linear.linear_attention_state(1, 64, 8).start(1, torch.float32, torch.device("cpu")), q_features,
                scaled(k), v,
            )[0]
            for q_features in (scaled(q), scaled(q, up_to_scale=True))
        ),
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip

    few, some, many = error(16), error(256), error(4096)
    assert many < 0.5 * some < 0.5 * few
    assert many < 0.03

    features = linear.FavorFeatures(8, 100_000)
    a, b = q[0, 0, 0], k[0, 1, 0]
    torch.testing.assert_close(features(a) @ features(b), torch.exp(a @ b * 8**-0.5), atol=0, rtol=0.03)
