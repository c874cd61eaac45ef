"""GGUF beyond Llama: files written with the `gguf` package as llama.cpp's converter writes them, and files of ours.

Theirs give transformers' logits; ours hold the same tensors, give the same logits, and run in llama.cpp.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from parity import save_random
from safetensors.torch import load_file
from test_converting import assert_as_probable, llama_cpp
from test_families import SIZES
from test_gguf_models import interleave_halves
from test_moe_families import CASES as EXPERTS
from test_moe_families import YARN
from torch import Tensor

from wootz.core import ConfigError
from wootz.core.gguf import GGUFFile
from wootz.models import load
from wootz.models.converting import convert
from wootz.models.dequantize import dequantize
from wootz.tokenization import load_tokenizer
from wootz.tokenization.export import gguf_vocabulary

ARCH = gguf.MODEL_ARCH
SPARSE = {"mlp_only_layers": [], "decoder_sparse_step": 1}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 0.5,
}
RECURRENT = {"state_size": 8, "num_hidden_layers": 2}

CASES = {
    "mixtral": (ARCH.LLAMA, *EXPERTS["mixtral"], {}),
    "qwen2-moe": (ARCH.QWEN2MOE, *EXPERTS["qwen2-moe"], SPARSE),
    "qwen3-moe": (ARCH.QWEN3MOE, *EXPERTS["qwen3-moe"], SPARSE | {"rope_parameters": YARN | {"truncate": True}}),
    "olmoe": (ARCH.OLMOE, *EXPERTS["olmoe"], {}),
    "deepseek-v2": (
        ARCH.DEEPSEEK2,
        *EXPERTS["deepseek-v2"],
        {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "num_hidden_layers": 2, "first_k_dense_replace": 1},
    ),
    "deepseek-v3": (
        ARCH.DEEPSEEK2,
        *EXPERTS["deepseek-v3"],
        {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7, "truncate": True}},
    ),
    "gpt-oss": (ARCH.GPT_OSS, *EXPERTS["gpt-oss"], {"swiglu_limit": 7.0}),
    "gemma2": (
        ARCH.GEMMA2,
        transformers.Gemma2Config,
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6, "num_hidden_layers": 3},
        {},
    ),
    "phi3": (ARCH.PHI3, transformers.Phi3Config, {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, {}),
    "phi3-long": (
        ARCH.PHI3,
        transformers.Phi3Config,
        {"rope_parameters": LONGROPE},
        {"original_max_position_embeddings": 32},
    ),
    "olmo2": (ARCH.OLMO2, transformers.Olmo2Config, {}, {}),
    "cohere2": (
        ARCH.COHERE2,
        transformers.Cohere2Config,
        {"sliding_window": 6, "num_hidden_layers": 4, "logit_scale": 0.25, "head_dim": 16},
        {},
    ),
    "mamba": (ARCH.MAMBA, transformers.MambaConfig, RECURRENT, {"intermediate_size": 128}),
    "falcon-mamba": (ARCH.MAMBA, transformers.FalconMambaConfig, RECURRENT, {"intermediate_size": 128}),
    "mamba2": (
        ARCH.MAMBA2,
        transformers.Mamba2Config,
        RECURRENT | {"num_heads": 8, "head_dim": 16, "n_groups": 2, "expand": 2},
        {},
    ),
}


def config_of(case: str, **more) -> tuple[gguf.MODEL_ARCH, transformers.PretrainedConfig]:
    architecture, config_class, settings, changes = CASES[case]
    return architecture, config_class(**(SIZES | {"hidden_size": 64} | settings | changes | more))


def as_theirs(config: transformers.PretrainedConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By Hugging Face names still, but with the tensors that llama.cpp's converter makes of these."""
    kind, made = config.model_type, {}
    experts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if kind == "mixtral" and re.search(r"[qk]_proj", name):
            tensor = interleave_halves(tensor, config.hidden_size // config.num_attention_heads)
        elif kind == "gemma2" and name.endswith("norm.weight"):
            tensor = tensor + 1
        elif name.endswith("kv_b_proj.weight"):
            by_head = tensor.view(config.num_attention_heads, -1, config.kv_lora_rank)
            keys, values = by_head.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
            made[name.replace("kv_b", "k_b")], made[name.replace("kv_b", "v_b")] = keys.mT, values
            continue
        elif name.endswith("shared_expert_gate.weight"):
            tensor = tensor.squeeze(0)
        elif name.endswith("gate_up_proj"):
            made[name.replace("gate_up_proj", "gate_proj.weight")] = tensor[..., ::2].mT
            name, tensor = name.replace("gate_up_proj", "up_proj.weight"), tensor[..., 1::2].mT
        elif name.endswith("gate_up_proj_bias"):
            made[name.replace("gate_up_proj_bias", "gate_proj.bias")] = tensor[..., ::2]
            name, tensor = name.replace("gate_up_proj_bias", "up_proj.bias"), tensor[..., 1::2]
        elif name.endswith("experts.down_proj"):
            name, tensor = name + ".weight", tensor.mT
        elif name.endswith("experts.down_proj_bias"):
            name = name.replace("_bias", ".bias")
        elif name.endswith("conv1d.weight"):
            tensor = tensor.squeeze(1)
        elif name.endswith("A_log"):
            tensor = -tensor.exp()
        if kind == "mamba2":
            if name.endswith((".A_log", ".D")):
                tensor = tensor[:, None]
            name = name.replace("dt_bias", "dt_proj.bias")
            if name.endswith("mixer.norm.weight"):
                tensor = tensor.view(config.n_groups, -1)
        if expert := re.search(r"experts\.(\d+)\.", name):
            experts[name.replace(expert[0], "experts.")][int(expert[1])] = tensor
        else:
            made[name] = tensor
    return made | {name: torch.stack([each[e] for e in range(len(each))]) for name, each in experts.items()}


def write_theirs(
    file: Path, folder: Path, architecture: gguf.MODEL_ARCH, config: transformers.PretrainedConfig
) -> None:
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_eos_token_id(0)
    if "mamba" in config.model_type:
        add_recurrent(writer, config)
    else:
        add_attention(writer, config)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in as_theirs(config, load_file(folder / "model.safetensors")).items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:  # what the converter renames by hand
            theirs = re.sub(
                r"model\.layers\.(\d+)\.mlp\.gate\.e_score_correction_bias", r"blk.\1.exp_probs_b.bias", name
            )
        if theirs.endswith("attn_sinks"):
            theirs += ".weight"
        writer.add_tensor(theirs, tensor.contiguous().numpy())
    if config.model_type == "phi3" and config.rope_parameters["rope_type"] == "longrope":
        for kind in ("short", "long"):
            factors = torch.tensor(config.rope_parameters[f"{kind}_factor"])
            writer.add_tensor(f"rope_factors_{kind}.weight", factors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_recurrent(writer: gguf.GGUFWriter, config: transformers.PretrainedConfig) -> None:
    is_second = config.model_type == "mamba2"
    writer.add_context_length(2**20)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.hidden_size * config.expand if is_second else config.intermediate_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.num_heads if is_second else int(config.time_step_rank))
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    if is_second:
        writer.add_ssm_group_count(config.n_groups)
    else:
        writer.add_ssm_dt_b_c_rms(config.model_type == "falcon_mamba")


def add_attention(writer: gguf.GGUFWriter, config: transformers.PretrainedConfig) -> None:
    kind, rope = config.model_type, config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if kind == "cohere2":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_logit_scale(config.logit_scale)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if (window := getattr(config, "sliding_window", None)) is not None:
        writer.add_sliding_window(window)
    if kind.startswith("deepseek"):
        writer.add_head_count_kv(1)
        writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
        writer.add_value_length(config.kv_lora_rank)
        writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
        writer.add_value_length_mla(config.v_head_dim)
        writer.add_kv_lora_rank(config.kv_lora_rank)
        if config.q_lora_rank is not None:
            writer.add_q_lora_rank(config.q_lora_rank)
        writer.add_rope_dimension_count(config.qk_rope_head_dim)
        writer.add_leading_dense_block_count(config.first_k_dense_replace)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
        if kind == "deepseek_v3":
            writer.add_expert_weights_norm(config.norm_topk_prob)
            writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
        if mscale := rope.get("mscale_all_dim"):
            writer.add_rope_scaling_yarn_log_mul(0.1 * mscale)
    if rope["rope_type"] == "longrope":
        longer = config.max_position_embeddings / rope["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        trained = torch.tensor(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(float((1 + torch.tensor(longer).log() / trained.log()).sqrt()))
    if kind in ("mixtral", "gpt_oss"):
        writer.add_expert_count(config.num_local_experts)
    elif hasattr(config, "num_experts") or hasattr(config, "n_routed_experts"):
        writer.add_expert_count(getattr(config, "num_experts", None) or config.n_routed_experts)
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_used_count(config.num_experts_per_tok)
    if kind in ("qwen2_moe", "qwen3_moe"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if kind in ("olmoe", "gpt_oss"):
        writer.add_expert_feed_forward_length(config.intermediate_size)
    if kind == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES)
def test_their_file_and_ours_hold_the_same_model(tmp_path: Path, case: str) -> None:
    architecture, config = config_of(case)
    reference, tokens = save_random(tmp_path / "folder", config), torch.arange(40) * 7 % config.vocab_size
    expected = reference(tokens[None]).logits[0]
    write_theirs(tmp_path / "theirs.gguf", tmp_path / "folder", architecture, config)
    torch.testing.assert_close(load(tmp_path / "theirs.gguf").logits(tokens), expected, atol=2e-4, rtol=0)

    convert(tmp_path / "folder", tmp_path / "ours.gguf")
    theirs, ours = GGUFFile(tmp_path / "theirs.gguf"), GGUFFile(tmp_path / "ours.gguf")
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert ours.tensors[name].shape == tensor.shape, name
        assert ours.bytes_of(name) == theirs.bytes_of(name), name
    lacking = {key: value for key, value in theirs.metadata.items() if ours.metadata.get(key) != value}
    assert not {key for key in lacking if not key.endswith(("context_length", "attn_factor", "sliding_window"))}
    torch.testing.assert_close(load(tmp_path / "ours.gguf").logits(tokens), expected, atol=2e-4, rtol=0)

    convert(tmp_path / "ours.gguf", tmp_path / "back")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager")
    torch.testing.assert_close(again(tokens[None]).logits[0], expected, atol=2e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("case", "type"),
    [
        ("mixtral", "F32"),
        ("qwen2-moe", "Q8_0"),
        ("qwen3-moe", "F32"),
        ("olmoe", "F32"),
        ("deepseek-v2", "F32"),
        ("deepseek-v3", "F16"),
        ("gemma2", "F32"),
        ("phi3", "F32"),
        ("olmo2", "F32"),
        ("cohere2", "F32"),
        ("mamba", "F32"),
        ("mamba2", "F32"),
    ],
)
def test_llama_cpp_computes_what_we_do(tmp_path: Path, tiny_model_folder: Path, case: str, type: str) -> None:
    vocabulary = gguf_vocabulary(tiny_model_folder)
    wide = {"vocab_size": len(vocabulary["tokenizer.ggml.tokens"]), "max_position_embeddings": 512}
    asked = {"olmoe": {"num_key_value_heads": 4}, "deepseek-v2": {"q_lora_rank": 20}}  # by llama.cpp, of small models
    _, config = config_of(case, **wide, **asked.get(case, {}))
    model = save_random(tmp_path / "folder", config)
    model.get_output_embeddings().weight.data.mul_(4)  # so that it has preferences
    model.save_pretrained(tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "model.gguf", type=type, vocabulary=vocabulary)
    prompt = load_tokenizer(tiny_model_folder).encode("Permission is hereby granted, free of charge")
    with llama_cpp(tmp_path / "model.gguf") as ask:
        logits_TV = load(tmp_path / "model.gguf").logits(prompt)
        answers = [(n, step) for n in range(2, len(prompt) + 1, 3) for step in ask(prompt[:n], 1)]
        assert len(answers) > 2
        for n, step in answers:
            assert_as_probable(step, logits_TV[n - 1], 0.03 if type == "F32" else 0.15)


def test_what_llama_cpp_takes_for_granted_is_not_contradicted(tmp_path: Path) -> None:
    """Its programs know some settings of an architecture, and no metadata would change them."""
    for case, change, says in (
        ("qwen3-moe", {"norm_topk_prob": False}, r"layers\[0\].ffn.router.gates"),
        ("qwen3-moe", {"mlp_only_layers": [0]}, r"layers\[0\].ffn"),
        ("gemma2", {"query_pre_attn_scalar": 99}, r"layers\[0\].mixer.scale"),
        ("gemma2", {"layer_types": ["full_attention"] * 3}, r"layers\[0\].mixer.window"),
        ("deepseek-v3", {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}}, "rotary"),
    ):
        folder = tmp_path / f"{case}-{next(iter(change))}"
        save_random(folder, config_of(case, **change)[1])
        with pytest.raises(ConfigError, match=f"cannot be written to GGUF: .* no word for its .*{says}"):
            convert(folder, tmp_path / "x.gguf")
        assert not (tmp_path / "x.gguf").exists()


def test_mxfp4_equals_the_gguf_package() -> None:
    blocks = torch.randint(256, (50, 17), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    blocks[:, 0] = blocks[:, 0].clamp(2, 253)
    theirs = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType.MXFP4)
    assert torch.equal(dequantize(blocks.flatten(), "MXFP4"), torch.from_numpy(theirs).flatten())
