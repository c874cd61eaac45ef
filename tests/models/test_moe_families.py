"""Each family with experts equals its implementation in transformers: see `parity.prove`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from parity import prove, save_random
from safetensors.torch import load_file, save_file
from test_families import SIZES
from transformers.integrations.mxfp4 import _convert_moe_packed_tensors

from wootz.core.errors import ModelFileError
from wootz.models import PackedContext, load, read_config
from wootz.models.blocks.moe import active_parameters
from wootz.models.names import checkpoint_views
from wootz.models.saving import save

MOE = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 6, "v_head_dim": 10}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 32,
    "truncate": False,
}
CASES = {
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4, "intermediate_size": 24}),
    "qwen3-moe": (
        transformers.Qwen3MoeConfig,
        MOE | {"num_experts": 5, "head_dim": 16, "norm_topk_prob": True, "mlp_only_layers": [0]},
    ),
    "qwen2-moe": (transformers.Qwen2MoeConfig, MOE | {"num_experts": 4, "shared_expert_intermediate_size": 20}),
    "olmoe": (transformers.OlmoeConfig, {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24}),
    "gpt-oss": (
        transformers.GptOssConfig,
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 24,
            "swiglu_limit": 0.1,
            "sliding_window": 6,
            "rope_parameters": YARN,
        },
    ),
    "deepseek-v3": (
        transformers.DeepseekV3Config,
        MOE
        | LATENT
        | {"q_lora_rank": 20, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1}
        | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}},
    ),
    "deepseek-v2": (
        transformers.DeepseekV2Config,
        MOE
        | LATENT
        | {"q_lora_rank": None, "n_routed_experts": 6, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.0}
        | {"topk_method": "group_limited_greedy", "num_hidden_layers": 1},
    ),
}


SLOW = {"mixtral", "olmoe", "qwen2-moe", "deepseek-v2"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_family_equals_transformers(tmp_path: Path, case: str) -> None:
    config_class, settings = CASES[case]
    prove(tmp_path, config_class(**(SIZES | settings)))


class Remembering(PackedContext):
    """Looks at what `PackedContext` looks at, and says that it keeps it."""

    remembers = True


def deepseek(folder: Path) -> transformers.PreTrainedModel:
    config_class, settings = CASES["deepseek-v3"]
    return save_random(folder, config_class(**(SIZES | settings)))


@torch.inference_mode()
def test_absorbed_latent_attention_equals_naive(tmp_path: Path) -> None:
    deepseek(tmp_path)
    model, tokens = load(tmp_path, dtype="float64"), torch.arange(40) + 3
    positions = torch.arange(40)
    naive, absorbed = model(tokens, positions, PackedContext([40])), model(tokens, positions, Remembering([40]))
    torch.testing.assert_close(absorbed, naive, atol=1e-12, rtol=0)
    assert [spec.numbers_per_token for spec in model.cache_specs] == [16 + 6] * 2  # and not 4 heads of 14 + 10


@torch.inference_mode()
def test_a_balancing_bias_selects_as_in_transformers(tmp_path: Path) -> None:
    reference = deepseek(tmp_path / "start")
    bias = reference.model.layers[1].mlp.gate.e_score_correction_bias
    bias.copy_(torch.randn(8, generator=torch.Generator().manual_seed(3)))
    reference.save_pretrained(tmp_path / "biased")
    tokens = torch.arange(40) + 3
    model = load(tmp_path / "biased")
    torch.testing.assert_close(model.logits(tokens), reference(tokens[None]).logits[0], atol=1e-4, rtol=0)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    torch.testing.assert_close(checkpoint_views(model)[name], bias)
    assert (model.logits(tokens) - load(tmp_path / "start").logits(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("case", ["mixtral", "gpt-oss", "deepseek-v3"])
@torch.inference_mode()
def test_transformers_reads_what_we_save(tmp_path: Path, case: str) -> None:
    """Experts by name, and stacked in transposed tensors."""
    config_class, settings = CASES[case]
    tokens, reference = torch.arange(30) + 3, save_random(tmp_path / "theirs", config_class(**(SIZES | settings)))
    save(load(tmp_path / "theirs"), tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    torch.testing.assert_close(again(tokens[None]).logits, reference(tokens[None]).logits, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_mxfp4_experts_are_unpacked_as_in_transformers(tmp_path: Path) -> None:
    config_class, settings = CASES["gpt-oss"]
    sizes = {"hidden_size": 64, "intermediate_size": 32}
    reference = save_random(tmp_path, config_class(**(SIZES | settings | sizes)))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, inner, outer = tensors.pop(name).shape
        blocks = torch.randint(256, (num_experts, outer, inner // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 126, blocks.shape[:-1], generator=generator, dtype=torch.uint8)
        tensors |= {name + "_blocks": blocks, name + "_scales": scales}
        reference.get_parameter(name).copy_(_convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
    save_file(tensors, file)
    raw = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    tokens, model = torch.arange(30) + 3, load(tmp_path)
    for name, view in checkpoint_views(model).items():
        torch.testing.assert_close(view, reference.get_parameter(name), atol=0, rtol=0)
    torch.testing.assert_close(model.logits(tokens), reference(tokens[None]).logits[0], atol=1e-4, rtol=0)
    assert "quantization_config" not in model.config.raw  # what would be saved is dense

    scales = next(name for name in tensors if name.endswith("_scales"))
    save_file(tensors | {scales: tensors[scales][:, :-1].contiguous()}, file)
    with pytest.raises(ModelFileError, match=r"has blocks .* but scales"):
        load(tmp_path)
    del tensors[scales]
    save_file(tensors, file)
    with pytest.raises(ModelFileError, match="lacks tensor"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        (transformers.MixtralConfig(), 46.70e9, 12.88e9),
        (transformers.DeepseekV3Config(), 671.03e9, 37.55e9),
        (transformers.GptOssConfig(num_hidden_layers=24, num_local_experts=32), 20.91e9, 4.19e9),
    ],
    ids=["Mixtral 8x7B", "DeepSeek-V3", "gpt-oss-20b"],
)
def test_published_sizes(config: transformers.PretrainedConfig, total: float, active: float) -> None:
    """Counted without allocating anything; what is active includes both embedding matrices."""
    with torch.device("meta"):
        model = read_config(config.to_dict()).build()
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(total, rel=1e-3)
    assert active_parameters(model) == pytest.approx(active, rel=1e-3)
