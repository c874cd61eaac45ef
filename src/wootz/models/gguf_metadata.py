"""A model's config as GGUF metadata: each part says what it needs a word for.

It is then read back by `wootz.models.gguf_config`, which knows what llama.cpp takes for granted. What comes back as
another model is refused, so a file is never written that llama.cpp would compute something else with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from math import isclose
from typing import Any

import torch
from torch import Tensor

from wootz.core.errors import ConfigError
from wootz.models import families
from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.latent_attention import LatentAttentionConfig
from wootz.models.blocks.mamba import MambaConfig
from wootz.models.blocks.mamba2 import Mamba2Config
from wootz.models.blocks.moe import MoEConfig
from wootz.models.decoder import DecoderConfig
from wootz.models.gguf_architectures import ARCHITECTURES, Architecture
from wootz.models.gguf_config import SIGMOID, SOFTMAX, read_raw
from wootz.models.positions.rotary import RotaryConfig
from wootz.models.positions.scaling import LinearScaling, LongRopeScaling, YarnScaling

FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q4_K": 14,
    "Q5_K": 16,
    "Q6_K": 18,
}
"""What most matrices of a file can be, with llama.cpp's number for such a file."""


def gguf_metadata(config: DecoderConfig, type: str, tensors: Collection[str]) -> dict[str, Any]:
    """Everything but the tokenizer, of a file that holds ``tensors`` (by GGUF name).

    Raises `ConfigError` for a model that would not come back the same."""
    name = architecture_of(config).gguf
    own = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "vocab_size": config.vocab_size,
        f"attention.layer_norm{'_rms' * (config.norm.kind == 'rms')}_epsilon": config.norm.eps,
        **_mixers(config),
        **_experts(config, name),
    }
    if config.logit_softcap is not None:
        own["final_logit_softcapping"] = config.logit_softcap
    if config.logit_scale != 1.0:
        own["logit_scale"] = config.logit_scale
    metadata = {
        "general.architecture": name,
        "general.type": "model",
        "general.file_type": FILE_TYPES[type],
        "general.quantization_version": 2,
    }
    ids = dict(zip(("bos", "eos", "eot"), (config.bos_token_id, *config.eos_token_ids), strict=False))
    metadata |= {f"tokenizer.ggml.{role}_token_id": id for role, id in ids.items() if id is not None}
    metadata |= {f"{name}.{key}": value for key, value in own.items()}
    _check(config, metadata, tensors)
    return metadata


def _mixers(config: DecoderConfig) -> dict[str, Any]:
    mixer, raw = config.layers[0].mixer, config.raw
    match mixer:
        case AttentionConfig():
            own = {
                "feed_forward_length": raw["intermediate_size"],
                "attention.head_count": mixer.num_heads,
                "attention.head_count_kv": mixer.num_kv_heads,
                "attention.key_length": mixer.head_dim,
                "attention.value_length": mixer.head_dim,
            }
            windows = [layer.mixer.window for layer in config.layers if isinstance(layer.mixer, AttentionConfig)]
            if (window := max((window for window in windows if window is not None), default=None)) is not None:
                own["attention.sliding_window"] = window
            if mixer.softcap is not None:
                own["attn_logit_softcapping"] = mixer.softcap
        case LatentAttentionConfig():
            own = {  # as llama.cpp computes: all heads look at one latent vector
                "feed_forward_length": raw["intermediate_size"],
                "attention.head_count": mixer.num_heads,
                "attention.head_count_kv": 1,
                "attention.kv_lora_rank": mixer.latent_dim,
                "attention.key_length": mixer.latent_dim + mixer.rotary.dim,
                "attention.value_length": mixer.latent_dim,
                "attention.key_length_mla": mixer.query_dim,
                "attention.value_length_mla": mixer.value_dim,
            }
            if mixer.query_latent_dim is not None:
                own["attention.q_lora_rank"] = mixer.query_latent_dim
        case MambaConfig() | Mamba2Config():
            return _recurrent(mixer)
        case _:
            raise ConfigError("layers of this kind cannot be written to GGUF")
    return own | _rope(global_rotary(config))


def _recurrent(mixer: MambaConfig | Mamba2Config) -> dict[str, Any]:
    own = {"feed_forward_length": 0, "attention.head_count": 0}  # llama.cpp asks for them all the same
    own |= {"ssm.conv_kernel": mixer.conv_width, "ssm.state_size": mixer.state_size}
    if isinstance(mixer, Mamba2Config):
        heads = {"ssm.time_step_rank": mixer.num_heads, "ssm.group_count": mixer.num_groups}
        return own | heads | {"ssm.inner_size": mixer.inner_size}
    normalised = {"ssm.dt_b_c_rms": mixer.inner_norm_eps is not None}
    return own | normalised | {"ssm.time_step_rank": mixer.dt_rank, "ssm.inner_size": mixer.intermediate_size}


def _rope(rotary: RotaryConfig) -> dict[str, Any]:
    own: dict[str, Any] = {"rope.dimension_count": rotary.dim, "rope.freq_base": float(rotary.theta)}
    match rotary.scaling:
        case LinearScaling(factor):
            own |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(factor)}
        case YarnScaling() as yarn:
            own |= {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(yarn.factor),
                "rope.scaling.original_context_length": yarn.trained_length,
                "rope.scaling.yarn_beta_fast": float(yarn.beta_fast),
                "rope.scaling.yarn_beta_slow": float(yarn.beta_slow),
            }
            if yarn.mscale_all_dim:
                own["rope.scaling.yarn_log_multiplier"] = 0.1 * yarn.mscale_all_dim
        case LongRopeScaling() as longrope:
            own["rope.scaling.original_context_length"] = longrope.trained_length
            own["rope.scaling.attn_factor"] = longrope.attention_factor
    return own


