"""A GGUF file's metadata as the ``config.json`` of the same model.

llama.cpp's program for an architecture knows much that the metadata does not say (that Qwen3's experts' weights are
divided by their sum, which layers of Gemma have windows); what it knows is written here, by family. The other
direction, `wootz.models.gguf_export`, writes what the parts of a model ask for and reads it back through this file:
what would come back as another model is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

from wootz.models.gguf_architectures import ARCHITECTURES

SOFTMAX, SIGMOID = 1, 2
"""``expert_gating_func``."""


class Section(dict[str, Any]):
    """The metadata under one prefix; what it lacks is named in full."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str) -> None:
        super().__init__((key.removeprefix(f"{prefix}."), value) for key, value in metadata.items())
        self.prefix = prefix

    def __missing__(self, key: str) -> Any:
        raise KeyError(f"{self.prefix}.{key}")


def model_type_of(metadata: Mapping[str, Any]) -> str:
    """Raises ValueError, with a message for the user, for an architecture that we do not read."""
    name = metadata["general.architecture"]
    own = Section(metadata, name)
    match name:
        case "llama":
            return "mixtral" if own.get("expert_count") else "llama"
        case "deepseek2":
            return "deepseek_v3" if own.get("expert_gating_func") == SIGMOID else "deepseek_v2"
        case "mamba":
            return "falcon_mamba" if own.get("ssm.dt_b_c_rms") else "mamba"
    found = [model_type for model_type, architecture in ARCHITECTURES.items() if architecture.gguf == name]
    if not found:
        known = ", ".join(sorted({architecture.gguf for architecture in ARCHITECTURES.values()}))
        raise ValueError(f'architecture "{name}" is not supported in GGUF ({known} are)')
    return found[0]


def read_raw(
    metadata: Mapping[str, Any], tensors: Collection[str], vocab_size: int, read: Callable[[str], Tensor]
) -> dict[str, Any]:
    """``tensors`` are the names in the file, of which ``read`` gives the few that belong to the config.

    Raises KeyError for what is missing and ValueError, with a message for the user, for what we cannot run."""
    model_type, own = model_type_of(metadata), Section(metadata, metadata["general.architecture"])
    end = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")]
    common = {
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": own["embedding_length"],
        "num_hidden_layers": own["block_count"],
        "max_position_embeddings": own["context_length"],
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "eos_token_id": list(dict.fromkeys(token for token in end if token is not None)),
    }
    if model_type in _RECURRENT:
        return common | _RECURRENT[model_type](own, tensors)
    shape = _latent(own) if model_type.startswith("deepseek") else _attention(own, tensors)
    rope = {"rope_parameters": _rope(own, model_type, tensors, read)}
    return common | shape | rope | _MORE.get(model_type, lambda own: {})(own)


