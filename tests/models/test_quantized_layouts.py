"""What is written is what others read, and the other way round: the compressed-tensors package (with its converter of
AutoAWQ checkpoints), and the published formulas, one number at a time."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wootz import kernels
from wootz.models.packed_weight import PackedWeight
from wootz.models.quantized_layouts import layout_of
from wootz.models.quantized_layouts.awq import AWQLayout
from wootz.models.quantized_layouts.bitsandbytes import BitsAndBytesLayout
from wootz.models.quantized_layouts.compressed_tensors import CompressedTensorsLayout, floats, integers
from wootz.models.quantized_layouts.gptq import GPTQLayout
from wootz.models.quantized_layouts.packing import pack, unpack
from wootz.models.quantized_weight import FLOAT8, Float8Weight, IntWeight, stack
from wootz.models.rounded_inputs import RoundedInputs
from wootz.models.weight_quantization import round_to_nearest
from wootz.models.weight_quantization.methods import METHODS, Settings
from wootz.models.weight_quantization.rounding import round_from_minimum

ROWS, COLUMNS = 64, 256


def a_weight(rows: int = ROWS, columns: int = COLUMNS, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**31))
def test_packing_equals_that_of_compressed_tensors(bits: int, rows: int, columns: int, seed: int) -> None:
    levels = torch.randint(1 << bits, (rows, columns), generator=torch.Generator().manual_seed(seed))
    signed = (levels - (1 << bits - 1)).to(torch.int8)
    words = pack(levels.to(torch.uint8), bits)
    assert torch.equal(words, pack_to_int32(signed, bits))
    assert torch.equal(unpack(words, bits, columns), levels.to(torch.uint8))
    assert torch.equal(unpack_from_int32(words, bits, signed.shape), signed)


def scheme_of(layout: CompressedTensorsLayout) -> QuantizationScheme:
    """The package's own reading of the config that we write."""
    return QuantizationScheme(**layout.config([])["config_groups"]["group_0"])


def local(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {ending[1:]: tensor for ending, tensor in tensors.items()}


COMPRESSED = {
    "rtn4": (integers(4, 64), lambda w: round_to_nearest(w, 4, group_size=64, dtype=torch.bfloat16).held()),
    "rtn3": (integers(3, 32), lambda w: round_to_nearest(w, 3, group_size=32, dtype=torch.float32).held()),
    "int8": (integers(8, None), lambda w: round_to_nearest(w, 8, dtype=torch.float32).held()),
    "w8a8": (integers(8, None, round_inputs=True), lambda w: METHODS["smoothquant"].quantize(w, None, Settings(64))),
    "fp8": (floats(static=False), lambda w: METHODS["fp8"].quantize(w, None, Settings(64))),
    "fp8-static": (floats(static=True), lambda w: METHODS["fp8-static"].quantize(w, None, Settings(64))),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors_decompresses_what_we_write(name: str) -> None:
    layout, make = COMPRESSED[name]
    weight = make(a_weight())
    compressor = BaseCompressor.get_value_from_registry(layout.schemes[0].format)
    theirs = compressor.decompress(local(layout.write(weight)), scheme_of(layout))["weight"].float()
    torch.testing.assert_close(theirs, weight.dequantize(), rtol=4e-3, atol=0)  # it multiplies in the scale's dtype
    ours = layout_of(layout.config([])).read("any", layout.write(weight))
    assert torch.equal(ours.dequantize(), weight.dequantize())
    assert ours.format == weight.format


@pytest.mark.parametrize(
    ("bits", "strategy", "symmetric", "format"),
    [
        (4, "group", True, "pack-quantized"),
        (4, "group", False, "pack-quantized"),
        (3, "group", True, "pack-quantized"),
        (8, "channel", True, "pack-quantized"),
        (8, "channel", False, "pack-quantized"),
        (8, "channel", True, "int-quantized"),
        (8, "tensor", True, "int-quantized"),
    ],
)
def test_we_read_what_compressed_tensors_writes(bits: int, strategy: str, symmetric: bool, format: str) -> None:
    size = 64 if strategy == "group" else None
    args = QuantizationArgs(num_bits=bits, type="int", strategy=strategy, symmetric=symmetric, group_size=size)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    weight = a_weight()
    groups = weight.unflatten(1, (-1, size or COLUMNS)) if strategy != "tensor" else weight.view(1, 1, -1)
    scale, zero = calculate_qparams(groups.amin(2), groups.amax(2), args)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
    compressor = BaseCompressor.get_value_from_registry(format)
    stored = compressor.compress(state, scheme)
    expected = compressor.decompress(dict(stored), scheme)["weight"]
    group = {"targets": ["re:.*mlp.*", "layers.0.q_proj"], "weights": args.model_dump(), "input_activations": None}
    config = {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group}}
    layout = layout_of(config)
    ours = layout.read("layers.0.q_proj", {f".{name}": tensor for name, tensor in stored.items()})
    torch.testing.assert_close(ours.dequantize(), expected.float(), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="no config group"):
        layout.read("layers.1.q_proj", {})


def test_activation_order_of_compressed_tensors() -> None:
    weight = round_to_nearest(a_weight(), 4, group_size=64, dtype=torch.float32).held()
    group_of_I = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(0)) // 64
    shuffled = IntWeight(weight.data, weight.scale, 4, None, group_of_I)
    back = integers(4, 64).read("any", integers(4, 64).write(shuffled))
    assert torch.equal(back.dequantize(), shuffled.dequantize())
    assert shuffled.dequantize()[5, 7] == weight.levels_OI[5, 7].float().sub(8) * weight.scale[5, group_of_I[7]]


