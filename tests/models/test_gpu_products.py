"""Quantised weights on a GPU, by our kernels and by the hardware's FP8 product, say what dequantising says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from wootz.kernels import triton as gpu
from wootz.models import gpu_products
from wootz.models.linear import Linear
from wootz.models.quantized_weight import FLOAT8, Float8Weight, IntWeight
from wootz.models.rounded_inputs import RoundedInputs


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    torch.manual_seed(0)
    if not gpu.AVAILABLE or (request.param == "cpu") != gpu.INTERPRETED:
        pytest.skip("needs Triton, with TRITON_INTERPRET=1 for a CPU and 0 for a GPU")
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    with gpu.on_cpu():
        yield torch.device("cpu")


def float8_weight(device: torch.device, outputs: int = 48, columns: int = 64) -> Float8Weight:
    scale = 0.01 + 0.1 * torch.rand(outputs, 1, device=device)
    return Float8Weight(torch.randn(outputs, columns, device=device).to(FLOAT8), scale)


def int4_weight(device: torch.device) -> IntWeight:
    levels = torch.randint(0, 16, (48, 64), dtype=torch.uint8, device=device)
    zero = torch.randint(0, 16, (48, 2), dtype=torch.uint8, device=device)
    return IntWeight.of_levels(levels, 0.01 * torch.rand(48, 2, device=device), 4, zero)


@pytest.mark.parametrize("make", [float8_weight, int4_weight])
@pytest.mark.parametrize("tokens", [0, 1, 5, 65])
def test_a_linear_that_holds_it(make, tokens: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens through the kernel, many and none without it, with a bias, and with another dimension in front."""
    weight = make(device)
    kernel = f"times_{'int4' if make is int4_weight else 'float8'}"
    answers: list[Tensor | None] = []
    product = getattr(gpu_products, kernel)
    monkeypatch.setattr(gpu_products, kernel, lambda x, weight: answers.append(product(x, weight)) or answers[-1])
    linear = Linear(64, 48, bias=True).to(device)
    assert linear.bias is not None
    torch.nn.init.normal_(linear.bias)
    linear.hold_blocks(weight)
    x = torch.randn(1, tokens, 64, device=device)
    with torch.no_grad():
        torch.testing.assert_close(linear(x), x @ weight.dequantize().T + linear.bias, atol=1e-5, rtol=1e-5)
    assert [answer is not None for answer in answers] == [tokens in (1, 5)]


@pytest.mark.parametrize("static", [False, True])
def test_float8_times_float8(static: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's CPU build has the operation too; whether it is *used* there is what is forced here."""
    if device.type == "cpu":
        monkeypatch.setattr(gpu_products, "_multiplies_float8", lambda device: True)
        monkeypatch.setattr(gpu, "_on_cpu", False)  # the interpreter's conversion to E4M3 is not exact
    weight = float8_weight(device)
    input_scale = torch.tensor(0.02, device=device) if static else None
    holds = RoundedInputs(weight, FLOAT8, input_scale)
    x = torch.randn(2, 3, 64, dtype=torch.bfloat16, device=device)
    found = gpu_products.rounded_times_float8(x, weight, input_scale)
    assert found is not None
    assert torch.equal(holds.multiply(x), found)
    # The emulation in float32 has the same rounded inputs, and no roundings after them.
    expected = holds.rounded(x.float()) @ weight.dequantize().T
    assert (found.float() - expected).norm() / expected.norm() < 4e-3


def test_what_the_hardware_does_not_multiply_is_dequantised(device: torch.device) -> None:
    odd = RoundedInputs(float8_weight(device, columns=60), FLOAT8)
    for dtype in (torch.float32, torch.float16):
        x = torch.randn(3, 60, dtype=dtype, device=device)
        expected = odd.rounded(x).float() @ odd.dequantize().T
        assert (odd.multiply(x).float() - expected).norm() / expected.norm() < 1e-2
