"""MEGABYTE (arXiv 2305.07185): a large model once in each patch of P bytes, a small one at each byte in it.

    bytes ─► patches of P embeddings ─► shift by one patch ─► global layers ─┐
    bytes ─► local embeddings ──────────────────────────────────────────────+─► local layers, inside each patch ─► head

The global model has read all patches before this one, and hands each of the P places a part of what it knows; the local
model adds the bytes of this patch so far. Attention is over T / P patches, then over P bytes, and the feed-forward
parts that hold most parameters run once for P bytes.

A patch is P *inputs*, and each place predicts the byte after it, as everywhere in this house. The paper's patches are
of what is predicted, and its texts begin with a padding byte: the same model, if one gives it that byte.

G is the global width, which is cut into P parts; D is the local width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn

from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.sizes import check_sizes
from wootz.models.byte_models.stack import VOCAB_SIZE, ByteModel, Stack, embedding, lengths_of
from wootz.models.context import Context
from wootz.models.decoder import LayerConfig
from wootz.models.linear import Linear


@dataclass(frozen=True, kw_only=True)
class MegabyteConfig:
    patch_size: int = 8
    global_size: int
    local_size: int
    global_layers: tuple[LayerConfig, ...]
    local_layers: tuple[LayerConfig, ...]
    vocab_size: int = VOCAB_SIZE
    norm: NormConfig = field(default_factory=NormConfig)

    def __post_init__(self) -> None:
        check_sizes(self, "patch_size", "global_size", "local_size", "vocab_size")
        if self.global_size % self.patch_size:
            raise ValueError(
                f"a global width of {self.global_size} is not cut into {self.patch_size} equal parts, one for each byte"
            )

    def build(self) -> Megabyte:
        return Megabyte(self)


class Megabyte(ByteModel):
    def __init__(self, config: MegabyteConfig) -> None:
        super().__init__()
        self.config = config
        part = config.global_size // config.patch_size
        self.patch_embedding = embedding(config.vocab_size, part)
        self.start = nn.Parameter(torch.randn(config.global_size) * config.global_size**-0.5)
        self.global_stack = Stack(config.global_layers, config.global_size, config.norm)
        self.global_norm = config.norm.build(config.global_size)
        self.to_local = Linear(part, config.local_size)
        self.embedding = embedding(config.vocab_size, config.local_size)
        self.local_stack = Stack(config.local_layers, config.local_size, config.norm)
        self.norm = config.norm.build(config.local_size)
        self.head = Linear(config.local_size, config.vocab_size)
        # What comes down is as large as a byte's own embedding, which it would drown otherwise.
        nn.init.normal_(self.to_local.weight, std=(part * config.local_size) ** -0.5)

    def forward(self, token_ids_T: Tensor, positions_T: Tensor, context: Context) -> Tensor:
        """Hidden states ``(T, D)`` of whole texts, of any lengths: the last patch of each is filled up."""
        lengths, size = lengths_of(context), self.config.patch_size
        num_patches = [-(-length // size) for length in lengths]
        starts = [size * before for before in _before(num_patches)]
        places_T = torch.cat([start + torch.arange(n) for start, n in zip(starts, lengths, strict=True)])
        places_T = places_T.to(token_ids_T.device)
        ids_S = token_ids_T.new_zeros(sum(num_patches) * size)  # S: T and what fills up the patches
        ids_S[places_T] = token_ids_T

        patches_NG = self.patch_embedding(ids_S).view(sum(num_patches), -1)
        shifted_NG = patches_NG.roll(1, 0)
        shifted_NG[_before(num_patches)] = self.start
        known_NG = self.global_norm(self.global_stack(shifted_NG, num_patches))

        local_SD = self.embedding(ids_S) + self.to_local(known_NG.view(len(ids_S), -1))
        return self.local_stack(local_SD, [size] * sum(num_patches))[places_T]


def _before(counts: list[int]) -> list[int]:
    """How many there are before each."""
    return list(accumulate(counts, initial=0))[:-1]
