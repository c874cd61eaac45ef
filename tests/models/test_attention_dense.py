"""`attend` against the formula in float64, and against the eager attention of transformers' models."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from wootz.models.attention.dense import attend, attend_eager, attention_weights, causal_mask


def textbook(q, k, v, *, scale, mask=None, softcap=None, sinks=None, bias=None):
    """Keys and values repeated, scores in full, softmax by exponentials, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[-3] // k.shape[-3]
    k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
    scores = torch.einsum("...hqd,...hld->...hql", q, k) * scale
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    if bias is not None:
        scores = scores + bias
    weights = scores.exp()
    if mask is not None:
        weights = weights * mask
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.double()[:, None, None].exp()
    return torch.where(total > 0, weights / total, 0) @ v


@settings(max_examples=120, deadline=None)
@given(
    batch=st.sampled_from([(), (2,), (2, 3)]),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    queries=st.integers(1, 9),
    cached=st.integers(0, 5),
    dims=st.sampled_from([(8, 8), (8, 4), (4, 8)]),
    is_causal=st.booleans(),
    masked=st.booleans(),
    softcap=st.sampled_from([None, 2.0]),
    with_sinks=st.booleans(),
    bias_dims=st.sampled_from([None, 2, 3, 4]),
    learned=st.booleans(),
)
def test_attend_equals_the_formula(
    batch, heads, queries, cached, dims, is_causal, masked, softcap, with_sinks, bias_dims, learned
):
    generator = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    keys = queries + cached
    q, k, v = randn(*batch, heads[0], queries, dims[0]), *(randn(*batch, heads[1], keys, d) for d in dims)
    mask = torch.rand(queries, keys, generator=generator) < 0.6 if masked else None
    shape = (*batch[:1], heads[0], queries, keys) if len(batch) == 1 else (heads[0], queries, keys)
    bias = None if bias_dims is None else randn(*shape[-bias_dims:])
    sinks = randn(heads[0]) if with_sinks else None
    seen = mask
    if is_causal:
        seen = causal_mask(queries, keys) if mask is None else mask & causal_mask(queries, keys)
    expected = textbook(q, k, v, scale=0.3, mask=seen, softcap=softcap, sinks=sinks, bias=bias)
    for x in (bias, sinks):
        if learned and x is not None:
            x.requires_grad_()
    options = {"mask_QL": mask, "is_causal": is_causal, "softcap": softcap, "sinks_H": sinks, "bias_HQL": bias}
    for function in (attend, attend_eager):
        actual = function(q, k, v, scale=0.3, **options)
        torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_query_that_sees_nothing_gets_zeros_and_spoils_no_gradient(softcap):
    q, k, v = (torch.randn(2, 4, 6, 8).requires_grad_() for _ in range(3))
    mask = causal_mask(6, 6).clone()
    mask[3] = False
    out = attend(q, k, v, scale=1.0, mask_QL=mask, softcap=softcap)
    assert (out[:, :, 3] == 0).all()
    assert (out[:, :, 2] != 0).all()
    out.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert (q.grad[:, :, 3] == 0).all()


def test_gradients_reach_sinks_and_bias():
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 3, 4).double(), torch.randn(2, 5, 4).double(), torch.randn(2, 5, 4).double()
    inputs = [x.requires_grad_() for x in (q, k, v, torch.randn(4).double(), torch.randn(4, 3, 5).double())]

    def run(q, k, v, sinks, bias):
        return attend(q, k, v, scale=0.5, is_causal=True, sinks_H=sinks, bias_HQL=bias, softcap=2.0)

    assert torch.autograd.gradcheck(run, inputs)


def test_half_precision_scores_do_not_overflow():
    q = torch.full((1, 2, 4), 300.0, dtype=torch.float16)
    out = attend_eager(q, q, q, scale=0.1)  # q·k is 360,000, more than float16 holds; scaled, it is not
    assert out.isfinite().all()
    assert attention_weights(q, q, scale=0.01).dtype == torch.float32


def _module(heads, kv_heads, dim, **more):
    return SimpleNamespace(num_key_value_groups=heads // kv_heads, head_dim=dim, training=False, **more)


def test_sinks_are_those_of_gpt_oss():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    sinks = torch.randn(6)
    float_mask = torch.zeros(7, 7).masked_fill(~causal_mask(7, 7), -torch.inf)
    expected, _ = modeling_gpt_oss.eager_attention_forward(
        _module(6, 2, 8, sinks=sinks), q, k, v, float_mask, scaling=0.35
    )
    actual = attend(q, k, v, scale=0.35, is_causal=True, sinks_H=sinks)
    torch.testing.assert_close(actual.transpose(1, 2), expected, atol=1e-6, rtol=1e-5)


def test_soft_cap_is_that_of_gemma_2():
    torch.manual_seed(0)
    q, k, v = 3 * torch.randn(2, 6, 7, 8), 3 * torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    float_mask = torch.zeros(7, 7).masked_fill(~causal_mask(7, 7), -torch.inf)
    expected, _ = modeling_gemma2.eager_attention_forward(
        _module(6, 2, 8), q, k, v, float_mask, scaling=0.35, softcap=5.0
    )
    actual = attend(q, k, v, scale=0.35, is_causal=True, softcap=5.0)
    torch.testing.assert_close(actual.transpose(1, 2), expected, atol=1e-6, rtol=1e-5)


def test_one_kv_head_per_query_head_is_multi_head_attention_and_groups_read_their_own():
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 5, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    grouped = attend(q, k, v, scale=0.3, is_causal=True)
    repeated = attend(q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0), scale=0.3, is_causal=True)
    torch.testing.assert_close(grouped, repeated, atol=1e-6, rtol=1e-5)
    alone = attend(q[2:3], k[1:], v[1:], scale=0.3, is_causal=True)
    torch.testing.assert_close(grouped[2:3], alone, atol=1e-6, rtol=1e-5)


def test_a_long_sequence_never_has_its_scores_in_memory():
    """Peak of one forward pass, by the profiler: far from H * L * L * 4 bytes, for narrow values too."""
    heads, length = 4, 1024
    q, k, v = torch.randn(heads, length, 16), torch.randn(1, length, 16), torch.randn(1, length, 8)
    with torch.profiler.profile(profile_memory=True) as profile:
        attend(q, k, v, scale=0.3, is_causal=True)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < heads * length * length * 4 / 8


def test_without_the_scale_softmax_saturates_and_its_slope_vanishes():
    """Scores of unit-variance vectors have the variance d; divided by its root, one."""
    torch.manual_seed(0)
    dim = 256
    q, k = torch.randn(64, 32, dim), torch.randn(64, 32, dim)
    scores = q @ k.mT
    assert 0.9 * dim < scores.var() < 1.1 * dim

    def sharpness_and_slope(scale):
        """How much the favourite key gets, and the trace of the softmax's Jacobian."""
        weights = attention_weights(q, k, scale=scale)
        return weights.amax(-1).mean().item(), (weights * (1 - weights)).sum(-1).mean().item()

    scaled, unscaled = sharpness_and_slope(dim**-0.5), sharpness_and_slope(1.0)
    assert scaled[0] < 0.3 < 0.9 < unscaled[0]
    assert unscaled[1] < scaled[1] / 5
