"""Decoding steps as CUDA graphs: what is launched is recorded once, and then replayed with one call.

A decoding step of a small batch is over in less time than Python takes to start its kernels. A graph replays them with
the same shapes and the same addresses. So it is captured for a number of sequences and a longest text, and a step fills
the tensors that it reads (`Inputs`) before it is replayed: smaller batches are padded to the next of `SIZES`, texts to
the next power of two times `SPLIT`. Graphs are captured when they are first needed, and share their memory.

Padding repeats the batch's first sequence. It computes the same key and value again and puts them where they are
already; no place has to be kept free for it, and no kernel knows of it.

Only models whose layers all run on our kernels (`layers`) are captured: those look at the device's tensors alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from wootz.engine.gpu.paged import DecodeStep
from wootz.models.context import Context

if TYPE_CHECKING:
    from wootz.engine.attention import PagedCache
    from wootz.engine.scheduler import Chunk
    from wootz.models import Decoder

SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
"""Sequences that there are graphs for. Larger batches take long enough not to need them."""

logger = logging.getLogger(__name__)

Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], Any], Tensor]]
"""Records what a function launches. Returns what launches it again, and the tensor in which its result will be."""


class DecodeGraphs:
    def __init__(self, model: Decoder, cache: PagedCache, capture: Capture | None = None) -> None:
        self.model, self.cache = model, cache
        self.capture = capture or (CudaCapture() if model.device.type == "cuda" else None)
        self._graphs: dict[tuple[int, int], tuple[Inputs, Callable[[], Any], Tensor]] = {}

    def run(self, chunks: list[Chunk]) -> Tensor | None:
        """Logits of each chunk's token ``(B, V)``, valid until the next step; None for a step that no graph is for."""
        if self.capture is None or len(chunks) > SIZES[-1]:
            return None
        if not all(_is_decode(chunk) for chunk in chunks):
            return None
        key = padded_size(len(chunks)), padded_length(max(chunk.end for chunk in chunks))
        if key not in self._graphs and not self._add(key, chunks):
            return None
        inputs, replay, logits_BV = self._graphs[key]
        inputs.fill(chunks)
        replay()
        return logits_BV[: len(chunks)]

    def _add(self, key: tuple[int, int], chunks: list[Chunk]) -> bool:
        """Capture a graph. Its first runs write what this step of ``chunks`` writes, and do no harm."""
        assert self.capture is not None
        inputs = Inputs(*key, self.cache.block_size, self.cache.device)
        inputs.fill(chunks)
        try:
            self._graphs[key] = inputs, *self.capture(lambda: inputs.logits(self.model))
        except RuntimeError as error:
            logger.warning("decoding goes on without CUDA graphs: %s", error)
            self.capture = None
            self._graphs.clear()
        return key in self._graphs


def _is_decode(chunk: Chunk) -> bool:
    """Whether it is one token that chooses the next, and nobody wants more of it than that."""
    request = chunk.sequence.request
    return chunk.num_rows == 1 and chunk.samples and request.adapter is None and request.prompt_scores is None


@dataclass(frozen=True)
class DecodeContext:
    """A `Context` of one token of each sequence, as far as `GpuLayers` asks."""

    slots_T: Tensor
    paged: DecodeStep
    remembers = True


class Inputs:
    """All that a step of B sequences, none beyond ``longest`` tokens, reads beside weights and cache."""

    def __init__(self, size: int, longest: int, block_size: int, device: torch.device) -> None:
        self.size, self.longest, self.block_size = size, longest, block_size
        self.numbers_3B = torch.zeros(3, size, dtype=torch.int64, device=device)
        """Token, position, slot."""
        self.tables_BN = torch.zeros(size, -(-longest // block_size), dtype=torch.int32, device=device)

    def fill(self, chunks: list[Chunk]) -> None:
        """With this step's tokens, and its first one again for each row that is left."""
        padded = [*chunks, *chunks[:1] * (self.size - len(chunks))]
        places, blocks = [chunk.start for chunk in padded], [chunk.sequence.table.blocks for chunk in padded]
        tokens = [chunk.sequence.token_ids[chunk.start] for chunk in padded]
        size = self.block_size
        slots = [own[place // size] * size + place % size for own, place in zip(blocks, places, strict=True)]
        self.numbers_3B.copy_(torch.tensor([tokens, places, slots]))
        widest = max(places) // size + 1
        rows = [(own + [0] * widest)[:widest] for own in blocks]
        self.tables_BN[:, :widest].copy_(torch.tensor(rows, dtype=torch.int32))

    def logits(self, model: Decoder) -> Tensor:
        """What is captured. Everything in it comes from the tensors above, by way of the device."""
        tokens_B, places_B, slots_B = self.numbers_3B
        step = DecodeStep(self.tables_BN, (places_B + 1).int(), self.longest)
        return model.unembed(model(tokens_B, places_B, cast(Context, DecodeContext(slots_B, step))))


class CudaCapture:
    """All graphs in one memory pool: only one of them runs at a time."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, launch: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(2):  # kernels are compiled and workspaces allocated, which cannot be captured
                launch()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            logits_BV = launch()
        self.pool = graph.pool()
        return graph.replay, logits_BV


def padded_size(number: int) -> int:
    """The least of `SIZES` with room for so many sequences."""
    return next(size for size in SIZES if size >= number)


def padded_length(longest: int) -> int:
    """The least power of two times the length of a decoding program's run that is not shorter."""
    from wootz.kernels.triton.attention import SPLIT

    return SPLIT << max(0, -(-longest // SPLIT) - 1).bit_length()
