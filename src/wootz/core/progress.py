"""Progress on long work: a Rich bar on a terminal, nothing where nobody looks.

Rooms report progress through a `Progress` callback-like object and never import Rich themselves, so a
library user, a test and the CLI all call the same code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress


class Progress:
    """Progress of one piece of work: `advance(amount)` as it gets done; `total` may be learnt late."""

    def __init__(self, bars: RichProgress | None = None, task: TaskID | None = None) -> None:
        self._bars, self._task = bars, task

    def advance(self, amount: float = 1) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, amount)

    def set_total(self, total: float | None, done: float = 0) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, total=total, completed=done)


SILENT = Progress()
"""Reports to nobody; the default of every function that takes a `Progress`."""


@contextmanager
def progress_bar(label: str, total: float | None = None, *, unit: str = "", quiet: bool = False) -> Iterator[Progress]:
    """A bar on stderr while the block runs. ``unit="bytes"`` shows sizes and speed instead of counts."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield SILENT
        return
    amounts = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    columns = [TextColumn("[bold]{task.description}"), BarColumn(), *amounts, TimeRemainingColumn()]
    with RichProgress(*columns, console=console, transient=True) as bars:
        yield Progress(bars, bars.add_task(label, total=total))