def _experts(config: DecoderConfig, name: str) -> dict[str, Any]:
    experts = next((layer.ffn for layer in config.layers if isinstance(layer.ffn, MoEConfig)), None)
    if experts is None:
        return {}
    router, width = experts.router, experts.intermediate_size
    own: dict[str, Any] = {"expert_count": router.num_experts, "expert_used_count": router.top_k}
    if name != "llama":  # Mixtral's are as wide as the layer
        own["expert_feed_forward_length"] = width
    if experts.shared is not None and name == "qwen2moe":
        own["expert_shared_feed_forward_length"] = experts.shared.intermediate_size
    if name == "deepseek2":
        own |= {
            "leading_dense_block_count": sum(not isinstance(layer.ffn, MoEConfig) for layer in config.layers),
            "expert_shared_count": experts.shared.intermediate_size // width if experts.shared else 0,
            "expert_weights_scale": float(router.scaling),
            "expert_weights_norm": router.gates.endswith("renormalised"),
            "expert_gating_func": SIGMOID if router.gates.startswith("sigmoid") else SOFTMAX,
            "expert_group_count": router.num_groups,
            "expert_group_used_count": router.top_groups,
        }
    return own


def architecture_of(config: DecoderConfig) -> Architecture:
    family = "llama" if config.family == "mistral" else config.family
    if family not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f'"{config.family}" models cannot be written to GGUF ({known} and mistral can)')
    return ARCHITECTURES[family]


def global_rotary(config: DecoderConfig) -> RotaryConfig:
    """That of the layers without a window, where the layers differ and it has one."""
    mixers = [layer.mixer for layer in config.layers]
    turned = [m for m in mixers if isinstance(m, AttentionConfig | LatentAttentionConfig) and m.rotary is not None]
    found = min(turned, key=lambda mixer: getattr(mixer, "window", None) is not None, default=None)
    if found is None or found.rotary is None:
        raise ConfigError("attention without rotary positions cannot be written to GGUF")
    return found.rotary


def frequency_factors(config: DecoderConfig) -> dict[str, Tensor]:
    """How much slower each frequency turns, where that is more than one factor for all."""
    if isinstance(config.layers[0].mixer, MambaConfig | Mamba2Config):
        return {}
    rotary = global_rotary(config)
    match rotary.scaling:
        case None | LinearScaling() | YarnScaling():
            return {}
        case LongRopeScaling() as longrope if config.family == "phi3":
            lists = {"short": longrope.short_factors, "long": longrope.long_factors}
            return {f"rope_factors_{kind}.weight": torch.tensor(factors) for kind, factors in lists.items()}
        case scaling if scaling.longest is None and scaling.attention_factor == 1.0 and config.family in _FACTORS_READ:
            plain = RotaryConfig(rotary.dim, rotary.theta).frequencies()
            return {"rope_freqs.weight": plain / rotary.frequencies()}
        case scaling:
            raise ConfigError(f"{type(scaling).__name__} of rotary positions cannot be written to GGUF")


_FACTORS_READ = ("llama", "mistral", "mixtral")


def _check(config: DecoderConfig, metadata: Mapping[str, Any], tensors: Collection[str]) -> None:
    raw = read_raw(metadata, tensors, config.vocab_size, frequency_factors(config).__getitem__)
    read = families.read_config(raw)
    for field in fields(config):
        if field.name in _IMMATERIAL:
            continue
        if (lost := _difference(getattr(config, field.name), getattr(read, field.name))) is not None:
            what, name = f"{field.name}{lost}", metadata["general.architecture"]
            raise ConfigError(f'this model cannot be written to GGUF: "{name}" there has no word for its {what}')


_IMMATERIAL = (
    "family",
    "raw",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_ids",
    "initializer_range",
    "jitter",
)
"""What changes nothing that the finished model computes, and Mistral's name, which is Llama there."""


def _difference(one: Any, other: Any) -> str | None:
    """Where two parts of a config differ (``[0].mixer.window``), numbers that float32 rounds alike aside."""
    if isinstance(one, RotaryConfig) and isinstance(other, RotaryConfig):
        return None if _turns(one) == _turns(other) else ""
    if is_dataclass(one) and type(one) is type(other):
        pairs = ((f".{field.name}", getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    elif isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = ((f"[{n}]", *pair) for n, pair in enumerate(zip(one, other, strict=True)))
    elif isinstance(one, float) and isinstance(other, int | float):
        return None if isclose(one, other, rel_tol=1e-6) else ""
    else:
        return None if one == other else ""
    for where, ours, theirs in pairs:
        if where[1:] not in _IMMATERIAL and (lost := _difference(ours, theirs)) is not None:
            return where + lost
    return None


def _turns(rotary: RotaryConfig) -> tuple[Any, ...]:
    """How fast each pair turns, whichever rule says so, in numbers that float32 rounds alike."""
    scaling = rotary.scaling
    longest, factor = (scaling.longest, scaling.attention_factor) if scaling else (None, 1.0)
    speeds = [float(f"{speed:.4g}") for length in (1, None) for speed in rotary.frequencies(length).tolist()]
    return rotary.dim, rotary.interleaved, rotary.decay, longest, round(factor, 5), speeds
