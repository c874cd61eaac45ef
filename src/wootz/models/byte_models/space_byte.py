"""SpaceByte (arXiv 2404.14408): large layers only where a word has just ended.

    bytes ─► local layers ─► at boundaries: up ─► global layers ─► down, added ─► local layers ─► head

What is hard to guess is how the next word begins, so that is where the large layers run; the rest of a word is spelled
by small ones. A boundary is the first byte of each run of "spacelike" ones: neither letter, nor digit, nor inside a
UTF-8 character. So text is cut into words without a vocabulary, and nothing that is not yet read is needed for it.

D is the local width, G the global one; N boundaries.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.sizes import check_sizes
from wootz.models.byte_models.stack import FIRST_BYTE, VOCAB_SIZE, ByteModel, Stack, embedding, lengths_of
from wootz.models.context import Context
from wootz.models.decoder import LayerConfig
from wootz.models.linear import Linear


@dataclass(frozen=True, kw_only=True)
class SpaceByteConfig:
    global_size: int
    local_size: int
    global_layers: tuple[LayerConfig, ...]
    local_layers: tuple[LayerConfig, ...]
    """Run before the global layers, and as many again after them. Give their attention a window."""
    vocab_size: int = VOCAB_SIZE
    first_byte: int = FIRST_BYTE
    """The id of byte 0; ids below it are boundaries too."""
    norm: NormConfig = field(default_factory=NormConfig)

    def __post_init__(self) -> None:
        check_sizes(self, "global_size", "local_size", "vocab_size")

    def build(self) -> SpaceByte:
        return SpaceByte(self)


class SpaceByte(ByteModel):
    def __init__(self, config: SpaceByteConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = embedding(config.vocab_size, config.local_size)
        self.before = Stack(config.local_layers, config.local_size, config.norm)
        self.up = Linear(config.local_size, config.global_size)
        self.global_stack = Stack(config.global_layers, config.global_size, config.norm)
        self.global_norm = config.norm.build(config.global_size)
        self.down = Linear(config.global_size, config.local_size)
        self.after = Stack(config.local_layers, config.local_size, config.norm)
        self.norm = config.norm.build(config.local_size)
        self.head = Linear(config.local_size, config.vocab_size)
        nn.init.normal_(self.up.weight, std=config.local_size**-0.5)
        # What comes down is as large as a byte's own embedding, which it would drown otherwise.
        nn.init.normal_(self.down.weight, std=(config.global_size * config.local_size) ** -0.5)

    def forward(self, token_ids_T: Tensor, positions_T: Tensor, context: Context) -> Tensor:
        """Hidden states ``(T, D)`` of whole texts."""
        lengths = lengths_of(context)
        is_boundary_T = boundaries(token_ids_T - self.config.first_byte, lengths)
        words = [int(document.sum()) for document in is_boundary_T.split(lengths)]
        x_TD = self.before(self.embedding(token_ids_T), lengths)
        known_NG = self.global_norm(self.global_stack(self.up(x_TD[is_boundary_T]), words))
        x_TD = x_TD.index_add(0, is_boundary_T.nonzero().squeeze(1), self.down(known_NG))
        return self.after(x_TD, lengths)


def boundaries(bytes_T: Tensor, lengths: list[int]) -> Tensor:
    """Boolean ``(T,)``: where large layers run, in texts end to end. Bytes are 0 to 255; below 0 are special tokens,
    which are boundaries wherever they stand. So is the start of each text."""
    is_digit = (bytes_T >= ord("0")) & (bytes_T <= ord("9"))
    is_letter = (bytes_T | 0x20 >= ord("a")) & (bytes_T | 0x20 <= ord("z"))
    continues_character = (bytes_T & 0xC0 == 0x80) & (bytes_T >= 0)
    is_spacelike = ~(is_digit | is_letter | continues_character)
    is_boundary = is_spacelike & ~is_spacelike.roll(1)
    starts = torch.tensor([0, *lengths], device=bytes_T.device).cumsum(0)[:-1]
    is_boundary[starts] = True
    return is_boundary | (bytes_T < 0)
