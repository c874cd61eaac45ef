"""Online softmax and tiled attention against PyTorch's own, and their memory and traffic by count."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wootz.models.attention.dense import attend, attend_eager
from wootz.models.attention.online_softmax import PartialSoftmax
from wootz.models.attention.tiled import attend_tiled, hbm_bytes, tile_for, visible_tiles
from wootz.models.instruments import count_launches, peak_bytes


@given(cuts=st.lists(st.integers(0, 12), max_size=4), seed=st.integers(0, 99), order=st.booleans())
@settings(max_examples=50, deadline=None)
def test_pieces_merge_to_the_softmax_however_they_are_cut(cuts, seed, order):
    torch.manual_seed(seed)
    scores, values = 50 * torch.randn(3, 12, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64)
    scores[0, :7] = -torch.inf  # a piece may be hidden as a whole
    scores[1] = -torch.inf  # a query may see nothing at all
    edges = [0, *sorted(cuts), 12]
    pieces = [PartialSoftmax.of(scores[:, a:b], values[a:b]) for a, b in pairwise(edges) if a < b]
    merged = PartialSoftmax.empty((3,), 2, scores)
    for piece in reversed(pieces) if order else pieces:
        merged = merged.merge(piece)
    torch.testing.assert_close(merged.output, (scores.softmax(-1) @ values).nan_to_num())
    torch.testing.assert_close(merged.logsumexp, scores.logsumexp(-1))


def test_merging_is_associative():
    torch.manual_seed(0)
    a, b, c = (PartialSoftmax.of(9 * torch.randn(5, 4).double(), torch.randn(4, 3).double()) for _ in range(3))
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    for name in ("max", "total", "weighted"):
        torch.testing.assert_close(getattr(left, name), getattr(right, name))


@settings(max_examples=60, deadline=None)
@given(
    batch=st.sampled_from([(), (2,), (2, 2)]),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    queries=st.integers(1, 23),
    cached=st.integers(0, 9),
    tile=st.integers(1, 9),
    is_causal=st.booleans(),
    value_dim=st.sampled_from([4, 6]),
)
def test_tiled_equals_dense_for_any_length(batch, heads, queries, cached, tile, is_causal, value_dim):
    torch.manual_seed(0)
    keys = queries + cached
    q = torch.randn(*batch, heads[0], queries, 4)
    k, v = torch.randn(*batch, heads[1], keys, 4), torch.randn(*batch, heads[1], keys, value_dim)
    out, logsumexp = attend_tiled(q, k, v, scale=0.7, is_causal=is_causal, tile=tile)
    torch.testing.assert_close(out, attend(q, k, v, scale=0.7, is_causal=is_causal), atol=1e-5, rtol=1e-4)
    assert logsumexp.shape == q.shape[:-1]


@pytest.mark.parametrize("is_causal", [False, True])
def test_tiled_equals_scaled_dot_product_attention_and_its_gradients(is_causal):
    torch.manual_seed(0)
    ours = [torch.randn(2, 4, 37, 8).requires_grad_() for _ in range(3)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    out, logsumexp = attend_tiled(*ours, scale=0.35, is_causal=is_causal, tile=16)
    expected = F.scaled_dot_product_attention(*theirs, scale=0.35, is_causal=is_causal)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
    scores = 0.35 * ours[0] @ ours[1].mT
    if is_causal:
        scores = scores.masked_fill(~torch.ones(37, 37).tril().bool(), -torch.inf)
    torch.testing.assert_close(logsumexp, scores.logsumexp(-1))


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradcheck_of_output_and_logsumexp(is_causal):
    torch.manual_seed(0)
    q, k, v = (torch.randn(heads, 5, 3, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend_tiled(q, k, v, scale=0.5, is_causal=is_causal, tile=2), (q, k, v)
    )


def test_queries_before_every_key_get_zeros():
    q, k = torch.randn(1, 5, 4, requires_grad=True), torch.randn(1, 2, 4, requires_grad=True)
    out, logsumexp = attend_tiled(q, k, k, scale=1.0, is_causal=True, tile=2)
    assert (out[:, :3] == 0).all()
    assert (logsumexp[:, :3] == -torch.inf).all()
    out.sum().backward()
    assert q.grad.isfinite().all()
    assert k.grad.isfinite().all()


def test_the_future_is_never_visited():
    def tiles(is_causal):
        return sum(len(keys) for _, keys in visible_tiles(64, 64, is_causal, 8))

    assert (tiles(False), tiles(True)) == (64, 36)
    x = torch.randn(1, 64, 4)
    # two products per tile: scores, and values
    launches = count_launches(lambda: attend_tiled(x, x, x, scale=1.0, is_causal=True, tile=8))
    assert launches["bmm"] == 2 * 36


@pytest.mark.slow
def test_memory_grows_with_the_length_and_not_with_its_square():
    def peak(length, attention):
        q = torch.randn(2, length, 8, requires_grad=True)

        def forward_and_backward():
            attention(q).sum().backward()

        return peak_bytes(forward_and_backward)

    def tiled(q):
        return attend_tiled(q, q, q, scale=1.0, is_causal=True, tile=64)[0]

    def eager(q):
        return attend_eager(q, q, q, scale=1.0, is_causal=True)

    assert peak(1024, tiled) < 2.2 * peak(512, tiled)
    assert peak(1024, eager) > 3.5 * peak(512, eager)
    assert peak(1024, tiled) < peak(1024, eager) / 20


def test_peak_bytes_counts_what_is_alive_together():
    x = torch.zeros(1000)

    def run():
        y = x + 1  # 4,000 bytes
        y = y + 1  # beside the first, 8,000; then that is freed
        y = y + 1
        y.add_(1)
        return y[2:].view(-1)

    assert peak_bytes(run) == 8000


def test_traffic_is_quadratic_over_the_fast_memory_and_memory_is_not():
    length, dim = 8192, 128
    tile = tile_for(192 * 1024, dim)
    assert tile == 192
    naive, tiled = hbm_bytes(length, dim, tile=None), hbm_bytes(length, dim, tile=tile)
    assert naive == 2 * (4 * length * dim + 4 * length**2)
    assert 2 * length**2 == 128 * 2**20  # one head's scores in half precision: 128 MiB
    assert 2.5 < naive / tiled < 3.5
    assert hbm_bytes(length, dim, tile=2 * tile) < 0.56 * tiled  # twice the fast memory, about half the traffic
    assert 3.8 < hbm_bytes(2 * length, dim, tile=tile) / tiled < 4  # twice the length, four times the traffic
    assert 0.5 < hbm_bytes(length, dim, tile=tile, is_causal=True) / tiled < 0.55
