"""Where a request's time goes, against a budget: per stage, and as percentiles over many requests.

A stage is a stretch that a layer wrote down (`Journey.span`: ``hold``, ``cache``, ``queue``, …) or one of these:

- ``gateway``: from the request's arrival to the first call of a model, waiting for a place left out: what we add
- ``upstream``: from the call that answered to its first token
- ``first_token``: until the caller saw something; ``between_tokens``: mean time from one token to the next
- ``total``: all of it

A request that never got so far has no such stage, and is not counted in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wootz.telemetry.record import RequestRecord

BUDGET = {"gateway": 0.005, "queue": 0.1, "first_token": 0.8, "between_tokens": 0.05}
"""Seconds. A chat that begins within 0.8 s feels instant; 20 tokens a second are faster than one reads."""

CLASSES = {"chat": 0.8, "voice": 0.3, "code-completion": 0.2, "agent": 30.0}
"""Seconds to the first token that people accept, by what they do meanwhile."""


def budget(milliseconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds for a stage: ours, and over them what ``telemetry.latency_budget`` says."""
    return BUDGET | {stage: value / 1000 for stage, value in milliseconds.items()}


def stages_of(record: RequestRecord) -> dict[str, float]:
    """Seconds by stage; a stage that came several times is summed."""
    stages: dict[str, float] = defaultdict(float)
    for span in record.timeline.spans:
        if span.end is not None:
            stages[span.name] += span.end - span.start
    if attempts := record.timeline.attempts:
        stages["gateway"] = max(0.0, attempts[0].start - (record.queue_time or 0.0))
        answer = next((one for one in reversed(attempts) if one.error_code is None), None)
        if answer is not None and answer.first_token is not None:
            stages["upstream"] = answer.first_token - answer.start
    if record.time_to_first_token is not None:
        stages["first_token"] = record.time_to_first_token
    if record.inter_token_latency is not None:
        stages["between_tokens"] = record.inter_token_latency
    stages["total"] = record.duration
    return dict(stages)


@dataclass(frozen=True)
class StageRow:
    stage: str
    count: int
    p50: float
    p95: float
    p99: float
    budget: float | None

    @property
    def over(self) -> bool:
        """Whether more than one request in twenty misses it."""
        return self.budget is not None and self.p95 > self.budget


def latency_report(records: Iterable[RequestRecord], budgets: Mapping[str, float]) -> list[StageRow]:
    """In the order in which stages first came."""
    times: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for stage, seconds in stages_of(record).items():
            times[stage].append(seconds)
    rows = []
    for stage, values in times.items():
        values.sort()
        p50, p95, p99 = (percentile(values, q) for q in (0.5, 0.95, 0.99))
        rows.append(StageRow(stage, len(values), p50, p95, p99, budgets.get(stage)))
    return rows


def percentile(ordered: Sequence[float], q: float) -> float:
    """Between the two nearest values, in proportion (as NumPy's default)."""
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def end_to_end(time_to_first_token: float, inter_token_latency: float, num_tokens: int) -> float:
    """T = TTFT + n x ITL: when an answer of so many tokens is there."""
    return time_to_first_token + num_tokens * inter_token_latency
