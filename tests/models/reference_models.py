"""Small models with random weights, one per family, made and run by transformers."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

SIZES = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama2": (transformers.LlamaConfig, {"num_key_value_heads": 4}),
    "llama2-biases": (transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama2-linear-rope": (
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "llama3": (transformers.LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "mistral": (transformers.MistralConfig, {"sliding_window": None, "head_dim": 16}),
    "mistral-windowed": (transformers.MistralConfig, {"sliding_window": 50, "head_dim": 24}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 32}),
}
TOKENS = torch.randint(131, (200,), generator=torch.Generator().manual_seed(0))


def save_reference(folder: Path, family: str, *, tied: bool = False, **saving) -> transformers.PreTrainedModel:
    """A transformers model with random weights, norms and biases (which it starts at one and zero) included."""
    config_class, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config_class(**(SIZES | settings), tie_word_embeddings=tied), dtype=torch.float32
    ).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.save_pretrained(folder, **saving)
    return model


@torch.inference_mode()
def reference_logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    return model(TOKENS[None]).logits[0]
