"""What watches a run so that nobody has to: each guard is a `Callback` of its own and says what it saw in one line."""

from __future__ import annotations

from wootz.training.checkpoints import Checkpoints
from wootz.training.runs import RunFolder
from wootz.training.trainer import Callback


def guards_of(run: RunFolder, checkpoints: Checkpoints, *, vocab_size: int) -> list[Callback]:
    """Those that a run has unless it is told otherwise."""
    return []
