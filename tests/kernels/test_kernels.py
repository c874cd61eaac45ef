"""Every build of the kernels that this processor can run, against PyTorch in float64 and our own dequantisers.

Those are tested, bit for bit, against the `gguf` package's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import wootz.models
from wootz import kernels
from wootz.core import EngineConfig
from wootz.core.gguf import GGML_TYPES
from wootz.engine import Engine, SamplingParams
from wootz.models.block_weight import MOST_KERNEL_TOKENS, BlockWeight
from wootz.models.dequantize import dequantize

pytestmark = pytest.mark.skipif(not kernels.AVAILABLE, reason="installed without a C++ compiler")

BLOCK_BYTES = {name: size for name, _, size in GGML_TYPES.values()}


@pytest.fixture(params=kernels.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    kernels.use(request.param)
    yield request.param
    kernels.use(kernels.instruction_sets()[0])


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


@pytest.mark.parametrize(("num_kv_heads", "group", "head_dim"), [(3, 3, 64), (1, 1, 16), (2, 7, 128)])
def test_decoding_attention_equals_pytorchs(instruction_set: str, num_kv_heads: int, group: int, head_dim: int) -> None:
    torch.manual_seed(4)
    block_size, lengths = 4, [1, 4, 5, 63, 300]
    max_blocks = -(-max(lengths) // block_size)
    num_blocks = len(lengths) * max_blocks + 5
    cache = torch.randn(num_blocks, block_size, 2, num_kv_heads, head_dim)
    q_THd = 3 * torch.randn(len(lengths) + 2, num_kv_heads * group, head_dim)
    tables = torch.randperm(num_blocks)[: len(lengths) * max_blocks].view(-1, max_blocks)
    rows = torch.randperm(len(q_THd))[: len(lengths)]
    out_THd = torch.full_like(q_THd, 7.0)
    int32 = (rows.int(), tables.int(), torch.tensor(lengths).int())
    kernels.decode(cache, q_THd, out_THd, *int32, head_dim**-0.5)
    for row, table, length in zip(rows, tables, lengths, strict=True):
        k_KLd, v_KLd = cache[table].flatten(0, 1)[:length].double().permute(1, 2, 0, 3)
        wanted = F.scaled_dot_product_attention(q_THd[row].double().unsqueeze(1), k_KLd, v_KLd, enable_gqa=True)
        assert (out_THd[row] - wanted.squeeze(1)).abs().max() < 5e-6
    untouched = [row for row in range(len(q_THd)) if row not in rows]
    assert (out_THd[untouched] == 7).all()


@pytest.mark.real
def test_the_real_model_says_the_same_quantised_and_dense(smollm2_gguf: Path) -> None:
    engine = Engine(smollm2_gguf, config=EngineConfig(cache_bytes=2**26))
    assert "Q4_1" in repr(engine.model)
    prompts = [[{"role": "user", "content": text}] for text in ("What is steel?", "Count to ten.", "Hi!")]
    answers = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=64))
    model = wootz.models.load(smollm2_gguf)
    for answer in answers:
        logits_TV = model.logits(answer.prompt_token_ids + answer.token_ids)
        assert logits_TV[len(answer.prompt_token_ids) - 1 : -1].argmax(-1).tolist() == answer.token_ids
