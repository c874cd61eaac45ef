"""What the first rank tells the others before each thing that all of them do. MessagePack, broadcast.

A pass is told by what it needs to be repeated elsewhere: tokens, positions, and each chunk's place in its sequence and
in the cache. Blocks that the pool had copied since the last pass are copied first.
"""

from __future__ import annotations

from typing import cast

import msgspec
import torch
import torch.distributed as dist

from wootz.engine.cache import BlockTable
from wootz.engine.scheduler import Chunk
from wootz.engine.sequence import Sequence

Copy = tuple[int, int]
"""Source and target."""


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Make a cache of this size."""

    num_blocks: int
    num_states: int
    max_model_len: int


class ChunkPlace(msgspec.Struct, frozen=True, array_like=True):
    start: int
    num_tokens: int
    blocks: list[int]
    state: int | None

    def chunk(self) -> Chunk:
        """As much of the scheduler's `Chunk` as attention asks for."""
        table = BlockTable(self.blocks, state=self.state)
        return Chunk(cast(Sequence, _OnlyATable(table)), self.start, self.num_tokens)


class Pass(msgspec.Struct, frozen=True, tag="pass"):
    """Run the model. ``micro_batches`` are the ends of ranges of rows."""

    token_ids: list[int]
    positions: list[int]
    chunks: list[ChunkPlace]
    micro_batches: list[int]
    copies: list[Copy]
    state_copies: list[Copy]


class Unembed(msgspec.Struct, frozen=True, tag="unembed"):
    """So many hidden states come by broadcast; take part in their logits."""

    num_rows: int


class Report(msgspec.Struct, frozen=True, tag="report"):
    """Say how long you have computed."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """The engine ends."""


Message = Open | Pass | Unembed | Report | Stop

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class _OnlyATable:
    def __init__(self, table: BlockTable) -> None:
        self.table = table


# One broadcast of a fixed size, of which the first bytes are the length; a second for the rest of a long message.
_HEAD, _AT_ONCE = 8, 8192


def tell(message: Message) -> None:
    """From the first rank to all others."""
    data = _encode(message)
    data = len(data).to_bytes(_HEAD, "little") + data
    dist.broadcast(_tensor(data[:_AT_ONCE].ljust(_AT_ONCE, b"\0")), 0)
    if len(data) > _AT_ONCE:
        dist.broadcast(_tensor(data[_AT_ONCE:]), 0)


def hear() -> Message:
    """The next message; waits for it as long as it takes."""
    first = torch.empty(_AT_ONCE, dtype=torch.uint8)
    dist.broadcast(first, 0)
    data = first.numpy().tobytes()
    end = _HEAD + int.from_bytes(data[:_HEAD], "little")
    if end > _AT_ONCE:
        rest = torch.empty(end - _AT_ONCE, dtype=torch.uint8)
        dist.broadcast(rest, 0)
        data += rest.numpy().tobytes()
    return _decode(data[_HEAD:end])


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
