"""Each method against what defines it: bounds, the exact solution, planted structure, and a small trained model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wootz.models import Decoder, load
from wootz.models.weight_quantization import (
    METHODS,
    awq,
    gptq,
    input_hessian,
    quantization_report,
    round_to_nearest,
    split_outliers,
)
from wootz.models.weight_quantization.awq import salient_columns
from wootz.models.weight_quantization.gptq import output_error
from wootz.models.weight_quantization.outliers import eight_bit_product


def correlated_inputs(num: int, columns: int, seed: int = 0) -> Tensor:
    """A few directions carry most of the variance, as in real activations."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)
    return torch.randn(num, columns, generator=generator) @ mixing.T


def a_weight(rows: int = 48, columns: int = 256, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([3, 4, 8]),
    st.sampled_from([None, 8, 32]),
    st.booleans(),
    st.floats(1e-4, 1e4),
)
def test_rounding_is_off_by_half_a_step_at_most(
    seed: int, bits: int, group_size: int | None, per_row: bool, size: float
) -> None:
    weight = a_weight(6, 64, seed) * size
    quantized = round_to_nearest(weight, bits, group_size=group_size, per_row=per_row)
    step = quantized.scale.float().repeat_interleave(64 // quantized.scale.shape[1], 1)
    assert ((quantized.weight_OI - weight).abs() <= step / 2 * 1.0001).all()
    assert quantized.q_OI.abs().max() <= 2 ** (bits - 1) - 1
    assert quantized.scale.dtype == torch.float16


def test_each_row_group_or_tensor_has_a_scale() -> None:
    weight = a_weight(6, 64)
    assert round_to_nearest(weight, 8, per_row=False).scale.shape == (1, 1)
    assert round_to_nearest(weight, 8).scale.shape == (6, 1)
    grouped = round_to_nearest(weight, 4, group_size=16)
    assert grouped.scale.shape == (6, 4)
    assert grouped.num_bytes == 6 * 64 // 2 + 6 * 4 * 2
    torch.testing.assert_close(grouped.scale.float(), weight.unflatten(1, (4, 16)).abs().amax(2) / 7, rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="whole groups"):
        round_to_nearest(weight, 4, group_size=24)
    with pytest.raises(ValueError, match="from 2 to 8"):
        round_to_nearest(weight, 16)


@pytest.mark.parametrize("method", [*METHODS])
def test_rows_of_zeros_stay_zero(method: str) -> None:
    weight = a_weight(8, 64)
    weight[3] = 0
    weight[:, 5] = 0
    result = METHODS[method](weight, correlated_inputs(100, 64)).weight_OI
    assert result.isfinite().all()
    assert result[3].eq(0).all()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "group_size"), [(4, None), (4, 32), (3, None), (3, 64)])
def test_gptq_errs_less_than_rounding_also_on_other_inputs(bits: int, group_size: int | None, act_order: bool) -> None:
    weight, inputs = a_weight(), correlated_inputs(400, 256)
    train, test = inputs[:200], inputs[200:]
    rounded = round_to_nearest(weight, bits, group_size=group_size)
    solved = gptq(weight, train, bits, group_size=group_size, act_order=act_order)
    assert output_error(weight, solved.weight_OI, train) < 0.5 * output_error(weight, rounded.weight_OI, train)
    assert output_error(weight, solved.weight_OI, test) < 0.8 * output_error(weight, rounded.weight_OI, test)
    assert solved.num_bytes == rounded.num_bytes


