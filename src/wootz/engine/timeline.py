"""What each step's time goes to: schedule, prepare, forward, sample, detokenise.

    timeline = engine.watch()
    ...
    json.dump(timeline.chrome_trace(), file)     # for chrome://tracing or https://ui.perfetto.dev

A step is cut into phases by marks, each of which ends a phase that began at the mark before. On a GPU a mark waits for
what was launched, else the time of a forward pass would be charged to whoever looks at its result; so a step
that is watched is a little slower than one that is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

PHASES = ("schedule", "prepare", "forward", "sample", "detokenise")


class Unwatched:
    """The timeline of an engine that nobody watches."""

    def begin(self, step: int) -> None: ...
    def mark(self, phase: str) -> None: ...
    def end(self, **counts: int) -> None: ...


@dataclass(frozen=True)
class Span:
    """Seconds since the timeline began."""

    step: int
    phase: str
    start: float
    end: float


@dataclass(frozen=True)
class PhaseSummary:
    """``share`` is of all steps' time; times in seconds."""

    phase: str
    total: float
    share: float
    per_step: float
    longest: float


class Timeline(Unwatched):
    def __init__(self, device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._synchronize = torch.cuda.synchronize if device is not None and device.type == "cuda" else None
        self._clock, self._began = clock, clock()
        self.spans: list[Span] = []
        self.counts: list[tuple[float, dict[str, int]]] = []
        """At the end of each step, what the engine counts of it."""
        self._step, self._last = 0, 0.0

    def begin(self, step: int) -> None:
        self._step, self._last = step, self._now()

    def mark(self, phase: str) -> None:
        """The phase that began at the last mark ends here."""
        if self._synchronize is not None:
            self._synchronize()
        now = self._now()
        self.spans.append(Span(self._step, phase, self._last, now))
        self._last = now

    def end(self, **counts: int) -> None:
        self.counts.append((self._last, counts))

    def summary(self) -> list[PhaseSummary]:
        """Phase by phase, in the order of a step."""
        num_steps = len({span.step for span in self.spans})
        whole = sum(span.end - span.start for span in self.spans)
        rows = []
        for phase in PHASES:
            spent: dict[int, float] = {}
            for span in self.spans:
                if span.phase == phase:
                    spent[span.step] = spent.get(span.step, 0.0) + span.end - span.start
            if spent:
                total = sum(spent.values())
                rows.append(PhaseSummary(phase, total, total / whole, total / num_steps, max(spent.values())))
        return rows

    def chrome_trace(self) -> dict[str, Any]:
        """Trace Event Format: a span per phase, and the counts as curves below them; microseconds."""
        spans: Sequence[dict[str, Any]] = [
            {
                "name": span.phase,
                "ph": "X",
                "ts": 1e6 * span.start,
                "dur": 1e6 * (span.end - span.start),
                "pid": 1,
                "tid": 1,
                "args": {"step": span.step},
            }
            for span in self.spans
        ]
        curves = [
            {"name": name, "ph": "C", "ts": 1e6 * at, "pid": 1, "args": {name: value}}
            for at, counts in self.counts
            for name, value in counts.items()
        ]
        return {"traceEvents": [*spans, *curves], "displayTimeUnit": "ms"}

    def _now(self) -> float:
        return self._clock() - self._began
