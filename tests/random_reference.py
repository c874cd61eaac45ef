"""A small transformers model with random weights, on disk: what ours is compared with."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers


def save_random(folder: Path, config: transformers.PretrainedConfig, seed: int = 0) -> transformers.PreTrainedModel:
    """A transformers model with random weights; norms and biases, which it starts at one and zero, are moved too."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * (0.2 if parameter.ndim < 2 else 0.05)
    model.save_pretrained(folder)
    return model
