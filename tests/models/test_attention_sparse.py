"""Patterns of attention that look at less: each against dense attention under a mask that says what it may see."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaRotaryEmbedding

from wootz.models.attention.dense import attend
from wootz.models.attention.differential import DifferentialAttentionConfig, lambda_init
from wootz.models.attention.dilated import attend_dilated, dilated_mask
from wootz.models.attention.infini import attend_infini, infini_state
from wootz.models.attention.linear import elu_plus_one
from wootz.models.attention.native_sparse import window_mask
from wootz.models.attention.shifted_sparse import attend_shifted_sparse, shifted_sparse_mask
from wootz.models.attention.windowed import attend_windowed
from wootz.models.context import PackedContext
from wootz.models.instruments import peak_bytes
from wootz.models.positions.rotary import RotaryConfig
from wootz.models.run import Run, assign_slots

CPU = torch.device("cpu")


# --- differential ----------------------------------------------------------------------------------------------------


def difference_layer(seed=0):
    torch.manual_seed(seed)
    config = DifferentialAttentionConfig(
        num_heads=8, num_kv_heads=4, head_dim=6, lambda_init=lambda_init(2), rotary=RotaryConfig(6)
    )
    layer = config.build(24)
    assign_slots(layer)
    return layer


def test_differential_attention_is_diffllama():
    ours = difference_layer()
    config = transformers.DiffLlamaConfig(
        hidden_size=24, num_attention_heads=8, num_key_value_heads=4, head_dim=6, attention_bias=False,
        _attn_implementation="eager",
    )  # fmt: skip
    theirs = DiffLlamaAttention(config, 2)
    with torch.no_grad():
        for projection, weight in zip(
            (theirs.q_proj, theirs.k_proj, theirs.v_proj), ours.qkv.weight.split((48, 24, 24)), strict=True
        ):
            projection.weight.copy_(weight.normal_())
        theirs.o_proj.weight.copy_(ours.output.weight.normal_())
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            getattr(theirs, name).copy_(getattr(ours, name))
    x = torch.randn(11, 24)
    positions = torch.arange(11)
    mask = torch.full((11, 11), -torch.inf).triu(1)[None, None]
    cos_sin = DiffLlamaRotaryEmbedding(config)(x[None], positions[None])
    expected = theirs(x[None], cos_sin, mask)[0][0]
    actual = ours(x, Run(positions, PackedContext([11])))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_what_both_halves_look_at_alike_cancels():
    """With both softmaxes equal and λ = 1, nothing is left to normalise."""
    layer = difference_layer()
    with torch.no_grad():
        q, k, _ = layer.qkv.weight.split((48, 24, 24))
        q.copy_(q[:24].repeat(2, 1))
        k.copy_(k[:12].repeat(2, 1))
        layer.lambda_q2.zero_()
        layer.lambda_q1.copy_(torch.log(torch.tensor(2 - layer.config.lambda_init)) / layer.lambda_k1 / 6)
    assert layer.current_lambda().item() == pytest.approx(1)
    x = torch.randn(7, 24)
    out = layer(x, Run(torch.arange(7), PackedContext([7])))
    assert out.abs().max() < 1e-3 * x.abs().max()


# --- shifted and dilated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 5, 8, 21])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_shifted_sparse_is_attention_under_its_mask(num_tokens, heads):
    torch.manual_seed(0)
    q = torch.randn(2, heads[0], num_tokens, 4)
    k, v = torch.randn(2, heads[1], num_tokens, 4), torch.randn(2, heads[1], num_tokens, 6)
    out = attend_shifted_sparse(q, k, v, scale=0.5, group=8)
    masks = [shifted_sparse_mask(num_tokens, 8, shift) for shift in (0, 4)]
    mask = torch.stack(masks).repeat_interleave(heads[0] // 2, 0)
    torch.testing.assert_close(out, attend(q, k, v, scale=0.5, mask_QL=mask), atol=1e-5, rtol=1e-4)


def test_shifted_heads_never_see_the_future():
    """LongLoRA's roll puts the first tokens behind the last ones."""
    q, k = torch.randn(2, 16, 4), torch.randn(2, 16, 4)
    v = torch.randn(2, 16, 4, requires_grad=True)
    attend_shifted_sparse(q, k, v, scale=0.5, group=8)[:, :4].sum().backward()
    assert (v.grad[:, 4:] == 0).all()
    assert (v.grad[:, :4] != 0).all()


