"""Keys and values in fewer bits: error bounds, exact byte counts, and FP8 against PyTorch's own float8 types."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wootz.models.attention.dense import attend, attention_weights
from wootz.models.attention.fp8 import Fp8Context, fp8_report, round_scaled, round_to_fp8
from wootz.models.attention.kv_quantization import KiviCache, quantize
from wootz.models.context import PackedContext


@settings(max_examples=80, deadline=None)
@given(
    format=st.sampled_from(["int8", "int4"]),
    dim=st.sampled_from([0, 1, -1]),
    offset=st.sampled_from([0.0, 5.0, -300.0]),
    spread=st.sampled_from([0.0, 1e-6, 1.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_integers_are_within_half_a_scale(format, dim, offset, spread, seed):
    x = offset + spread * torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(seed))
    quantized = quantize(x, format, dim=dim)
    error = (quantized.dequantize() - x).abs()
    rounding = 1e-6 * x.abs()  # of the float32 arithmetic itself
    assert (error <= quantized.scale.float() / 2 + rounding).all()
    levels = {"int8": 255, "int4": 15}[format]
    ideal = (x.amax(dim, keepdim=True) - x.amin(dim, keepdim=True)) / levels
    assert (quantized.scale.float() <= ideal * 1.001 + 2**-10 * x.abs().max() / levels + 1e-7).all()


@pytest.mark.parametrize(("format", "relative", "smallest"), [("fp8_e4m3", 2**-4, 2**-9), ("fp8_e5m2", 2**-3, 2**-16)])
def test_fp8_is_within_half_a_step(format, relative, smallest):
    x = torch.randn(64, 3, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 2, 8)
    quantized = quantize(x, format)
    error = (quantized.dequantize() - x).abs()
    assert (error <= torch.maximum(relative * x.abs(), quantized.scale.float() * smallest / 2) * (1 + 1e-5)).all()
    assert (quantize(torch.zeros(2, 4), format).dequantize() == 0).all()


@pytest.mark.parametrize(
    ("format", "bytes_per_row"), [("int8", 8 + 4), ("int4", 4 + 4), ("fp8_e4m3", 8 + 2), ("fp8_e5m2", 8 + 2)]
)
def test_bytes_are_codes_and_float16_scales(format, bytes_per_row):
    """A row of eight numbers: their codes, and one scale, with integers one zero too, of two bytes each."""
    assert quantize(torch.randn(5, 3, 8), format).num_bytes == 15 * bytes_per_row


def test_int4_needs_pairs():
    with pytest.raises(ValueError, match="pairs"):
        quantize(torch.randn(3, 5), "int4")


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_kivi_keeps_recent_tokens_exact_and_counts_every_byte(cuts):
    cache, group, residual = KiviCache("int4", group=8, residual=16), 8, 16
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(sum(cuts), 2, 6, generator=generator), torch.randn(sum(cuts), 2, 4, generator=generator)
    for k, v in zip(keys.split(cuts), values.split(cuts), strict=True):
        cache.append(k, v)
    length = sum(cuts)
    groups = max(0, (length - residual) // group)
    assert (len(cache), cache.num_encoded) == (length, groups * group)
    read_k, read_v = cache.read()
    assert torch.equal(read_k[groups * group :], keys[groups * group :])
    assert torch.equal(read_v[groups * group :], values[groups * group :])
    # per group: key codes, a scale and a zero per channel; value codes, a scale and a zero per token and head
    per_group = 8 * 2 * 6 // 2 + 2 * 2 * (2 * 6) + 8 * 2 * 4 // 2 + 2 * 2 * (8 * 2)
    assert cache.num_bytes == groups * per_group + (length - groups * group) * 2 * (6 + 4) * 4
    for g in range(groups):
        piece = slice(g * group, (g + 1) * group)
        for read, x, dim in ((read_k, keys, 0), (read_v, values, -1)):
            torch.testing.assert_close(read[piece], quantize(x[piece], "int4", dim=dim).dequantize())


def test_kivi_goes_back_as_far_as_tokens_are_exact():
    cache = KiviCache("int8", group=4, residual=4)
    k = torch.randn(11, 1, 2)
    cache.append(k, k)
    assert cache.num_encoded == 4
    cache.truncate(5)
    assert torch.equal(cache.read()[0][4:], k[4:5])
    with pytest.raises(ValueError, match="4 are in codes"):
        cache.truncate(3)


def test_a_scale_per_channel_is_what_keys_with_large_channels_need():
    """The observation behind KIVI: one channel is large in every token."""
    torch.manual_seed(0)
    k = torch.randn(64, 1, 16)
    k[..., 3] += 40
    q = torch.randn(64, 1, 16)

    def divergence(keys):
        exact, ours = (
            attention_weights(q.transpose(0, 1), x.transpose(0, 1), scale=0.25, is_causal=True) for x in (k, keys)
        )
        return torch.nn.functional.kl_div(ours.log(), exact, reduction="none").nan_to_num().sum(-1).mean()

    per_channel, per_token = (divergence(quantize(k, "int4", dim=dim).dequantize()) for dim in (0, -1))
    assert per_channel < per_token / 10
    assert per_channel < 0.02


@pytest.mark.parametrize(("format", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_rounding_is_that_of_torchs_float8(format, dtype):
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    every = every[every.isfinite()].sort().values
    between = (every[1:] + every[:-1]) / 2  # ties, which go to even
    noise = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-8, 2, 5000)
    x = torch.cat((every, between, between.nextafter(torch.tensor(9e9)), noise))
    assert torch.equal(round_to_fp8(x, format), x.to(dtype).float())
    largest = torch.finfo(dtype).max
    assert round_to_fp8(torch.tensor([1e9, -1e9]), format).tolist() == [largest, -largest]


def test_fp8_report_tells_the_formats_apart():
    torch.manual_seed(0)
    q, k, v = torch.randn(32, 4, 16), torch.randn(32, 2, 16), torch.randn(32, 2, 16)
    fine, coarse = (fp8_report(q, k, v, scale=0.25, format=format) for format in ("e4m3", "e5m2"))
    assert 0 < fine.kl_divergence < coarse.kl_divergence / 2
    assert 0 < fine.output_error < coarse.output_error
    assert 0 < fine.score_error < coarse.score_error
    exact = [round_scaled(x, "e4m3") for x in (q, k)]
    assert fp8_report(*exact, v, scale=0.25, format="e4m3").score_error < 1e-6


def test_fp8_context_rounds_queries_and_keys_and_nothing_else():
    torch.manual_seed(0)
    q, k, v = torch.randn(9, 4, 8), torch.randn(9, 2, 8), torch.randn(9, 2, 8)
    out = Fp8Context(PackedContext([9]), "e5m2").attend(0, q, k, v, scale=0.3, causal=True)
    rounded = [round_scaled(x, "e5m2").transpose(0, 1) for x in (q, k)]
    expected = attend(*rounded, v.transpose(0, 1), scale=0.3, is_causal=True)
    torch.testing.assert_close(out, expected.transpose(0, 1))
    assert not torch.allclose(out, PackedContext([9]).attend(0, q, k, v, scale=0.3), atol=1e-3)