def gptq_by_the_book(weight: Tensor, inputs: Tensor, bits: int) -> Tensor:
    """Column by column, with the inverse of what is left of H computed anew each time, in float64."""
    scale = round_to_nearest(weight, bits).scale.flatten().double()
    weight = weight.double().clone()
    hessian = input_hessian(inputs).double()
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    q = torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[j:, j:])
        q[:, j] = (weight[:, j] / scale).round().clamp(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
        error = weight[:, j] - q[:, j] * scale
        weight[:, j:] -= torch.outer(error / inverse[0, 0], inverse[0])
    return q


def test_gptq_in_blocks_is_the_column_by_column_solution() -> None:
    weight, inputs = a_weight(16, 160), correlated_inputs(300, 160)  # more than one block
    ours, theirs = gptq(weight, inputs, 4).q_OI, gptq_by_the_book(weight, inputs, 4)
    assert (ours == theirs).float().mean() > 0.995  # a rounding on the edge may fall either way


def test_gptq_of_uncorrelated_inputs_is_rounding() -> None:
    weight = a_weight(8, 64)
    orthogonal = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
    assert torch.equal(gptq(weight, orthogonal, 4).q_OI, round_to_nearest(weight, 4).q_OI)


def test_gptq_needs_no_more_samples_than_columns() -> None:
    weight, few = a_weight(8, 64), correlated_inputs(10, 64)
    few[:, 7] = 0  # H is singular, and a whole column of it zero
    quantized = gptq(weight, few, 4)
    assert quantized.weight_OI.isfinite().all()
    rounded = round_to_nearest(weight, 4).weight_OI
    assert output_error(weight, quantized.weight_OI, few) < output_error(weight, rounded, few)


def test_awq_protects_planted_salient_channels() -> None:
    weight, inputs = a_weight(), torch.randn(200, 256, generator=torch.Generator().manual_seed(0))
    salient = torch.tensor([17, 101, 200])
    inputs[:, salient] *= 50
    assert set(salient_columns(inputs).tolist()) == {17, 101, 200}
    for bits in (4, 3):
        plain, found = round_to_nearest(weight, bits, group_size=64), awq(weight, inputs, bits, group_size=64)
        assert output_error(weight, found.weight_OI, inputs) < 0.5 * output_error(weight, plain.weight_OI, inputs)
        assert found.exponent > 0
        off = [(kind.weight_OI - weight)[:, salient].square().mean() for kind in (found, plain)]
        assert off[0] < 0.5 * off[1]
        assert found.num_bytes == plain.num_bytes


def test_awq_scales_fold_into_the_norm_before() -> None:
    weight, hidden = a_weight(16, 64), torch.randn(20, 64)
    norm = torch.rand(64) + 0.5
    inputs = F.rms_norm(hidden, (64,), norm) * torch.linspace(0.1, 5, 64)
    norm = norm * torch.linspace(0.1, 5, 64)
    found = awq(weight, inputs, 4)
    folded = F.rms_norm(hidden, (64,), found.fold_into(norm)) @ found.quantized.weight_OI.T
    torch.testing.assert_close(folded, inputs @ found.weight_OI.T, rtol=1e-4, atol=1e-4)
    before, x = torch.randn(64, 10), torch.randn(5, 10)  # or a projection before
    torch.testing.assert_close(x @ found.fold_into(before).T * found.input_scale_I, x @ before.T, rtol=1e-4, atol=1e-4)


def test_llm_int8_keeps_outliers_apart() -> None:
    weight, inputs = a_weight(), torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).clamp(-5, 5)
    inputs[:, [3, 77]] *= 60
    split = split_outliers(weight, inputs)
    assert split.outliers_C.tolist() == [3, 77]
    exact = inputs @ weight.T
    errors = [(y - exact).square().mean() for y in (split.multiply(inputs), eight_bit_product(weight, inputs))]
    assert errors[0] < 0.01 * errors[1]
    torch.testing.assert_close(split.multiply(inputs), inputs @ split.weight_OI.T, rtol=0, atol=0.05)
    assert split.num_bytes < weight.numel() * 1.1 + 2 * len(weight)
    assert split_outliers(weight, inputs.clamp(-5, 5)).outliers_C.numel() == 0


@pytest.fixture
def trained(tiny_model_folder: Path) -> tuple[Decoder, list[list[int]]]:
    """A tiny model that has learnt the licence, and the licence in pieces."""
    from wootz.tokenization import load_tokenizer

    torch.manual_seed(0)
    ids = load_tokenizer(tiny_model_folder).encode((Path(__file__).parents[2] / "LICENSE").read_text())
    documents = [ids[start : start + 64] for start in range(0, len(ids) - 64, 64)]
    model = load(tiny_model_folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        document = torch.tensor(documents[step % len(documents)])
        loss = F.cross_entropy(model.logits(document)[:-1], document[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False), documents


def test_the_report_orders_the_methods_as_the_field_does(trained: tuple[Decoder, list[list[int]]]) -> None:
    model, documents = trained
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lines = {line.method: line for line in quantization_report(model, documents[::2], documents[1::2])}
    assert list(lines) == ["none", *METHODS]
    assert abs(lines["int8"].gap) < abs(lines["int4"].gap) < lines["int3"].gap
    assert lines["int8"].output_mse < lines["int4"].output_mse < lines["int3"].output_mse
    for bits in ("int4", "int3"):
        for better in ("gptq", "awq"):
            assert lines[f"{bits} {better}"].output_mse < lines[bits].output_mse
    assert lines["int8"].bits == pytest.approx(8.2, abs=0.1)
    assert lines["int4"].bits == lines["int4 gptq"].bits == 4.5
    assert lines["int3"].num_bytes < lines["int4"].num_bytes < lines["int8"].num_bytes < lines["none"].num_bytes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
