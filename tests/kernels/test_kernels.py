"""Every build of the kernels that this processor can run, against PyTorch in float64 and our own dequantisers.

Those are tested, bit for bit, against the `gguf` package's. Builds for ARM run under an emulator, where there is one
(`pytest -m slow`, and Debian's packages g++-aarch64-linux-gnu and qemu-user-static).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from packed_model import packed_model
from torch import Tensor

import wootz.models
from wootz import kernels
from wootz.core import EngineConfig
from wootz.core.gguf import GGML_TYPES
from wootz.engine import Engine, SamplingParams
from wootz.engine.sampler import probability_weights
from wootz.kernels.packing import Parts, pack
from wootz.models.block_weight import MOST_KERNEL_TOKENS, BlockWeight
from wootz.models.context import relative_places, visible
from wootz.models.dequantize import dequantize
from wootz.models.packed_weight import GGUF_PARTS, PackedWeight
from wootz.models.quantize_blocks import quantize
from wootz.tokenization import load_tokenizer

pytestmark = pytest.mark.skipif(not kernels.AVAILABLE, reason="installed without a C++ compiler")

BLOCK_BYTES = {name: size for name, _, size in GGML_TYPES.values()}


def random_weight(format: str, rows: int, columns: int) -> Tensor:
    """Random quants under random scales (and minimums) of a usual size."""
    num_blocks = columns // kernels.BLOCK_WEIGHTS
    blocks = torch.randint(0, 256, (rows, num_blocks, BLOCK_BYTES[format]), dtype=torch.uint8)
    num_scales = 2 if format.endswith("_1") else 1
    scales = (0.01 * torch.randn(rows, num_blocks, num_scales)).half().view(torch.uint8)
    blocks[..., : scales.shape[-1]] = scales
    return blocks.flatten(1)


def dense(weight: Tensor, format: str, columns: int) -> Tensor:
    return dequantize(weight.flatten(), format).view(-1, columns)


@pytest.mark.parametrize("format", kernels.FORMATS)
def test_weights_come_out_to_the_last_bit(instruction_set: str, format: str) -> None:
    torch.manual_seed(0)
    for rows, columns in ((1, 32), (7, 64), (130, 576)):
        weight = random_weight(format, rows, columns)
        assert torch.equal(kernels.dequantize(weight, format, columns), dense(weight, format, columns))


@pytest.mark.parametrize("format", kernels.FORMATS)
def test_products_equal_those_of_the_dense_weight(instruction_set: str, format: str) -> None:
    torch.manual_seed(1)
    for rows, columns in ((1, 32), (7, 64), (130, 576), (5, 1536)):
        weight = random_weight(format, rows, columns)
        exact_RC = dense(weight, format, columns).double()
        for num_tokens in (1, 2, 3, 5, 8, 17):
            x_TC = torch.randn(num_tokens, columns)
            wanted_TR = x_TC.double() @ exact_RC.T
            assert (kernels.linear(x_TC, weight, format) - wanted_TR).abs().max() <= 2e-6 * wanted_TR.abs().max()


def test_no_tokens_have_no_result() -> None:
    """What the output layer is asked for while a long prompt is still in pieces."""
    assert kernels.linear(torch.empty(0, 64), random_weight("Q4_1", 7, 64), "Q4_1").shape == (0, 7)


def test_a_tokens_result_does_not_depend_on_the_others(instruction_set: str) -> None:
    torch.manual_seed(2)
    weight, x_TC = random_weight("Q4_1", 99, 576), torch.randn(32, 576)
    together = kernels.linear(x_TC, weight, "Q4_1")
    for first, last in ((0, 1), (3, 5), (1, 8), (5, 32), (31, 32)):
        assert torch.equal(kernels.linear(x_TC[first:last], weight, "Q4_1"), together[first:last])


def test_many_tokens_and_few_agree() -> None:
    torch.manual_seed(3)
    weight = BlockWeight(random_weight("Q4_0", 64, 96), "Q4_0", (64, 96))
    x_TC = torch.randn(MOST_KERNEL_TOKENS + 1, 96)
    torch.testing.assert_close(weight.multiply(x_TC)[:5], weight.multiply(x_TC[:5]), atol=1e-5, rtol=1e-5)


PACKED = {name: (256 if name.endswith("_K") else 32) for name in GGUF_PARTS}
"""Formats that are packed, and the weights in a block of each."""


def random_floats(format: str, rows: int, columns: int) -> BlockWeight:
    """Random weights, quantised as a file would have them."""
    return BlockWeight(quantize(0.1 * torch.randn(rows, columns), format), format, (rows, columns))


def packed(weight: BlockWeight) -> PackedWeight:
    return PackedWeight.of([weight], torch.empty(PackedWeight.size([weight]), dtype=torch.uint8))


def rounded(x_TC: Tensor) -> Tensor:
    """Each token in blocks of 32 to the nearest of 127 steps either side of zero."""
    blocks = x_TC.unflatten(1, (-1, 32))
    most = blocks.abs().amax(-1, keepdim=True)
    steps = (blocks * torch.full_like(most, 127).div(most)).round()  # `127 / most` would take a reciprocal
    return (steps.double() * most.double() / 127).flatten(1)


@pytest.mark.parametrize("format", PACKED)
def test_packed_products_equal_those_of_rounded_activations(instruction_set: str, format: str) -> None:
    torch.manual_seed(5)
    for rows, blocks in ((1, 1), (50, 3), (130, 2)):
        weight = random_floats(format, rows, blocks * PACKED[format])
        exact_RC = dense(weight.data, format, weight.shape[1]).double()
        for num_tokens in (1, 2, 3, 4, 7, 130):
            x_TC = 3 * torch.randn(num_tokens, weight.shape[1])
            wanted_TR = rounded(x_TC) @ exact_RC.T
            assert (packed(weight).multiply(x_TC) - wanted_TR).abs().max() <= 5e-6 * wanted_TR.abs().max() + 1e-6


@pytest.mark.parametrize("format", PACKED)
def test_rows_come_out_of_a_packed_weight(instruction_set: str, format: str) -> None:
    torch.manual_seed(7)
    weight = random_floats(format, 50, 2 * PACKED[format])
    rows = torch.tensor([3, 49, 0, 17, 3])
    out = kernels.unpacked_rows(packed(weight).matrices[0], rows)
    torch.testing.assert_close(out, dense(weight.data, format, weight.shape[1])[rows], atol=1e-6, rtol=1e-6)


def test_largest_bytes_do_not_overflow(instruction_set: str) -> None:
    """Sums of pairs are taken in 16 bits on some processors."""
    for layout, most in (("U4_MIN", 15), ("U5_MIN", 31), ("S8", 127), ("S8", -127), ("S6_WIDE", 31), ("S6_WIDE", -32)):
        q_RC = torch.full((16, 64), most).to(torch.uint8 if layout.startswith("U") else torch.int8)
        ones = torch.ones(16, 4 if layout == "S6_WIDE" else 2)
        parts = Parts(layout, q_RC, ones, torch.zeros(16, 2) if "MIN" in layout else None)
        for sign in (1, -1):
            y_TR = kernels.packed_linear(torch.full((5, 64), 127.0 * sign), pack(parts))
            assert (y_TR == 127 * 64 * most * sign).all()


def test_zeros_have_a_product(instruction_set: str) -> None:
    weight = packed(random_floats("Q4_0", 16, 64))
    assert (weight.multiply(torch.zeros(3, 64)) == 0).all()
    assert weight.multiply(torch.empty(0, 64)).shape == (0, 16)


def test_a_tokens_packed_result_does_not_depend_on_the_others(instruction_set: str) -> None:
    torch.manual_seed(6)
    weight, x_TC = packed(random_floats("Q4_1", 99, 576)), torch.randn(140, 576)
    together = weight.multiply(x_TC)
    for first, last in ((0, 1), (3, 5), (1, 8), (5, 140), (127, 131)):
        assert torch.equal(weight.multiply(x_TC[first:last]), together[first:last])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize(("num_kv_heads", "group", "head_dim"), [(3, 3, 64), (1, 1, 32), (2, 7, 128)])
def test_attention_equals_pytorchs(
    instruction_set: str, num_kv_heads: int, group: int, head_dim: int, window: int | None, dtype: torch.dtype
) -> None:
    """Chunks of one token and of many, at the start and far into their sequences, in rows of any order."""
    torch.manual_seed(4)
    block_size, scale = 4, 1.5 * head_dim**-0.5
    chunks = [(0, 1), (3, 1), (62, 1), (299, 1), (0, 70), (5, 30), (100, 65), (13, 2)]  # start, tokens
    max_blocks = -(-max(map(sum, chunks)) // block_size)
    num_blocks = len(chunks) * max_blocks + 5
    cache = torch.randn(num_blocks, block_size, 2, num_kv_heads, head_dim).to(dtype)
    tables = torch.randperm(num_blocks)[: len(chunks) * max_blocks].view(-1, max_blocks).int()
    q_THd = torch.randn(sum(tokens for _, tokens in chunks) + 2, num_kv_heads * group, head_dim)
    out_THd = torch.full_like(q_THd, 7.0)
    rows, row = [], 1
    for start, tokens in chunks:
        rows.append((row, tokens, start))
        row += tokens
    kernels.attend(cache, q_THd, out_THd, kernels.Chunks.of(rows, tables), scale=scale, window=window)
    for (row, tokens, start), table in zip(rows, tables, strict=True):
        k_KLd, v_KLd = cache[table.long()].flatten(0, 1)[: start + tokens].double().permute(1, 2, 0, 3)
        mask_QL = visible(relative_places(tokens, start + tokens, cache.device), True, window)
        wanted = F.scaled_dot_product_attention(
            q_THd[row : row + tokens].double().transpose(0, 1), k_KLd, v_KLd, mask_QL, scale=scale, enable_gqa=True
        )
        assert (out_THd[row : row + tokens] - wanted.transpose(0, 1)).abs().max() < 1e-5
    assert (out_THd[[0, -1]] == 7).all()


@pytest.mark.parametrize("window", [None, 40])
def test_a_tokens_attention_does_not_depend_on_its_chunk(instruction_set: str, window: int | None) -> None:
    torch.manual_seed(8)
    length = 150
    cache, table = torch.randn(20, 8, 2, 2, 64), torch.randperm(20).int()[None]
    q_THd = torch.randn(length, 6, 64)

    def attend(cuts: list[int]) -> Tensor:
        out_THd = torch.empty_like(q_THd)
        rows = [(start, end - start, start) for start, end in itertools.pairwise(cuts)]
        tables = table.expand(len(rows), -1).contiguous()
        kernels.attend(cache, q_THd, out_THd, kernels.Chunks.of(rows, tables), scale=0.125, window=window)
        return out_THd

    whole = attend([0, length])
    for cuts in (list(range(length + 1)), [0, 1, 70, 75, length], [0, 64, 128, length]):
        assert torch.equal(attend(cuts), whole)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_decoder_in_one_call_equals_its_operations(instruction_set: str, name: str) -> None:
    fused, plain = Engine(packed_model(name)), Engine(packed_model(name))
    assert fused.model.layer_loop is not None, "nothing was fused"  # pyright: ignore[reportAttributeAccessIssue]
    plain.model.layer_loop = None  # pyright: ignore[reportAttributeAccessIssue]
    prompts = [torch.randint(0, 157, (n,)).tolist() for n in (1, 5, 90)]
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    for one, other in zip(fused.generate(prompts, params), plain.generate(prompts, params), strict=True):
        for a, b in zip(one.prompt_logprobs or [], other.prompt_logprobs or [], strict=True):
            # A number that lies between two steps may be rounded to either: logits differ a little.
            assert (a is None and b is None) or (a and b and abs(a.logprob - b.logprob) < 0.02)
    first = SamplingParams(temperature=0, max_tokens=1, logprobs=3)
    for one, other in zip(fused.generate(prompts, first), plain.generate(prompts, first), strict=True):
        assert one.logprobs is not None
        assert other.logprobs is not None
        assert one.logprobs[0].top[0][2] == pytest.approx(other.logprobs[0].top[0][2], abs=0.02)
    (greedy,) = fused.generate([prompts[2]], SamplingParams(temperature=0, max_tokens=1))
    assert greedy.token_ids == [one.logprobs[0].top[0][0]]


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
@pytest.mark.parametrize("num_tokens", [5, 1000, 1003])
def test_what_is_drawn_stands_where_the_number_points(instruction_set: str, num_tokens: int, spread: float) -> None:
    """In the cumulative distribution that PyTorch makes of the same logits, up to rounding; forbidden ones never."""
    torch.manual_seed(5)
    places = [0.0, 1e-9, *torch.rand(8, dtype=torch.float64).tolist(), 1 - 2**-53]
    logits_SV = spread * torch.randn(len(places), num_tokens)
    logits_SV[:, 3] = float("-inf")
    for params in (
        SamplingParams(),
        SamplingParams(temperature=0.3),
        SamplingParams(top_k=1),
        SamplingParams(top_k=7, temperature=1.5),
        SamplingParams(top_p=0.5),
        SamplingParams(top_p=0.999),
        SamplingParams(min_p=0.2),
        SamplingParams(top_k=50, top_p=0.8, min_p=0.01, temperature=0.8),
        SamplingParams(top_k=5000),
    ):
        how = [(params.temperature, params.top_k, params.top_p, params.min_p, place) for place in places]
        drawn_S = torch.tensor(kernels.draw(logits_SV, how))
        weights_SV = probability_weights(logits_SV.double(), [params] * len(places))
        ends_SV = (weights_SV / weights_SV.sum(-1, keepdim=True)).cumsum(-1)
        end_S = ends_SV.gather(1, drawn_S[:, None])[:, 0]
        start_S = end_S - (weights_SV / weights_SV.sum(-1, keepdim=True)).gather(1, drawn_S[:, None])[:, 0]
        place_S = torch.tensor(places, dtype=torch.float64)
        assert (weights_SV.gather(1, drawn_S[:, None]) > 0).all(), params
        assert (start_S <= place_S + 1e-5).all(), params
        assert (place_S <= end_S + 1e-5).all(), params


def test_rows_are_drawn_alike_alone_and_together(instruction_set: str) -> None:
    torch.manual_seed(6)
    logits_SV = torch.randn(9, 2000)
    how = [(1.0, row * 10, 1 - row / 20, 0.0, row / 9) for row in range(9)]
    assert kernels.draw(logits_SV, how) == [kernels.draw(logits_SV[row : row + 1], [how[row]])[0] for row in range(9)]


def test_a_place_that_was_rounded_up_to_the_end_is_the_last_possible_token(instruction_set: str) -> None:
    logits_SV = torch.zeros(1, 300)
    logits_SV[:, 50:] = float("-inf")
    assert kernels.draw(logits_SV, [(1.0, 0, 1.0, 0.0, 1.0)]) == [49]
    assert kernels.draw(torch.arange(300.0).flip(0)[None], [(1.0, 7, 1.0, 0.0, 1.0)]) == [6]


def test_equal_logits_are_all_kept_at_the_cut(instruction_set: str) -> None:
    how = [(1.0, 2, 1.0, 0.0, place / 10) for place in range(10)]
    assert set(kernels.draw(torch.zeros(10, 40), how)) == {0, 4, 8, 12, 16, 20, 24, 28, 32, 36}
    assert kernels.draw(torch.zeros(10, 40), [(1.0, 0, 0.5, 0.0, place / 10) for place in range(10)])[9] == 36


@pytest.mark.slow
@pytest.mark.real
def test_the_real_model_says_the_same_quantised_and_dense(smollm2_gguf: Path) -> None:
    engine = Engine(smollm2_gguf, config=EngineConfig(cache_bytes=2**26, activations="float32"))
    assert "Q4_1" in repr(engine.model)
    prompts = [[{"role": "user", "content": text}] for text in ("What is steel?", "Count to ten.", "Hi!")]
    answers = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=64))
    model = wootz.models.load(smollm2_gguf)
    for answer in answers:
        logits_TV = model.logits(answer.prompt_token_ids + answer.token_ids)
        assert logits_TV[len(answer.prompt_token_ids) - 1 : -1].argmax(-1).tolist() == answer.token_ids


@pytest.mark.slow
@pytest.mark.real
def test_rounded_activations_hardly_change_the_real_models_perplexity(smollm2_gguf: Path) -> None:
    exact, packed = (wootz.models.load(smollm2_gguf, keep_quantized=kind) for kind in ("exact", "packed"))
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    ids = torch.tensor(load_tokenizer(smollm2_gguf).encode(text)[:512])
    losses = [float(F.cross_entropy(model.logits(ids)[:-1], ids[1:])) for model in (exact, packed)]
    assert abs(losses[1] - losses[0]) < 0.01