@pytest.mark.parametrize("num_tokens", [3, 16, 37])
@pytest.mark.parametrize("patterns", [[(8, 1)], [(8, 1), (16, 2), (32, 4)], [(64, 4)]])
def test_dilated_attention_is_one_softmax_over_all_patterns_keys(num_tokens, patterns):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, num_tokens, 4) for _ in range(3))
    counts = torch.stack(
        [sum(dilated_mask(num_tokens, head, *pattern).double() for pattern in patterns) for head in range(5)]
    )
    weights = torch.exp(0.5 * q.double() @ k.double().mT) * counts
    expected = torch.nan_to_num(weights / weights.sum(-1, keepdim=True)) @ v.double()
    out = attend_dilated(q, k, v, scale=0.5, patterns=patterns)
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-4)


def test_dilated_attention_trains():
    q, k, v = (torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    patterns = [(4, 1), (8, 2)]
    assert torch.autograd.gradcheck(lambda *inputs: attend_dilated(*inputs, scale=0.5, patterns=patterns), (q, k, v))


# --- infini ----------------------------------------------------------------------------------------------------------


def infini_by_segments(q, k, v, segment, delta_rule, share):
    """The paper's equations for one head, segment by segment."""
    matrix, normaliser, outputs = torch.zeros(4, 4).double(), torch.zeros(4).double(), []
    for q_s, k_s, v_s in zip(*(x.double().split(segment) for x in (q, k, v)), strict=True):
        scores = (0.5 * q_s @ k_s.T).masked_fill(torch.ones(len(q_s), len(q_s)).triu(1).bool(), -torch.inf)
        local = scores.softmax(-1) @ v_s

        def recall(x, matrix=matrix, normaliser=normaliser):
            x = elu_plus_one(x)
            return torch.nan_to_num((x @ matrix) / (x @ normaliser)[:, None])

        outputs.append(share * recall(q_s) + (1 - share) * local)
        if delta_rule:
            v_s = v_s - recall(k_s)
        matrix = matrix + elu_plus_one(k_s).T @ v_s
        normaliser = normaliser + elu_plus_one(k_s).sum(0)
    return torch.cat(outputs)


@pytest.mark.parametrize("delta_rule", [False, True])
@pytest.mark.parametrize("cuts", [[19], [1] * 19, [3, 5, 11], [8, 11]])
def test_infini_attention_is_its_equations_wherever_it_is_cut(delta_rule, cuts):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 19, 4, 4), torch.randn(2, 19, 2, 4), torch.randn(2, 19, 2, 4)
    gates = torch.randn(4)
    state, outputs = infini_state(2, 4, 4, 6).start(2, torch.float32, CPU), []
    for pieces in zip(*(x.split(cuts, 1) for x in (q, k, v)), strict=True):
        out, state = attend_infini(state, *pieces, scale=0.5, gate_logits_H=gates, delta_rule=delta_rule)
        outputs.append(out)
    actual = torch.cat(outputs, 1)
    for b in range(2):
        for h in range(4):
            expected = infini_by_segments(
                q[b, :, h], k[b, :, h // 2], v[b, :, h // 2], 6, delta_rule, gates[h].sigmoid().double()
            )
            torch.testing.assert_close(actual[b, :, h], expected.float(), atol=1e-5, rtol=1e-4)


def test_infini_attention_remembers_what_full_segments_held():
    torch.manual_seed(0)
    q, k = torch.randn(1, 20, 1, 4), torch.randn(1, 20, 1, 4)
    v = torch.randn(1, 20, 1, 4, requires_grad=True)
    state = infini_state(1, 4, 4, 5).start(1, torch.float32, CPU)
    attend_infini(state, q, k, v, scale=0.5, gate_logits_H=torch.zeros(1))[0][0, -1].sum().backward()
    assert (v.grad != 0).all()


# --- window ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 4, 5, 17])
@pytest.mark.parametrize("window", [1, 4, 30])
def test_windowed_attention_is_attention_under_its_mask_in_the_memory_of_a_band(num_tokens, window):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, num_tokens, 6), torch.randn(2, 2, num_tokens, 6), torch.randn(2, 2, num_tokens, 3)
    out = attend_windowed(q, k, v, scale=0.5, window=window)
    expected = attend(q, k, v, scale=0.5, mask_QL=window_mask(num_tokens, window))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_a_band_of_scores_grows_with_the_length_only():
    def peak(length):
        q = torch.randn(1, length, 8)
        return peak_bytes(lambda: attend_windowed(q, q, q, scale=0.5, window=16))

    assert peak(1024) < 2.1 * peak(512)
