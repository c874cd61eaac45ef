"""Folders in FP8 by blocks, as DeepSeek-V3 is published: what is loaded is what the formula gives, number by number."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from parity import save_random
from safetensors.torch import load_file, save_file
from test_families import SIZES
from test_moe_families import CASES
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from wootz.core import ModelFileError
from wootz.models import load
from wootz.models.converting import convert
from wootz.models.names import checkpoint_views
from wootz.models.quantized_layouts import layout_of

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
NOT_QUANTISED = ("norm", "embed_tokens", "lm_head", "mlp.gate.")


def to_fp8(weight: Tensor, block: int = 128) -> tuple[Tensor, Tensor]:
    """Each block divided by what makes its largest number 448, e4m3's largest."""
    rows, columns = (math.ceil(size / block) for size in weight.shape)
    scales = torch.empty(rows, columns)
    numbers = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            here = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            scales[i, j] = weight[here].abs().max() / 448
            numbers[here] = (weight[here] / scales[i, j]).to(torch.float8_e4m3fn)
    return numbers, scales


def one_by_one(numbers: Tensor, scales: Tensor, block: int = 128) -> Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(size) for size in numbers.shape), indexing="ij")
    return numbers.float() * scales[rows // block, columns // block]


def save_fp8(folder: Path) -> transformers.PreTrainedModel:
    """A small DeepSeek-V3 in the layout of the published one, and the same in transformers with what FP8 left of it."""
    config_class, settings = CASES["deepseek-v3"]
    sizes = {"hidden_size": 160, "intermediate_size": 300, "kv_lora_rank": 130, "q_lora_rank": 256}
    reference = save_random(folder, config_class(**(SIZES | settings | sizes)))
    file = folder / "model.safetensors"
    tensors, rounded = load_file(file), {}
    for name, tensor in load_file(file).items():
        if tensor.ndim == 2 and not any(part in name for part in NOT_QUANTISED):
            numbers, scales = to_fp8(tensor)
            tensors |= {name: numbers, f"{name}_scale_inv": scales}
            rounded[name] = one_by_one(numbers, scales)
        else:
            rounded[name] = tensor
    save_file(rounded, file)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    save_file(tensors, file)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": FP8}))
    return reference


@torch.inference_mode()
def test_a_published_layout_loads_as_the_numbers_it_stands_for(tmp_path: Path) -> None:
    reference, tokens = save_fp8(tmp_path / "fp8"), torch.arange(30) + 3
    stored, model = load_file(tmp_path / "fp8" / "model.safetensors"), load(tmp_path / "fp8")
    in_parts = [name for name in stored if name.endswith("_scale_inv")]
    assert {"q_a_proj", "kv_a_proj_with_mqa", "kv_b_proj", "down_proj"} <= {name.split(".")[-2] for name in in_parts}
    views = checkpoint_views(model)
    for name in (name.removesuffix("_scale_inv") for name in in_parts):
        torch.testing.assert_close(views[name], one_by_one(stored[name], stored[f"{name}_scale_inv"]), atol=0, rtol=0)
    torch.testing.assert_close(model.logits(tokens), reference(tokens[None]).logits[0], atol=1e-4, rtol=0)
    assert load(tmp_path / "fp8", dtype="bfloat16").dtype is torch.bfloat16
    assert "quantization_config" not in model.config.raw

    convert(tmp_path / "fp8", tmp_path / "plain")
    plain = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in plain
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(again(tokens[None]).logits, reference(tokens[None]).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_whole_blocks_equal_transformers(scale_dtype: torch.dtype) -> None:
    """It knows no blocks that are cut short, so those are only held to the formula."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(256, 384, generator=generator).to(torch.float8_e4m3fn)
    scales = (2.0 ** torch.randint(-9, 3, (2, 3), generator=generator)).to(scale_dtype)
    theirs = Fp8Dequantize(None)._dequantize_one(numbers, scales, torch.float32)
    held = layout_of(FP8).read("any", {".weight": numbers, ".weight_scale_inv": scales})
    assert torch.equal(held.dequantize(), theirs)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda name, tensors: tensors.pop(f"{name}_scale_inv"), "is torch.float8_e4m3fn, and no scales lie beside it"),
        (lambda name, tensors: tensors.pop(name), "q_a_proj: lacks .weight"),
        (lambda name, tensors: tensors.update({f"{name}_scale_inv": torch.ones(1, 1)}), r"scales \(1, 1\) instead of"),
        (lambda name, tensors: tensors.update({name: tensors[name].float()}), r"torch.float32 \(.*\) with scales"),
    ],
)
def test_halves_that_do_not_fit_are_refused(tmp_path: Path, damage, says: str) -> None:
    save_fp8(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    damage("model.layers.0.self_attn.q_a_proj.weight", tensors)
    save_file(tensors, file)
    with pytest.raises(ModelFileError, match=says):
        load(tmp_path)
