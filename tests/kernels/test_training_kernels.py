"""The training kernels, in every build that this processor can run, against PyTorch in float64: outputs, gradients, and
gradients of gradients. Builds for ARM run under an emulator (`pytest -m slow`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wootz import kernels
from wootz.kernels import training
from wootz.models import PackedContext, read_config
from wootz.models.positions.rotary import Rotation

pytestmark = pytest.mark.skipif(not kernels.AVAILABLE, reason="installed without a C++ compiler")

Operation = Callable[..., Tensor]


def outputs(operation: Operation, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What it gives, and the gradients by its inputs of some weighted sum of it."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = operation(*inputs)
    weights = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, weights)]


def assert_equal(operation: Operation, plain: Operation, *inputs: Tensor) -> None:
    """To a few roundings of float32, relative to the largest number of each result."""
    exact = outputs(plain, [x.double() for x in inputs])
    for ours, theirs in zip(outputs(operation, inputs), exact, strict=True):
        assert (ours - theirs).abs().max() <= 3e-6 * max(1e-3, theirs.abs().max().item())


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 7), (64, 64, 64), (100, 37, 51), (257, 300, 256), (61, 1030, 45)])
def test_product(instruction_set: str, shape: tuple[int, int, int]) -> None:
    rows, depth, columns = shape
    torch.manual_seed(0)
    a_MK, b_KN = torch.randn(rows, depth), torch.randn(depth, columns)
    wide = torch.randn(rows, columns + 3)
    for a, b in ((a_MK, b_KN), (a_MK.T.contiguous().T, b_KN.T.contiguous().T)):
        for adds in (False, True):
            out, exact = wide.clone(), a.double() @ b.double()
            training.product(a, b, out[:, :columns], adds=adds)
            if adds:
                exact += wide[:, :columns]
            assert (out[:, :columns] - exact).abs().max() <= 1e-6 * depth**0.5 * 8
            assert torch.equal(out[:, columns:], wide[:, columns:])


def test_a_row_of_a_product_does_not_depend_on_what_is_computed_beside_it(instruction_set: str) -> None:
    torch.manual_seed(0)
    a_MK, b_KN = torch.randn(150, 300), torch.randn(300, 40)
    whole = training.product(a_MK, b_KN, torch.empty(150, 40))
    torch.set_num_threads(1)
    assert torch.equal(training.product(a_MK, b_KN, torch.empty(150, 40)), whole)
    for rows in (1, 7, 64):
        part = training.product(a_MK[13 : 13 + rows], b_KN, torch.empty(rows, 40))
        assert torch.equal(part, whole[13 : 13 + rows])


def test_linear(instruction_set: str) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(5, 20, 70), torch.randn(33, 70), torch.randn(33)
    assert_equal(training.linear, F.linear, *inputs)
    assert_equal(training.linear, F.linear, inputs[0][0], *inputs[1:])  # too few rows to gain from


def test_norm(instruction_set: str) -> None:
    torch.manual_seed(0)
    for size in (8, 70):
        x, weight = torch.randn(3, 50, size) * 3, torch.randn(size)
        plain = partial(_plain_norm, eps=1e-5)
        assert_equal(partial(training.rms_norm, eps=1e-5), plain, x, weight)


def _plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_gated(instruction_set: str, activation: str) -> None:
    torch.manual_seed(0)
    function = F.silu if activation == "silu" else partial(F.gelu, approximate="tanh")

    def plain(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return function(gate) * up

    assert_equal(lambda x: training.gated(x, activation), plain, torch.randn(41, 90) * 4)
    extreme = torch.tensor([[-1e4, -90, 0, 90, 1e4, 1, 1, 1, 1, 1]])
    assert_equal(lambda x: training.gated(x, activation), plain, extreme)


@pytest.mark.parametrize("dim", [16, 20, 6])
def test_rotation(instruction_set: str, dim: int) -> None:
    torch.manual_seed(0)
    angles = torch.randn(50, dim // 2, dtype=torch.float64)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1)
    qkv = torch.randn(50, 5, 20)
    plain = Rotation(cos[:, None], sin[:, None])
    assert_equal(lambda x: training.rotate(x[:, :3], cos.float(), sin.float()), lambda x: plain(x[:, :3]), qkv)


LENGTHS = [
    ([5], 1, 1, 8),
    ([3, 70, 1, 130], 4, 2, 32),
    ([300, 2], 2, 2, 20),
    ([64, 64, 64], 6, 2, 16),
    ([600], 1, 1, 64),
]


@pytest.mark.parametrize(("lengths", "heads", "kv_heads", "dim"), LENGTHS)
def test_attention(instruction_set: str, lengths: list[int], heads: int, kv_heads: int, dim: int) -> None:
    """Documents of all kinds of lengths, grouped heads, and parts of one projection."""
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), heads + 2 * kv_heads, dim) * 2

    def attend(qkv: Tensor) -> Tensor:
        return training.packed_attention(*qkv.split((heads, kv_heads, kv_heads), 1), lengths, dim**-0.5)

    def plain(qkv: Tensor) -> Tensor:
        pieces = []
        for piece in qkv.split(lengths):
            q, k, v = (x.transpose(0, 1) for x in piece.split((heads, kv_heads, kv_heads), 1))
            out = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)
            pieces.append(out[0].transpose(0, 1))
        return torch.cat(pieces)

    assert_equal(attend, plain, qkv)


def test_cross_entropy(instruction_set: str) -> None:
    torch.manual_seed(0)
    for vocab_size in (3, 1000, 2050):
        logits, labels = torch.randn(33, vocab_size) * 6, torch.randint(vocab_size, (33,))
        logits[0] += 1000
        loss, grad = outputs(partial(F.cross_entropy, target=labels, reduction="sum"), [logits.double()])
        weight = torch.randn((), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        ours = logits.clone()
        assert training.cross_entropy_(ours, labels, 33) == pytest.approx(loss.item(), rel=1e-6)
        assert (ours - grad / weight / 33).abs().max() < 1e-7
    ours[0, 0] = torch.nan
    assert training.cross_entropy_(ours, labels, 33) != training.cross_entropy_(ours, labels, 33)


def test_sizes_that_do_not_fit_are_refused() -> None:
    x = torch.randn(70, 4, 8)
    with pytest.raises(ValueError, match="do not fit"):
        training.linear(torch.randn(70, 5), torch.randn(3, 4))
    with pytest.raises(ValueError, match="do not fit"):
        training.rms_norm(x, torch.ones(9), 1e-5)
    with pytest.raises(ValueError, match="do not fit"):
        training.rotate(x, torch.ones(69, 8), torch.ones(69, 8))
    with pytest.raises(ValueError, match="do not fit"):
        training.packed_attention(x, x, x, [60, 11], 1.0)
    for label in (-1, 7):
        with pytest.raises(IndexError, match="vocabulary of 7"):
            training.cross_entropy_(torch.randn(1, 7), torch.tensor([label]), 1)


RAW = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture
def model_loss() -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model = read_config(RAW | {"initializer_range": 0.2}).build()
    tokens, positions = torch.randint(64, (130,)), torch.cat((torch.arange(90), torch.arange(40)))
    labels = torch.randint(64, (130,))

    def loss() -> Tensor:
        hidden = model(tokens, positions, PackedContext([90, 40]))
        return F.cross_entropy(model.unembed(hidden), labels)  # type: ignore[operator]

    return model, loss


def test_gradients_have_gradients(
    model_loss: tuple[torch.nn.Module, Callable[[], Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hessian times a vector, of a whole model, against PyTorch's operations."""
    model, loss = model_loss
    parameters = list(model.parameters())
    vectors = [torch.randn_like(parameter) for parameter in parameters]

    def product() -> list[Tensor]:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # which has a second derivative
            grads = torch.autograd.grad(loss(), parameters, create_graph=True)
        return list(torch.autograd.grad(grads, parameters, vectors))

    fused = product()
    monkeypatch.setattr(training, "serves", lambda *tensors: False)
    for ours, theirs in zip(fused, product(), strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_they_serve_plain_float32_in_training_only(instruction_set: str) -> None:
    x = torch.randn(2, 2)
    assert training.serves(x, torch.nn.Parameter(x))
    assert not training.serves(x, x.double())
    assert not training.serves(x.to("meta"))
    with torch.no_grad():
        assert not training.serves(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not training.serves(x)


def test_gradients_do_not_depend_on_the_number_of_threads(
    instruction_set: str, model_loss: tuple[torch.nn.Module, Callable[[], Tensor]]
) -> None:
    model, loss = model_loss
    on_three = torch.autograd.grad(loss(), list(model.parameters()))
    torch.set_num_threads(1)
    for one, three in zip(torch.autograd.grad(loss(), list(model.parameters())), on_three, strict=True):
        assert torch.equal(one, three)
