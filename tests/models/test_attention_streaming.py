"""One endless text in bounded memory: against the whole text at once, under the mask that each policy stands for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wootz.core.errors import BadRequestError, UnsupportedError
from wootz.models.attention import linear
from wootz.models.attention.dense import attend
from wootz.models.attention.kv_quantization import quantize
from wootz.models.attention.streaming import StreamingContext, stream_losses
from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.latent_attention import LatentAttentionConfig
from wootz.models.blocks.mlp import MLPConfig
from wootz.models.context import PackedContext
from wootz.models.decoder import Decoder, DecoderConfig, LayerConfig
from wootz.models.positions.rotary import RotaryConfig
from wootz.models.positions.scaling import YarnScaling
from wootz.models.positions.xpos import XPosDecay

ATTENTION = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, rotary=RotaryConfig(8, interleaved=False))
TOKENS = torch.randint(60, (120,), generator=torch.Generator().manual_seed(0))


def small_model(num_layers: int = 2, *, trained_length: int = 64, mixer=ATTENTION, **attention) -> Decoder:
    layer = LayerConfig(mixer=replace(mixer, **attention), ffn=MLPConfig(48))
    config = DecoderConfig(
        family="test",
        vocab_size=60,
        hidden_size=32,
        layers=(layer,) * num_layers,
        max_position_embeddings=trained_length,
    )
    torch.manual_seed(0)
    model = config.build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.double().eval()


@torch.no_grad()
def whole(model: Decoder, num_tokens: int = len(TOKENS)) -> torch.Tensor:
    return model(TOKENS[:num_tokens], torch.arange(num_tokens), PackedContext([num_tokens]))


@torch.no_grad()
def streamed(model: Decoder, context: StreamingContext, chunks: list[int], start: int = 0) -> torch.Tensor:
    outputs = []
    for chunk in chunks:
        outputs.append(model(TOKENS[start : start + chunk], context.next_positions(chunk), context))
        start += chunk
    return torch.cat(outputs)


def chunks_of(length: int) -> st.SearchStrategy[list[int]]:
    def cut(places: list[int]) -> list[int]:
        edges = [0, *sorted(set(places)), length]
        return [b - a for a, b in pairwise(edges) if b > a]

    return st.lists(st.integers(1, length - 1), max_size=8).map(cut)


@settings(max_examples=8, deadline=None)
@given(chunks=chunks_of(50), slack=st.integers(1, 9))
def test_full_policy_is_the_whole_text_and_refuses_one_token_too_many(chunks, slack):
    model = small_model()
    context = StreamingContext(model, capacity=50, slack=slack)
    torch.testing.assert_close(streamed(model, context, chunks), whole(model, 50))
    with pytest.raises(BadRequestError, match="holds 50 tokens") as error:
        context.next_positions(1)
    assert error.value.code == "context_length_exceeded"


@settings(max_examples=8, deadline=None)
@given(chunks=chunks_of(120), slack=st.integers(1, 9), window=st.sampled_from([1, 5, 16]))
def test_window_policy_is_the_windowed_model(chunks, slack, window):
    """Of a trained length of 64 and 120 tokens: positions start again on the way."""
    model, windowed = small_model(), small_model(window=window)
    context = StreamingContext(model, window=window, slack=slack)
    torch.testing.assert_close(streamed(model, context, chunks), whole(windowed), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sinks", [0, 4])
def test_streaming_is_exact_until_something_is_dropped_and_not_after(sinks):
    model = small_model()
    out = streamed(model, StreamingContext(model, window=20, sinks=sinks), [7] * 17)
    expected = whole(model, 119)
    torch.testing.assert_close(out[: 20 + sinks], expected[: 20 + sinks])
    assert ((out - expected)[20 + sinks :].abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize(
    "mixer",
    [
        ATTENTION,
        replace(ATTENTION, rotary=RotaryConfig(4, interleaved=True)),
        replace(ATTENTION, rotary=RotaryConfig(8, scaling=YarnScaling(4.0, 16))),
        replace(ATTENTION, rotary=RotaryConfig(8, decay=XPosDecay(4, 2, scale_base=64))),
        LatentAttentionConfig(num_heads=4, latent_dim=12, plain_dim=6, value_dim=8, rotary=RotaryConfig(4)),
    ],
    ids=["half", "interleaved part", "yarn", "xpos", "latent"],
)
def test_sinks_stand_where_the_cache_puts_them(mixer):
    """In one layer keys know only their own token. So each output is what the model says after reading the sinks and
    the window alone, as a short text: positions are those inside the cache."""
    model = small_model(1, mixer=mixer)
    out = streamed(model, StreamingContext(model, window=10, sinks=3, slack=5), [9, 1, 30, 80])
    for t in range(120):
        kept = torch.cat((TOKENS[: min(3, t + 1)], TOKENS[max(3, t - 9) : t + 1]))
        with torch.no_grad():
            expected = model(kept, torch.arange(len(kept)), PackedContext([len(kept)]))[-1]
        torch.testing.assert_close(out[t], expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=5, deadline=None)
@given(chunks=chunks_of(120), slack=st.integers(1, 9))
def test_with_sinks_chunks_change_nothing(chunks, slack):
    model = small_model(2)
    at_once = streamed(model, StreamingContext(model, window=10, sinks=3), [120])
    out = streamed(model, StreamingContext(model, window=10, sinks=3, slack=slack), chunks)
    torch.testing.assert_close(out, at_once, atol=1e-5, rtol=1e-5)


def test_positions_stay_within_the_trained_length_and_memory_stays_what_it_is():
    model = small_model(trained_length=64)
    context = StreamingContext(model, window=16, sinks=4, slack=8)
    largest, sizes = 0, set()
    for step in range(100):
        positions = context.next_positions(3)
        largest = max(largest, int(positions.max()))
        with torch.no_grad():
            model(TOKENS[step : step + 3], positions, context)
        if step > 10:
            sizes.add(context.num_bytes)
    assert context.num_tokens == 300
    assert largest < 64
    # rows of 4 + 16 + 8 tokens: 2 layers, keys and values, 2 heads, 8 numbers of 8 bytes; their places; 4 sinks' keys
    assert sizes == {2 * (28 * 2 * 2 * 8 * 8 + 28 * 8 + 4 * 2 * 8 * 8)}


def test_a_layer_with_a_shorter_window_keeps_to_it():
    model, narrower = small_model(window=5), small_model(window=3)
    for policy in ({"window": 9, "sinks": 2}, {}):
        out = streamed(model, StreamingContext(model, **policy, capacity=200), [11, 109])
        torch.testing.assert_close(out, whole(model), atol=1e-6, rtol=1e-6)
    out = streamed(model, StreamingContext(model, window=3), [11, 109])
    torch.testing.assert_close(out, whole(narrower), atol=1e-5, rtol=1e-5)


@settings(max_examples=12, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5)), min_size=1, max_size=8),
    sinks=st.sampled_from([0, 3]),
    window=st.sampled_from([None, 8]),
)
def test_what_is_taken_back_was_never_read(steps, sinks, window):
    model = small_model()
    policy = {"window": window, "sinks": sinks if window else 0}
    context, length = StreamingContext(model, **policy, slack=6, capacity=200), 0
    for read, back in steps:
        streamed(model, context, [read], length)
        length = length + read - min(back, read)
        context.truncate(length)
    out = streamed(model, context, [5], length)
    fresh = streamed(model, StreamingContext(model, **policy, capacity=200), [length + 5])
    torch.testing.assert_close(out, fresh[length:], atol=1e-5, rtol=1e-5)


def test_going_back_too_far_is_refused():
    model = small_model()
    context = StreamingContext(model, window=8, slack=4)
    streamed(model, context, [40])
    with pytest.raises(UnsupportedError, match="is gone"):
        context.truncate(30)
    with pytest.raises(ValueError, match="41 of 40"):
        context.truncate(41)
    context.truncate(36)
    assert context.num_tokens == 36


@pytest.mark.parametrize(("format", "tolerance"), [("int8", 0.02), ("fp8_e4m3", 0.15), ("int4", 0.4)])
def test_fewer_bits_cost_little_and_weigh_what_they_should(format, tolerance):
    model = small_model().float()
    exact = StreamingContext(model, window=16, sinks=4, slack=4)
    coded = StreamingContext(model, window=16, sinks=4, slack=4, format=format)
    a, b = streamed(model, exact, [100]), streamed(model, coded, [100])
    error = ((a - b).norm() / a.norm()).item()
    assert 0 < error < tolerance
    row = quantize(torch.zeros(1, 2, 8), format).num_bytes
    assert coded.num_bytes == 2 * (24 * 2 * row + 24 * 8 + 4 * 2 * 8 * 4)


def test_sinks_and_bias_and_soft_cap_of_the_layer_arrive():
    class Distance(torch.nn.Module):
        def forward(self, q, k, relative):
            return 0.3 * relative * torch.tensor([1.0, 0.5, 0.2, 0.1], dtype=q.dtype)[:, None, None]

    torch.manual_seed(0)
    q, k, v = torch.randn(30, 4, 8), torch.randn(30, 2, 8), torch.randn(30, 2, 8)
    more = {"scale": 0.4, "softcap": 3.0, "sinks_H": torch.randn(4), "bias": Distance()}
    model = small_model(rotary=None)
    context = StreamingContext(model, window=6, sinks=2)
    out = context.attend(0, q, k, v, **more)
    expected = PackedContext([30]).attend(0, q, k, v, **more)
    torch.testing.assert_close(out[:8], expected[:8])
    # Later, distances are those inside the cache: the last token's keys are two sinks and six others, side by side.
    kept = torch.tensor([0, 1, 24, 25, 26, 27, 28, 29])
    bias = Distance()(q, k, torch.arange(-7, 1)[None])
    last = attend(
        q[-1:].transpose(0, 1), k[kept].transpose(0, 1), v[kept].transpose(0, 1), scale=0.4, softcap=3.0,
        sinks_H=more["sinks_H"], bias_HQL=bias,
    )  # fmt: skip
    torch.testing.assert_close(out[-1:], last.transpose(0, 1))


def test_latents_and_states_stream_too():
    torch.manual_seed(0)
    model = small_model(rotary=None)
    context, packed = StreamingContext(model, capacity=50), PackedContext([30])
    q, latent = torch.randn(30, 4, 12), torch.randn(30, 12)
    pieces = [context.attend_latent(0, q[s], latent[s], value_dim=8, scale=0.3) for s in (slice(11), slice(11, 30))]
    expected = packed.attend_latent(0, q, latent, value_dim=8, scale=0.3)
    torch.testing.assert_close(torch.cat(pieces), expected)

    spec, inputs = linear.decayed_state(2, 4, 4), [torch.randn(30, 2, 4) for _ in range(3)]

    def advance(state, q, k, v):
        return linear.retention(state, q, k, v, log_decay_H=linear.retention_log_decay(2))

    pieces = [context.recur(1, spec, advance, *(x[s] for x in inputs)) for s in (slice(11), slice(11, 30))]
    torch.testing.assert_close(torch.cat(pieces), packed.recur(1, spec, advance, *inputs), atol=1e-5, rtol=1e-5)
    context.next_positions(30)
    with pytest.raises(UnsupportedError, match="recurrent state"):
        context.truncate(3)
    with pytest.raises(UnsupportedError, match="looks ahead"):
        context.attend(2, q, q, q, scale=1.0, causal=False)


def test_losses_are_those_of_the_whole_text():
    model = small_model()
    losses = stream_losses(model, TOKENS[:50], StreamingContext(model), chunk=7)
    expected = torch.nn.functional.cross_entropy(model.unembed(whole(model, 49)), TOKENS[1:50], reduction="none")
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(("num_layers", "window"), [(1, 4), (2, 4), (3, 4), (3, 1)])
def test_receptive_field_of_windows(num_layers, window):
    """Each layer reaches ``window - 1`` tokens further back, for a token is one of its own window: a token sees itself
    and ``layers * (window - 1)`` before it, not ``layers * window``."""
    model = small_model(num_layers, window=window)
    embedded = model.embedding(TOKENS[:20]).detach().requires_grad_()
    model.embedding.forward = lambda _: embedded
    model(TOKENS[:20], torch.arange(20), PackedContext([20]))[-1].square().sum().backward()
    seen = (embedded.grad != 0).any(-1).nonzero().flatten()
    assert seen.tolist() == list(range(20 - 1 - num_layers * (window - 1), 20))
