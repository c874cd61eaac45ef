"""Ranges of a step's rows: those of a rank, those of a micro-batch, and the chunks that lie in them."""

from __future__ import annotations

from wootz.engine.scheduler import Chunk

LEAST_MICRO_BATCH = 32
"""Tokens. Fewer would read a stage's weights once more for nothing: reading them takes longer than computing."""


def own_rows(num_rows: int, rank: int, num_ranks: int) -> slice:
    """An even part of the rows; the last ranks' are smaller, or empty, where they do not divide."""
    each = -(-num_rows // num_ranks)
    return slice(min(rank * each, num_rows), min((rank + 1) * each, num_rows))


def micro_batches(num_rows: int, num_stages: int) -> list[int]:
    """The ends of even ranges of rows: one range for each stage, but none that is too small to be worth it."""
    number = max(1, min(num_stages, num_rows // LEAST_MICRO_BATCH))
    return [num_rows * (index + 1) // number for index in range(number)]


def cut_chunks(chunks: list[Chunk], rows: slice) -> list[Chunk]:
    """What of the chunks lies in these rows; a chunk that reaches across an edge is cut there. The parts before the
    edge have to be computed before those behind it, or at the same time."""
    own, row = [], 0
    for chunk in chunks:
        start, end = max(row, rows.start), min(row + chunk.num_tokens, rows.stop)
        if start < end:
            own.append(Chunk(chunk.sequence, chunk.start + start - row, end - start))
        row += chunk.num_tokens
    return own
