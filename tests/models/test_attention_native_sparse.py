"""Native sparse attention, branch by branch, against loops and masks over dense attention."""

from __future__ import annotations

import pytest
import torch

from wootz.models.attention.dense import attend
from wootz.models.attention.native_sparse import (
    BlockCompressor,
    NativeSparseConfig,
    attend_compressed,
    attend_selected,
    select_blocks,
    window_mask,
)

CONFIG = NativeSparseConfig(
    num_heads=4, num_kv_heads=2, head_dim=6, compressed_block=4, stride=2, selected_block=4, num_selected=3, window=5
)


def qkv(num_tokens, seed=0):
    torch.manual_seed(seed)
    return torch.randn(2, 4, num_tokens, 6), torch.randn(2, 2, num_tokens, 6), torch.randn(2, 2, num_tokens, 6)


@pytest.mark.parametrize("num_tokens", [3, 4, 7, 21])
def test_compressor_squeezes_every_whole_block(num_tokens):
    compressor = BlockCompressor(4, 2, 6)
    x = torch.randn(2, num_tokens, 6)
    starts = range(0, num_tokens - 3, 2)
    out = compressor(x)
    assert out.shape == (2, len(starts), 6)
    for n, start in enumerate(starts):
        expected = compressor.squeeze((x[:, start : start + 4] + compressor.places).flatten(-2))
        torch.testing.assert_close(out[:, n], expected)


@pytest.mark.parametrize("num_tokens", [3, 9, 21])
def test_compressed_branch_sees_whole_past_blocks_and_ranks_by_shared_strides(num_tokens):
    q, _, _ = qkv(num_tokens)
    num_compressed = max(0, (num_tokens - 4) // 2 + 1)
    k, v = torch.randn(2, 2, num_compressed, 6), torch.randn(2, 2, num_compressed, 6)
    out, importance = attend_compressed(q, k, v, 0.5, CONFIG)
    num_blocks = -(-num_tokens // 4)
    for head in range(4):
        for t in range(num_tokens):
            past = [n for n in range(num_compressed) if 2 * n + 4 <= t + 1]
            weights = (0.5 * k[0, head // 2, past] @ q[0, head, t]).softmax(0)
            torch.testing.assert_close(out[0, head, t], weights @ v[0, head // 2, past], atol=1e-5, rtol=1e-4)
    for t in range(num_tokens):
        expected = torch.zeros(num_blocks)
        for head in (0, 1):  # the group of the first key head
            past = [n for n in range(num_compressed) if 2 * n + 4 <= t + 1]
            weights = (0.5 * k[0, 0, past] @ q[0, head, t]).softmax(0)
            for n, weight in zip(past, weights, strict=True):
                for stride in (n, n + 1):  # the two strides of a compressed block; a block to select has two as well
                    expected[stride // 2] += weight
        torch.testing.assert_close(importance[0, 0, t], expected, atol=1e-5, rtol=1e-4)


def test_selection_keeps_the_first_the_nearest_and_the_most_important():
    importance = torch.rand(2, 21, 6)
    config = NativeSparseConfig(
        num_heads=4, num_kv_heads=2, head_dim=6, compressed_block=4, stride=2, selected_block=4, num_selected=4
    )
    selected = select_blocks(importance, config)
    for t in range(21):
        own = t // 4
        must = {0, own, max(own - 1, 0)}
        others = sorted(set(range(own + 1)) - must, key=lambda j: -importance[1, t, j])
        expected = must | set(others[: 4 - len(must)])
        assert set(selected[1, t].nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize("num_tokens", [1, 6, 21])
def test_selected_branch_is_dense_attention_under_the_selections_mask(num_tokens):
    q, k, v = qkv(num_tokens)
    selected = select_blocks(torch.rand(2, 2, num_tokens, -(-num_tokens // 4)), CONFIG)
    out = attend_selected(q, k, v, selected, 0.5, CONFIG)
    tokens = torch.arange(num_tokens)
    mask = selected[..., tokens // 4] & (tokens[:, None] >= tokens)
    expected = attend(q, k, v, scale=0.5, mask_QL=mask.repeat_interleave(2, 1))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_with_few_enough_tokens_the_selected_branch_is_full_attention():
    q, k, v = qkv(12)
    selected = select_blocks(torch.zeros(2, 2, 12, 3), CONFIG)
    out = attend_selected(q, k, v, selected, 0.5, CONFIG)
    torch.testing.assert_close(out, attend(q, k, v, scale=0.5, is_causal=True), atol=1e-5, rtol=1e-4)


def test_the_layer_is_the_gated_sum_of_its_branches_and_is_causal():
    torch.manual_seed(0)
    layer = CONFIG.build(16)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 21, 16, requires_grad=True)
    layer(x)[0, 9].sum().backward()
    assert (x.grad[0, 10:] == 0).all()
    assert (x.grad[0, :10] != 0).any(-1).all()
    assert all(parameter.grad.any() for parameter in layer.parameters())

    with torch.no_grad():
        layer.gates.weight.zero_()
        layer.gates.bias.copy_(torch.tensor([-99.0] * 8 + [99.0] * 4))  # the window alone
        q = layer.q(x).view(2, 21, 4, 6).transpose(1, 2)
        k, v = layer.kv(x).view(2, 21, 6, 2, 6)[:, :, 4:].permute(2, 0, 3, 1, 4)
        near = attend(q, k, v, scale=6**-0.5, mask_QL=window_mask(21, 5))
        torch.testing.assert_close(layer(x), layer.output(near.transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-4)
