"""What byte models are made of: stacks of layers without a vocabulary, and the surface that a language model has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wootz.core.errors import UnsupportedError
from wootz.models.blocks.norms import NormConfig
from wootz.models.context import Context, PackedContext
from wootz.models.decoder import Layer, LayerConfig
from wootz.models.linear import Linear
from wootz.models.run import Run

VOCAB_SIZE = 259
"""Padding, end of text, unknown, then the 256 bytes: ByT5's ids."""
FIRST_BYTE = 3
END_OF_TEXT = 1


class Stack(nn.Module):
    """Layers around a residual stream: ``(T, D) -> (T, D)``."""

    def __init__(self, layers: Sequence[LayerConfig], hidden_size: int, norm: NormConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(layer, hidden_size, norm) for layer in layers)
        for module in self.modules():
            if isinstance(module, Linear):
                depth = (2 * len(self.layers)) ** 0.5 if module.into_residual else 1.0
                nn.init.normal_(module.weight, std=hidden_size**-0.5 / depth)

    def forward(self, x_TD: Tensor, lengths: list[int]) -> Tensor:
        """Sequences of these lengths, end to end."""
        run = Run(torch.cat([torch.arange(n, device=x_TD.device) for n in lengths]), PackedContext(lengths))
        for layer in self.layers:
            x_TD = layer(x_TD, run)
        return x_TD


class ByteModel(nn.Module):
    """The surface of `Decoder`, for whole texts: `forward` gives at each byte what predicts the next one. A step of
    these models is not one byte, so they have no cache to decode from, and serve nothing."""

    embedding: nn.Embedding
    head: Linear
    norm: nn.Module

    def unembed(self, hidden_TD: Tensor) -> Tensor:
        """Logits ``(T, V)``, in float32 at least."""
        logits_TV = self.head(self.norm(hidden_TD))
        return logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))

    def logits(self, token_ids_T: Tensor | Sequence[int]) -> Tensor:
        """Logits ``(T, V)`` of one text from its start."""
        token_ids_T = torch.as_tensor(token_ids_T, dtype=torch.int64, device=self.device)
        positions_T = torch.arange(len(token_ids_T), device=self.device)
        return self.unembed(self(token_ids_T, positions_T, PackedContext([len(token_ids_T)])))

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device


def lengths_of(context: Context) -> list[int]:
    """How long the texts of this pass are, each from its start."""
    if not isinstance(context, PackedContext):
        raise UnsupportedError("this byte model reads whole texts and keeps no cache", hint="serve a mamba_byte model")
    return context.lengths


def embedding(vocab_size: int, hidden_size: int) -> nn.Embedding:
    table = nn.Embedding(vocab_size, hidden_size)
    nn.init.normal_(table.weight, std=hidden_size**-0.5)
    return table