def _attention(own: Section, tensors: Collection[str]) -> dict[str, Any]:
    num_heads, window = own["attention.head_count"], own.get("attention.sliding_window") or None
    return {
        "intermediate_size": own["feed_forward_length"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": own.get("attention.head_count_kv", num_heads),
        "head_dim": _head_dim(own),
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        **_norm(own),
    }


def _head_dim(own: Section) -> int:
    return own.get("attention.key_length", own["embedding_length"] // own["attention.head_count"])


def _norm(own: Section) -> dict[str, Any]:
    if own.prefix == "cohere2":
        return {"layer_norm_eps": own["attention.layer_norm_epsilon"]}
    return {"rms_norm_eps": own["attention.layer_norm_rms_epsilon"]}


def _latent(own: Section) -> dict[str, Any]:
    num_heads, rotary_dim = own["attention.head_count"], own["rope.dimension_count"]
    # Without the two keys of the absorbed form a file is from before it, and the plain ones are each head's.
    key_dim = own.get("attention.key_length_mla", own["attention.key_length"])
    return {
        "intermediate_size": own["feed_forward_length"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "q_lora_rank": own.get("attention.q_lora_rank"),
        "kv_lora_rank": own["attention.kv_lora_rank"],
        "qk_nope_head_dim": key_dim - rotary_dim,
        "qk_rope_head_dim": rotary_dim,
        "v_head_dim": own.get("attention.value_length_mla", own["attention.value_length"]),
        **_norm(own),
    }


def _rope(own: Section, model_type: str, tensors: Collection[str], read: Callable[[str], Tensor]) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": own.get("rope.freq_base", 10_000.0)}
    kind = own.get("rope.scaling.type", "none")
    if model_type == "phi3":
        rope["partial_rotary_factor"] = own.get("rope.dimension_count", _head_dim(own)) / _head_dim(own)
    elif not model_type.startswith("deepseek") and own.get("rope.dimension_count", _head_dim(own)) != _head_dim(own):
        raise ValueError("rotary positions on a part of each head are not supported")
    if "rope_factors_long.weight" in tensors:
        lists = {f"{kind}_factor": read(f"rope_factors_{kind}.weight").tolist() for kind in ("short", "long")}
        trained = own["rope.scaling.original_context_length"]
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": trained} | lists
        rope |= {"factor": own["context_length"] / trained, "attention_factor": own.get("rope.scaling.attn_factor")}
    elif "rope_freqs.weight" in tensors:
        rope |= {"rope_type": "frequency_factors", "factors": read("rope_freqs.weight").tolist()}
    elif kind == "linear":
        rope |= {"rope_type": "linear", "factor": own["rope.scaling.factor"]}
    elif kind == "yarn":
        rope |= {"rope_type": "yarn", "factor": own["rope.scaling.factor"]}
        rope["original_max_position_embeddings"] = own.get(
            "rope.scaling.original_context_length", own["context_length"]
        )
        rope["beta_fast"] = own.get("rope.scaling.yarn_beta_fast", 32.0)
        rope["beta_slow"] = own.get("rope.scaling.yarn_beta_slow", 1.0)
        if (tenth := own.get("rope.scaling.yarn_log_multiplier")) and model_type.startswith("deepseek"):
            rope |= dict.fromkeys(("mscale", "mscale_all_dim"), 10 * tenth)
        if model_type == "gpt_oss":
            rope["truncate"] = False
    elif kind != "none":
        raise ValueError(f'rotary scaling "{kind}" is not supported (none, linear, yarn and factors are)')
    return rope


def _mixtral(own: Section) -> dict[str, Any]:
    return {"num_local_experts": own["expert_count"], "num_experts_per_tok": own["expert_used_count"]}


def _small_experts(own: Section) -> dict[str, Any]:
    return {
        "num_experts": own["expert_count"],
        "num_experts_per_tok": own["expert_used_count"],
        "moe_intermediate_size": own.get(
            "expert_feed_forward_length", own["feed_forward_length"] // own["expert_used_count"]
        ),
        "norm_topk_prob": own.prefix == "qwen3moe",
    }


def _qwen2_moe(own: Section) -> dict[str, Any]:
    width = own.get("expert_shared_feed_forward_length", own["feed_forward_length"])
    return _small_experts(own) | {"shared_expert_intermediate_size": width}


def _olmoe(own: Section) -> dict[str, Any]:
    return {"num_experts": own["expert_count"], "num_experts_per_tok": own["expert_used_count"]}


def _gpt_oss(own: Section) -> dict[str, Any]:
    width = own.get("expert_feed_forward_length", own["feed_forward_length"])
    return _mixtral(own) | {"intermediate_size": width}


def _deepseek(own: Section) -> dict[str, Any]:
    groups = {"n_group": own.get("expert_group_count", 1), "topk_group": own.get("expert_group_used_count", 1)}
    return {
        "first_k_dense_replace": own.get("leading_dense_block_count", 0),
        "moe_intermediate_size": own["expert_feed_forward_length"],
        "n_routed_experts": own["expert_count"],
        "n_shared_experts": own.get("expert_shared_count", 0),
        "num_experts_per_tok": own["expert_used_count"],
        "routed_scaling_factor": own.get("expert_weights_scale") or 1.0,
        "norm_topk_prob": own.get("expert_weights_norm", False),
        "topk_method": "group_limited_greedy" if groups["n_group"] > 1 else "greedy",
        **groups,
    }


def _gemma(own: Section) -> dict[str, Any]:
    # Not in the file: llama.cpp knows the two Gemmas (27B) that do not scale their scores by the head's size.
    large = {"gemma2": 46, "gemma3": 62}[own.prefix] == own["block_count"]
    width = own["embedding_length"] // own["attention.head_count"] if large else _head_dim(own)
    raw = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": width}
    if own.prefix == "gemma2":
        raw["sliding_window"] = own.get("attention.sliding_window", 4096)
        raw["attn_logit_softcapping"] = own.get("attn_logit_softcapping", 50.0)
        raw["final_logit_softcapping"] = own.get("final_logit_softcapping", 30.0)
    return raw


def _phi3(own: Section) -> dict[str, Any]:
    trained = own.get("rope.scaling.original_context_length", own["context_length"])
    return {"original_max_position_embeddings": trained}


def _cohere2(own: Section) -> dict[str, Any]:
    return {"logit_scale": own["logit_scale"]}


def _mamba(own: Section, tensors: Collection[str]) -> dict[str, Any]:
    return {
        "intermediate_size": own["ssm.inner_size"],
        "state_size": own["ssm.state_size"],
        "conv_kernel": own["ssm.conv_kernel"],
        "time_step_rank": own["ssm.time_step_rank"],
        "layer_norm_epsilon": own["attention.layer_norm_rms_epsilon"],
        "mixer_rms_eps": 1e-6,  # Falcon-Mamba's, for which llama.cpp takes the other one
        "use_bias": "blk.0.ssm_in.bias" in tensors,
        "use_conv_bias": "blk.0.ssm_conv1d.bias" in tensors,
    }


def _mamba2(own: Section, tensors: Collection[str]) -> dict[str, Any]:
    num_heads, inner = own["ssm.time_step_rank"], own["ssm.inner_size"]
    raw = _mamba(own, tensors) | {"num_heads": num_heads, "head_dim": inner // num_heads}
    return raw | {"n_groups": own["ssm.group_count"], "expand": inner // own["embedding_length"]}


_MORE: dict[str, Callable[[Section], dict[str, Any]]] = {
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _small_experts,
    "olmoe": _olmoe,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "cohere2": _cohere2,
    "phi3": _phi3,
}
_RECURRENT: dict[str, Callable[[Section, Collection[str]], dict[str, Any]]] = {
    "mamba": _mamba,
    "falcon_mamba": _mamba,
    "mamba2": _mamba2,
}
