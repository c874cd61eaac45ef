"""A run that dies is started again, from its last checkpoint: ``wootz run RECIPE --restarts N``.

Whatever ends one of its processes (a signal, a fault, the watchdog's exit code) ends all of them, and all begin again
after a pause, which doubles each time. Two things are not tried twice:

- the same step: a run that dies at one step twice in a row has a fault that stays, and is given up;
- the same rank: one that was lost twice in a row, or that computes something else than the others, does not come back.
  If the recipe allows it (``mesh.fewest``) the others go on without its device: checkpoints fit any number of ranks,
  and batches stay what they were.

On several machines torchrun starts processes again (``--max-restarts``, ``--nnodes 3:4``), and does the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from wootz.core.errors import UnavailableError
from wootz.training.runs import RunFolder

EXIT_CODE = 75
"""EX_TEMPFAIL, of a process that the watchdog ends: start it again."""
LONGEST_PAUSE = 300.0
Place = tuple[int, int]
"""Stages that are done, and steps that were made."""


class LostError(UnavailableError):
    """A process of the run ended before its time. ``blamed``: it was the first to fail, and did not only wait for
    another. ``fatal``: starting it again would not help."""

    def __init__(self, rank: int, how: str, *, blamed: bool = True, fatal: bool = False) -> None:
        super().__init__(
            f"process {rank} {how}, and the run was stopped",
            hint="what it said is above; the same command goes on from the last checkpoint",
        )
        self.rank, self.how, self.blamed, self.fatal = rank, how, blamed, fatal


def keep_running(
    start: Callable[[list[int], int], None],
    run: RunFolder,
    *,
    most: int,
    sizes: Sequence[int],
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """``start(devices, attempt)`` returns when the run is through, and raises `LostError`. ``sizes`` are the numbers of
    processes that the run may have, the most first. Raises the last `LostError`, or `UnavailableError` for a run that
    is given up."""
    devices = list(range(sizes[0]))
    last: tuple[int | None, Place] | None = None
    for attempt in range(most + 1):
        run.take_suspects()  # of a run before this one
        try:
            return start(devices, attempt)
        except LostError as error:
            if error.fatal or most == 0:
                raise
            lost, how, sure = _who(error, *run.take_suspects())
            place = place_of(run)
            how += f" at step {place[1]:,}" if place[1] else " before the first step"
            fewer = next((size for size in sizes if size < len(devices)), None)
            if fewer and lost is not None and (sure or (last and last[0] == lost)):
                devices = [device for number, device in enumerate(devices) if number != lost][:fewer]
                how += f", and does not come back: {fewer} of {sizes[0]} go on"
            elif last and last[1] == place:
                raise UnavailableError(
                    f"given up: {how}, where the run had ended before",
                    hint="what it said is above; its last checkpoint stands",
                ) from None
            if attempt == most:
                raise
            last, pause = (lost, place), min(2.0**attempt, LONGEST_PAUSE)
            line = f"{how}; starting again in {pause:g} s (restart {attempt + 1} of {most})"
            if (run.path / "recipe.json").exists():
                run.append("events", {"line": line})
            say(line)
            sleep(pause)


def _who(error: LostError, suspects: list[int], sure: bool) -> tuple[int | None, str, bool]:
    """The rank that was lost, if that is known; what to say; and whether it is sure not to come back. What a guard has
    seen counts for more than who ended first."""
    if suspects not in ([], [error.rank]):
        names = ", ".join(map(str, suspects))
        return suspects[0] if len(suspects) == 1 else None, f"process {names} was lost", sure and len(suspects) == 1
    how = f"process {error.rank} {error.how}"
    return error.rank if error.blamed or suspects else None, how, sure and bool(suspects)


def place_of(run: RunFolder) -> Place:
    rows = run.rows("metrics")
    return len(list(run.path.glob("stages/*.json"))), rows[-1]["step"] + 1 if rows else 0