@pytest.mark.parametrize("kind", ["w8a8", "fp8", "fp8-static"])
def test_inputs_are_rounded_as_compressed_tensors_emulates_it(kind: str) -> None:
    layout, make = COMPRESSED[kind]
    held = make(a_weight())
    assert isinstance(held, RoundedInputs)
    x = torch.randn(7, COLUMNS, generator=torch.Generator().manual_seed(3))
    x[2, 5] = 80.0
    x[4] = 0
    args = scheme_of(layout).input_activations
    assert args is not None
    scale, zero = held.input_scale, None
    if kind == "fp8":
        scale, zero = compute_dynamic_scales_and_zp(x.unsqueeze(0), args, torch.nn.Linear(1, 1))
    elif kind == "w8a8":  # of 127 steps, as vLLM's kernels have it; the emulation takes 127.5
        scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-20)
    expected = fake_quantize(x.unsqueeze(0), scale=scale, zero_point=zero, args=args)[0]
    torch.testing.assert_close(held.rounded(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(held.multiply(x), expected @ held.dequantize().T, rtol=1e-4, atol=1e-4)


def test_an_awq_checkpoint_is_what_another_reader_takes_it_for() -> None:
    weight = round_from_minimum(a_weight(), 4, group_size=64)
    layout = AWQLayout(64)
    stored = layout.write(weight)
    converter = AutoAWQConverter.from_autoawq_config(layout.config([]))
    signed, scale, zero = converter._convert_gemm_module(stored[".qweight"], stored[".scales"], stored[".qzeros"])
    assert zero is not None
    assert torch.equal(signed + 8, weight.levels_OI.int())
    theirs = (signed.float() - zero.float().repeat_interleave(64, 1)) * scale.float().repeat_interleave(64, 1)
    assert torch.equal(theirs, weight.dequantize())
    back = layout_of(layout.config([])).read("any", stored)
    assert torch.equal(back.dequantize(), weight.dequantize())


def gptq_by_the_formula(stored: dict[str, Tensor], bits: int, version: int, rows: int, columns: int) -> Tensor:
    """Bit by bit, as the format's description has it."""

    def field(words: list[int], place: int) -> int:
        joined = sum((word & 0xFFFFFFFF) << 32 * number for number, word in enumerate(words))
        return joined >> bits * place & (1 << bits) - 1

    weight = torch.zeros(rows, columns)
    for o in range(rows):
        column = stored[".qweight"][:, o].tolist()
        for i in range(columns):
            group = int(stored[".g_idx"][i])
            zero = field(stored[".qzeros"][group].tolist(), o) + (1 if version == 1 else 0)
            weight[o, i] = float(stored[".scales"][group, o]) * (field(column, i) - zero)
    return weight


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("bits", "ordered"), [(4, True), (4, False), (3, True), (8, True), (2, True)])
def test_a_gptq_checkpoint_means_what_the_formula_says(bits: int, ordered: bool, version: int) -> None:
    weight = round_to_nearest(a_weight(32, 64), bits, group_size=32).held()
    group_of_I = None if ordered else torch.randperm(64, generator=torch.Generator().manual_seed(0)) // 32
    weight = IntWeight(weight.data, weight.scale, bits, None, group_of_I)
    if version == 2 or bits == 4:  # zeros of their own, none of them 0
        zero = torch.randint(1, 1 << bits, weight.scale.shape, generator=torch.Generator().manual_seed(2))
        weight = IntWeight(weight.data, weight.scale, bits, zero.to(torch.uint8), group_of_I)
    layout = GPTQLayout(bits, 32, version)
    stored = layout.write(weight)
    torch.testing.assert_close(gptq_by_the_formula(stored, bits, version, 32, 64), weight.dequantize())
    back = layout_of(layout.config([])).read("any", stored)
    assert torch.equal(back.dequantize(), weight.dequantize())


def test_llm_int8_is_kept_as_bitsandbytes_does() -> None:
    held = METHODS["llm-int8"].quantize(a_weight(), None, Settings(64))
    stored = BitsAndBytesLayout().write(held)
    expected = stored[".weight"].float() * stored[".SCB"].unsqueeze(1) / 127  # its documentation's formula
    torch.testing.assert_close(expected, held.dequantize())
    torch.testing.assert_close(stored[".SCB"], a_weight().abs().amax(1))
    back = layout_of(BitsAndBytesLayout().config([])).read("any", stored)
    assert torch.allclose(back.dequantize(), held.dequantize())
    assert back.format == held.format


def test_a_tokens_outliers_are_multiplied_as_they_are() -> None:
    held = METHODS["llm-int8"].quantize(a_weight(), None, Settings(64))
    assert isinstance(held, RoundedInputs)
    x = torch.randn(9, COLUMNS, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    x[:, [3, 77]] *= 200
    x[5] = 0
    exact = x @ held.dequantize().T
    spoilt = RoundedInputs(held.weight, torch.int8).multiply(x)
    assert (held.multiply(x) - exact).square().mean() < 0.01 * (spoilt - exact).square().mean()
    one_by_one = torch.cat([held.multiply(row.unsqueeze(0)) for row in x])
    torch.testing.assert_close(one_by_one, held.multiply(x), rtol=1e-5, atol=1e-5)


def test_blocks_of_fp8_have_a_scale_each() -> None:
    layout = layout_of({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"})
    data = torch.randn(200, 256).to(FLOAT8)
    scale = torch.rand(2, 2) + 0.1
    held = layout.read("any", {".weight": data, ".weight_scale_inv": scale})
    assert held.dequantize()[199, 255] == data[199, 255].float() * scale[1, 1]
    assert held.dequantize()[0, 130] == data[0, 130].float() * scale[0, 1]
    x = torch.randn(3, 256)
    torch.testing.assert_close(held.multiply(x), x @ held.dequantize().T, rtol=0.1, atol=3.0)
    with pytest.raises(ValueError, match="instead of"):
        layout.read("any", {".weight": data, ".weight_scale_inv": scale[:1]})


@pytest.mark.skipif(not kernels.AVAILABLE, reason="the CPU kernels are not built")
@pytest.mark.parametrize("kind", ["symmetric", "zeros", "eight bits"])
def test_the_kernels_formats_hold_the_same_numbers(kind: str) -> None:
    held = {
        "symmetric": round_to_nearest(a_weight(), 4, group_size=64).held(),
        "zeros": round_from_minimum(a_weight(), 4, group_size=32),
        "eight bits": round_to_nearest(a_weight(), 8).held(),
    }[kind]
    found = held.for_kernels()
    assert found is not None
    dense = kernels.dequantize(found.data, found.format, COLUMNS)
    assert torch.equal(dense, held.dequantize())
    too_small = IntWeight(held.data, held.scale.float() * 1e-9, held.bits, held.zero)
    assert too_small.for_kernels() is None  # float16 has no such scale


PACKED = {
    "U4_OFFSET": round_to_nearest(a_weight(), 4, group_size=64).held(),
    "U4_MIN_WIDE": round_from_minimum(a_weight(), 4, group_size=32),
    "U4_MIN_WIDE by scale": round_to_nearest(a_weight(), 4, group_size=64, dtype=torch.float32).held(),
    "U4_MIN_WIDE by bits": round_to_nearest(a_weight(), 3, group_size=64).held(),
    "S8": round_to_nearest(a_weight(), 8).held(),
    "S8_WIDE": round_to_nearest(a_weight(), 8, dtype=torch.float32).held(),
    "S8 w8a8": METHODS["smoothquant"].quantize(a_weight(), None, Settings(64)),
}


@pytest.mark.skipif(not kernels.AVAILABLE, reason="the CPU kernels are not built")
@pytest.mark.parametrize("kind", PACKED)
def test_packed_weights_hold_the_same_numbers(kind: str) -> None:
    held = PACKED[kind]
    assert held.packed_layout == kind.split()[0]
    packed = PackedWeight.of([held], torch.empty(PackedWeight.size([held]), dtype=torch.uint8))
    steps = torch.randint(-127, 128, (5, COLUMNS)).float()
    steps.view(5, -1, 32)[..., 0] = 127  # so that rounding to 8 bits changes nothing
    torch.testing.assert_close(packed.multiply(steps), steps @ held.dequantize().T, rtol=1e-4, atol=1e-3)


def test_what_cannot_be_packed() -> None:
    weight = round_to_nearest(a_weight(), 4, group_size=64).held()
    assert IntWeight(weight.data, weight.scale, 4, None, torch.arange(COLUMNS) // 64).packed_layout is None
    assert round_from_minimum(a_weight(), 8, group_size=32).packed_layout is None
    assert RoundedInputs(weight, torch.int8, keep_above=6.0).packed_layout is None
    assert RoundedInputs(weight, FLOAT8).packed_layout is None
    assert Float8Weight(a_weight().to(FLOAT8), torch.ones(ROWS, 1)).packed_layout is None


def test_parts_of_a_projection_are_one_weight_where_they_can_be() -> None:
    whole = round_to_nearest(a_weight(), 4, group_size=64).held()
    x = torch.randn(3, COLUMNS)
    together = stack([whole.rows(0, 32), whole.rows(32, 64)], on_kernels=False)
    assert isinstance(together, IntWeight)
    assert torch.equal(together.dequantize(), whole.dequantize())
    mixed = stack([whole.rows(0, 32), Float8Weight(a_weight().to(FLOAT8), torch.ones(ROWS, 1))], on_kernels=False)
    expected = torch.cat((x @ whole.dequantize()[:32].T, x @ a_weight().to(FLOAT8).float().T), -1)
    torch.testing.assert_close(mixed.multiply(x), expected)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "only int8"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, '"marlin"'),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "without blocks"),
        ({"quant_method": "compressed-tensors", "quantization_status": "frozen", "config_groups": {}}, "frozen"),
    ],
)
def test_other_variants_are_refused_by_name(config: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        layout_of(config)
