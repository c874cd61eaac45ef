"""Small decoders of several families with random packed weights, for the kernels that run all layers in one call."""

from __future__ import annotations

import torch
from torch import nn

from wootz.models import Decoder, families
from wootz.models.block_weight import BlockWeight
from wootz.models.linear import Linear
from wootz.models.packed_weight import PackedWeight
from wootz.models.quantize_blocks import quantize

SMALL = {
    "vocab_size": 157,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
CONFIGS = {
    "llama": SMALL | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": SMALL | {"model_type": "mistral", "sliding_window": 20},
    "qwen2": SMALL | {"model_type": "qwen2"},
    "qwen3": SMALL | {"model_type": "qwen3"},
    "gemma3": SMALL
    | {
        "model_type": "gemma3_text",
        "sliding_window": 20,
        "sliding_window_pattern": 2,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
    },
}


def packed_model(name: str) -> Decoder:
    torch.manual_seed(0)
    model = families.read_config(CONFIGS[name]).build()
    assert isinstance(model, Decoder)
    for module in model.modules():
        if isinstance(module, Linear):
            assert module.weight is not None
            format = "Q8_0" if module is model.head else "Q4_1"
            parts = [
                BlockWeight(quantize(w, format), format, (len(w), w.shape[1]))
                for w in module.weight.split(module.parts)
            ]
            module.hold_blocks(PackedWeight.of(parts, torch.empty(PackedWeight.size(parts), dtype=torch.uint8)))
        if isinstance(module, nn.Module) and "Norm" in type(module).__name__:
            nn.init.normal_(module.weight, 1.0, 0.3)  # pyright: ignore[reportArgumentType]
        if isinstance(module, Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3)
    if isinstance(head := model.head.blocks, PackedWeight) and model.config.tie_embeddings:
        model.embedding.hold_packed(*head.matrices)
    elif isinstance(weight := model.embedding.weight, torch.Tensor):
        blocks = [BlockWeight(quantize(weight, "Q8_0"), "Q8_0", (len(weight), weight.shape[1]))]
        memory = torch.empty(PackedWeight.size(blocks), dtype=torch.uint8)
        model.embedding.hold_packed(*PackedWeight.of(blocks, memory).matrices)
    return model.eval()
