"""Every position scheme: by its formula, by somebody else's code, and wherever the model runs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import prove_engine
from torch import nn
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from wootz.core.errors import BadRequestError
from wootz.models import Decoder, PackedContext, read_config
from wootz.models.attention.dense import attend
from wootz.models.context import relative_places
from wootz.models.positions import deberta
from wootz.models.positions.alibi import ALiBiConfig, slopes
from wootz.models.positions.deberta import DisentangledConfig, OffsetBuckets
from wootz.models.positions.floater import Floater, FloaterConfig
from wootz.models.positions.learned import Learned, LearnedConfig
from wootz.models.positions.multiplicative import MultiplicativeConfig
from wootz.models.positions.schemes import SCHEMES
from wootz.models.positions.shaw import Shaw, ShawConfig
from wootz.models.positions.sinusoidal import SinusoidalConfig, sinusoids
from wootz.models.positions.t5 import T5BucketsConfig


def model_with(positions: str, **settings: Any) -> Decoder:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "eos_token_id": 0}
    raw = {"model_type": "wootz", **sizes, "attention": "gqa:2", "max_position_embeddings": 64, **settings}
    model = read_config(raw | {"positions": positions}).build().double()
    assert isinstance(model, Decoder)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


EACH = [*SCHEMES, "rope+t5", "sinusoidal+alibi", "learned+xpos+shaw"]


@pytest.mark.parametrize("positions", EACH)
def test_a_document_is_read_alike_alone_and_packed(positions: str) -> None:
    model = model_with(positions)
    texts = [torch.arange(3, 3 + length) % 50 for length in (5, 1, 20)]
    places = torch.cat([torch.arange(len(text)) for text in texts])
    packed = model.unembed(model(torch.cat(texts), places, PackedContext([5, 1, 20])))
    torch.testing.assert_close(packed, torch.cat([model.logits(text) for text in texts]))


@pytest.mark.parametrize("positions", ["learned", "xpos", "shaw", "deberta", "t5", "alibi", "floater"])
def test_decoding_from_a_cache_equals_the_whole_text(positions: str) -> None:
    prove_engine(model_with(positions), num_requests=5)


@pytest.mark.parametrize("positions", [scheme for scheme in SCHEMES if scheme != "nope"])
def test_word_order_is_seen_only_with_positions(positions: str) -> None:
    """One layer is not told apart by the causal mask alone at its last token; positions tell."""
    text, swapped = [7, 8, 9, 10], [8, 7, 9, 10]
    seen = model_with(positions, num_hidden_layers=1)
    torch.testing.assert_close(*(model_with("nope", num_hidden_layers=1).logits(t)[-1] for t in (text, swapped)))
    assert not torch.allclose(seen.logits(text)[-1], seen.logits(swapped)[-1], atol=1e-4)


def test_a_causal_mask_of_two_layers_tells_places_apart_without_positions() -> None:
    model = model_with("nope")
    assert not torch.allclose(model.logits([7, 8, 9, 10])[-1], model.logits([8, 7, 9, 10])[-1], atol=1e-4)


def test_unmasked_attention_without_positions_commutes_with_any_reordering() -> None:
    q, k, v = torch.randn(3, 2, 6, 4, dtype=torch.float64)
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 97):
        shuffled = attend(q[:, order], k[:, order], v[:, order], scale=0.5)
        torch.testing.assert_close(shuffled, attend(q, k, v, scale=0.5)[:, order])


@pytest.mark.parametrize("positions", ["learned", "multiplicative"])
def test_a_position_beyond_the_table_is_refused(positions: str) -> None:
    model = model_with(positions)
    model.logits([1] * 64)
    with pytest.raises(BadRequestError, match="position 64 is beyond the 64 positions"):
        model.logits([1] * 65)


def test_a_table_grows_and_keeps_what_it_knew() -> None:
    table = LearnedConfig(8, offset=2).build(16)
    assert isinstance(table, Learned)
    x, places = torch.randn(8, 16), torch.arange(8)
    before = table(x, places)
    table.grow(12)
    assert torch.equal(table(x, places), before)
    grown = table(torch.zeros(4, 16), torch.arange(8, 12))
    assert 0.2 < grown.std() / table.table.weight[2:10].std() < 5
    with pytest.raises(ValueError, match="12 positions already"):
        table.grow(3)


@given(p=st.floats(0, 500), k=st.floats(-200, 200))
@settings(max_examples=30, deadline=None)
def test_a_shift_of_sinusoids_is_a_rotation_that_depends_on_the_shift_only(p: float, k: float) -> None:
    here, there, shift = sinusoids(torch.tensor([p, p + k, k], dtype=torch.float64), 16).double()
    sin, cos = here[::2], here[1::2]
    turned = torch.stack((sin * shift[1::2] + cos * shift[::2], cos * shift[1::2] - sin * shift[::2]), -1).flatten()
    torch.testing.assert_close(turned, there, atol=2e-3, rtol=0)
    assert SinusoidalConfig().build(8)(torch.zeros(1, 8), torch.tensor([0.5]))[0, 0] == torch.tensor(0.5).sin()


def test_sinusoids_need_an_even_width() -> None:
    with pytest.raises(ValueError, match="9 is not even"):
        SinusoidalConfig().build(9)


@pytest.mark.parametrize("num_heads", [1, 2, 3, 8, 12, 16, 20, 71])
def test_alibi_equals_bloom_and_mpt(num_heads: int) -> None:
    length = 9
    bias = ALiBiConfig().build(num_heads, 4)(None, None, relative_places(1, length, torch.device("cpu")))
    bloom = build_alibi_tensor(torch.ones(1, length), num_heads, torch.float32)
    torch.testing.assert_close(bias[:, :, :], bloom - bloom[..., -1:])
    torch.testing.assert_close(bias, build_mpt_alibi_tensor(num_heads, length)[..., :].view_as(bias))
    if num_heads == 8:
        assert slopes(8) == tuple(2.0**-head for head in range(1, 9))


def test_alibi_counts_from_both_sides_where_there_is_no_mask() -> None:
    bias = ALiBiConfig().build(1, 4)(None, None, torch.tensor([[-2, 0, 3]]))
    torch.testing.assert_close(bias[0, 0] * 256, torch.tensor([-2.0, 0.0, -3.0]))


@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 20), (64, 1000)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_t5_buckets_equal_transformers(buckets: int, longest: int, bidirectional: bool) -> None:
    relative = torch.arange(-2000, 2001)
    expected = T5Attention._relative_position_bucket(relative, bidirectional, buckets, longest)
    assert torch.equal(T5BucketsConfig(buckets, longest, bidirectional).bucket(relative), expected)


def test_t5_tells_before_from_after_only_where_it_looks_both_ways() -> None:
    assert T5BucketsConfig(bidirectional=True).bucket(torch.tensor([-3, 3])).unique().numel() == 2
    assert T5BucketsConfig().bucket(torch.tensor([1, 50])).tolist() == [0, 0]
    with pytest.raises(ValueError, match="2 buckets cannot cover"):
        T5BucketsConfig(2, bidirectional=True)


def test_shaw_adds_a_vector_per_signed_clipped_offset() -> None:
    bias = ShawConfig(max_offset=2).build(2, 4)
    assert isinstance(bias, Shaw)
    q, k = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    found = bias(q, k, relative_places(5, 5, torch.device("cpu")))
    for i, j in itertools.product(range(5), range(5)):
        vector = bias.offsets_Rd[min(max(j - i, -2), 2) + 2]
        torch.testing.assert_close(found[:, i, j], q[:, i] @ vector / 2)
    assert not torch.equal(bias.offsets_Rd[0], bias.offsets_Rd[-1])


@pytest.mark.parametrize(("longest", "buckets"), [(512, 256), (40, 8), (300, 32)])
def test_deberta_buckets_equal_transformers(longest: int, buckets: int) -> None:
    offset = torch.arange(-2 * longest, 2 * longest)
    theirs = (make_log_bucket_position(offset, buckets, longest).long() + buckets).clamp(0, 2 * buckets - 1)
    assert torch.equal(OffsetBuckets(longest, buckets).index(offset), theirs)


def test_disentangled_scores_are_the_product_of_sums_without_position_to_position() -> None:
    q, k = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    a, b = torch.randn(2, 8, 4), torch.randn(2, 8, 4)
    offsets = OffsetBuckets(4)
    index = offsets.index(-relative_places(6, 6, torch.device("cpu")))
    found = deberta.bias(q, k, index, a, b, 1.0) + q @ k.transpose(-1, -2)
    for i, j in itertools.product(range(6), range(6)):
        row = min(max(i - j, -4), 3) + 4
        whole = ((q[:, i] + b[:, row]) * (k[:, j] + a[:, row])).sum(-1)
        torch.testing.assert_close(found[:, i, j], whole - (b[:, row] * a[:, row]).sum(-1), atol=1e-5, rtol=1e-5)


def test_disentangled_attention_is_scaled_for_three_terms() -> None:
    assert DisentangledConfig().scale(64) == pytest.approx((3 * 64) ** -0.5)
    layer: Any = model_with("deberta").layers[0]
    assert layer.mixer.scale == pytest.approx((3 * 8) ** -0.5)


def test_multiplicative_positions_multiply_and_floater_walks() -> None:
    table = MultiplicativeConfig(4).build(8)
    x, places = torch.randn(4, 8), torch.arange(4)
    torch.testing.assert_close(table(x, places), x * table.get_parameter("table.weight"))
    floater = FloaterConfig(step=0.5).build(8)
    assert isinstance(floater, Floater)
    path = floater.walk(200)
    step = floater.down(torch.tanh(floater.up(path[150]) + 150 * floater.clock))
    torch.testing.assert_close(path[151], path[150] + 0.5 * step)
    assert path.isfinite().all()


@pytest.mark.parametrize("positions", ["t5", "shaw", "deberta", "learned", "floater", "multiplicative"])
def test_what_is_learned_has_gradients(positions: str) -> None:
    model = model_with(positions)
    model.logits([1, 2, 3, 4, 5]).square().sum().backward()
    mine = [p for name, p in model.named_parameters() if "score_bias" in name or "embedding_positions" in name]
    assert mine
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in mine)


def test_layers_may_differ_in_what_they_are_told() -> None:
    model = model_with("rope,nope")
    mixers: list[Any] = [layer.get_submodule("mixer") for layer in model.layers]
    assert mixers[0].rotary is not None
    assert mixers[1].rotary is None
    assert isinstance(mixers[0], nn.Module)


@pytest.mark.parametrize(
    ("positions", "message"), [("compass", '"compass" are not known'), ("t5+alibi", "two of them want the score_bias")]
)
def test_bad_schemes_are_refused(positions: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_with(positions)
