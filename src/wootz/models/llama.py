"""The Llama family: Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen3, as one model with a few switches.

They differ in less than their names suggest: Qwen2 puts a bias on queries, keys and values; Qwen3 normalises each
query and key head; Llama 3.1 scales its rotary frequencies. `LlamaConfig` holds those switches, `wootz.models.names`
knows what checkpoints call the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wootz.models.blocks import Attention, GatedMLP, RMSNorm
from wootz.models.context import CacheSpec, Context, PackedContext, PagedKV
from wootz.models.linear import Linear
from wootz.models.rotary import RopeScaling, Rotary


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Everything that shapes the model. Nothing about files or devices."""

    family: str = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in _SIZES:
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive whole number, not {size!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) is odd, and rotary positions turn pairs")


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "max_position_embeddings",
)


class Llama(nn.Module):
    """A decoder-only transformer. ``Llama(config)`` has random weights; `wootz.models.load` fills them from a file."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.hidden_size), freeze=False)
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.rope_scaling)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = Linear(config.hidden_size, config.vocab_size)
        self.tie_weights()
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters())
        if not self.embedding.weight.is_meta:
            self._init_weights()

    def forward(self, token_ids_T: Tensor, positions_T: Tensor, context: Context) -> Tensor:
        """Final hidden states ``(T, D)``, normalised. Both inputs are int64; see `wootz.models.context`."""
        x_TD = self.embedding(token_ids_T)
        rotation = self.rotary(positions_T, x_TD.dtype)
        for layer in self.layers:
            x_TD = layer(x_TD, rotation, context)
        return self.norm(x_TD)

    def unembed(self, hidden_TD: Tensor) -> Tensor:
        """Logits ``(T, V)``, in float32 at least."""
        logits_TV = self.head(hidden_TD)
        return logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))

    def logits(self, token_ids_T: Tensor | Sequence[int]) -> Tensor:
        """Logits ``(T, V)`` of one document from its start."""
        token_ids_T = torch.as_tensor(token_ids_T, dtype=torch.int64, device=self.device)
        num_tokens = len(token_ids_T)
        positions_T = torch.arange(num_tokens, device=self.device)
        return self.unembed(self(token_ids_T, positions_T, PackedContext([num_tokens])))

    @property
    def cache_specs(self) -> list[CacheSpec]:
        return [PagedKV(self.config.num_kv_heads, self.config.head_dim)] * self.config.num_layers

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    def prepare_for_inference(self) -> Llama:
        """Lay weights out for speed (see `Linear.prepare_for_inference`). After this the model can only be run."""
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, Linear):
                module.prepare_for_inference()
        return self.eval()

    def tie_weights(self) -> None:
        """Make the output head read the embedding, if the config says so. Needed again after `to_empty`."""
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def _init_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(
            index,
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            qk_norm_eps=config.rms_norm_eps if config.qk_norm else None,
        )
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def forward(self, x_TD: Tensor, rotation: tuple[Tensor, Tensor], context: Context) -> Tensor:
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), rotation, context)
        return x_TD + self.mlp(self.mlp_norm(x_TD))
