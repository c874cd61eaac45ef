"""What training keeps in one device's memory: the ZeRO model (arXiv 1910.02054), and activations of a decoder.

For N parameters in mixed precision, in bytes: 2 N of weights, gradients in the dtype in which they are summed (4 N
here, 2 N where one sums in bfloat16), 4 N of master copy and 8 N of Adam's moments in float32. Tensor and pipeline
parallelism divide all of these; sharding over n further ranks divides the optimiser's (ZeRO-1), the gradients too (2),
the weights too (3). A gathered layer, or two while the next is on its way, comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wootz.models.blocks.attention import Attention
from wootz.models.blocks.mlp import MLP, GatedMLP
from wootz.models.blocks.moe import MoE
from wootz.models.decoder import Decoder, Layer

Zero = Literal[0, 1, 2, 3]
Checkpointing = Literal["none", "full"]


@dataclass(frozen=True)
class StateBytes:
    """Of one rank."""

    weights: float
    gradients: float
    moments: float
    master: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.moments + self.master


def state_bytes(
    num_parameters: float,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    shards: int = 1,
    zero: Zero = 3,
    weight_bytes: float = 2,
    gradient_bytes: float = 4,
    moment_bytes: float = 8,
    master_bytes: float = 4,
) -> StateBytes:
    """``master_bytes`` is 0 where weights are kept in float32 and cast as they are gathered: then ``weight_bytes`` is
    4, and that copy is the master. ``moment_bytes`` is 8 for Adam, 4 for Lion or momentum, 2 for Adam in 8 bits."""
    held = num_parameters / tensor / pipeline
    return StateBytes(
        weights=held * weight_bytes / (shards if zero >= 3 else 1),
        gradients=held * gradient_bytes / (shards if zero >= 2 else 1),
        moments=held * moment_bytes / (shards if zero >= 1 else 1),
        master=held * master_bytes / (shards if zero >= 1 else 1),
    )


def activation_bytes(
    model: Decoder,
    tokens: int,
    *,
    checkpointing: Checkpointing = "none",
    tensor: int = 1,
    bytes_per_number: float = 2,
) -> float:
    """What all layers keep for the backward pass of ``tokens`` tokens, with attention that keeps no scores; the logits
    are not in it. With "full" checkpointing a layer keeps its input, and one layer at a time what it recomputes."""
    each = [_layer_numbers(layer, model.config.hidden_size) for layer in model.layers if isinstance(layer, Layer)]
    inputs = model.config.hidden_size * len(each)
    numbers = inputs + max(each, default=0) if checkpointing == "full" else sum(each)
    numbers += 2 * model.config.hidden_size  # around the last norm
    return tokens * numbers * bytes_per_number / tensor


def _layer_numbers(layer: Layer, width: int) -> float:
    """Kept for each token: what products, norms and activations were given. (The general case of ``34 s b h`` in arXiv
    2205.05198, which is a layer of GPT with dropout.)"""
    numbers = 0.0
    if layer.mixer is not None:
        numbers += 2 * width  # the norm's input, and its output
        if isinstance(layer.mixer, Attention):
            config = layer.mixer.config
            # q, k and v as projected, q and k as they were turned, the output by heads and by tokens
            turned = config.num_heads + config.num_kv_heads if config.rotary is not None else 0
            numbers += (3 * config.num_heads + 2 * config.num_kv_heads + turned) * config.head_dim
        else:
            numbers += 4 * width
    match layer.ffn:
        case GatedMLP():
            numbers += 2 * width + 4 * layer.ffn.down.in_features  # gate, up, act(gate), their product
        case MLP():
            numbers += 2 * width + 2 * layer.ffn.down.in_features
        case MoE(config=config):
            active = config.router.top_k
            numbers += 2 * width + active * (2 * width + 4 * config.intermediate_size)
            if config.shared is not None:
                numbers += 4 * config.shared.intermediate_size
        case _:
            pass
    return numbers


def logit_bytes(model: Decoder, tokens: int) -> float:
    """Logits in float32 and their gradient, whole on every tensor rank."""
    return 2 * 4 * tokens * model.config.vocab_size


def largest_layer(model: Decoder) -> int:
    """Parameters of the largest group that sharded ranks gather at once."""
    return max(sum(p.numel() for p in layer.parameters()) for layer in model.layers)
