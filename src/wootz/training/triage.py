"""What ails a run, from its logged figures, and what to try in which order.

Symptoms are read off the record (loss, gradient norm, learning rate, update ratio, held-out loss); for each there is a
list of remedies, the cheapest and likeliest first. Most are the learning rate's fault, and changing it alone is the
commonest mistake: `advice.co_changes` says what goes with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

from wootz.core.errors import ConfigError, NotFoundError
from wootz.training.monitors import HEALTHY_RATIO, SpikeDetector

Record = dict[str, Any]
"""One step: ``step``, ``loss``; ``grad_norm``, ``learning_rate``, ``update_ratio`` and ``eval_loss`` where logged."""

REMEDIES = {
    "diverged": (
        "divide the learning rate by 10",
        "lengthen the warmup (from none: to 5 % of the run)",
        "clip gradients to norm 1.0",
        "with fp16: scale the loss, unscale before clipping; or use bf16",
        "raise weight decay",
    ),
    "spikes": (
        "clip gradients to norm 1.0, or lower",
        "lower the peak learning rate by 30 %",
        "lengthen the warmup",
        "lower beta2 (0.999 to 0.95): a stale second moment lets rare large gradients through",
        "look at the batches of those steps",
    ),
    "oscillates": (
        "lower the learning rate by 10 to 30 %",
        "lower momentum (0.9 to 0.85)",
        "clip gradients to norm 1.0",
        "look at normalisation: SGD with batch norm is fragile",
    ),
    "slow": (
        "check the data first: shuffled, labels aligned, not repeated",
        "run a range test (wootz lr find) and raise the learning rate",
        "lengthen the stable phase of the schedule",
        "use a larger batch or accumulate gradients",
    ),
    "overfits": (
        "more data, or fewer passes over it",
        "raise weight decay",
        "lower the learning rate",
        "dropout, label smoothing, augmentation",
        "stop early (patience of 5 to 10 evaluations)",
    ),
}


@dataclass(frozen=True)
class Finding:
    symptom: str
    evidence: str
    """What in the record shows it, with its figures."""
    remedies: tuple[str, ...]


def read_metrics(path: Path) -> list[Record]:
    """The records of a run's folder (``metrics.jsonl``) or of such a file."""
    file = path / "metrics.jsonl" if path.is_dir() else path
    try:
        lines = file.read_text().splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
    except OSError:
        raise NotFoundError(f"{file}: no metrics there", hint="give a run's folder") from None
    except ValueError as error:
        raise ConfigError(f"{file}: not a record of metrics ({error})") from None
    if not all(isinstance(record, dict) for record in records):
        raise ConfigError(f"{file}: not a record of metrics")
    return records


def diagnose(records: Sequence[Record]) -> list[Finding]:
    """Every symptom that the record shows, the gravest first; an empty list is a clean bill of health."""
    steps = [record for record in records if isinstance(record.get("loss"), int | float | None) and "loss" in record]
    if len(steps) < 20:
        raise ConfigError(f"{len(steps)} steps are too few to tell anything", hint="20 at least")
    found = [test(steps) for test in (_diverged, _spikes, _oscillates, _slow)]
    found.append(_overfits(records))
    return [Finding(symptom, evidence, REMEDIES[symptom]) for symptom, evidence in filter(None, found)]


_Symptom = tuple[str, str] | None


def _diverged(steps: Sequence[Record]) -> _Symptom:
    for record in steps:
        for name in ("loss", "grad_norm"):
            value = record.get(name, 0.0)
            if value is None or not math.isfinite(value):
                return "diverged", f"{name} is {value} at step {record.get('step')}{_rate_of(record)}"
    losses = _losses(steps)
    lowest, end = min(losses), median(losses[-10:])
    start = median(losses[:5])
    if end > start + 0.05 * abs(start) or end > 1.5 * lowest + 0.5 * (start - lowest):
        return "diverged", f"the loss ends at {end:.3g}; it began at {start:.3g} and was {lowest:.3g} at its best"
    return None


def _spikes(steps: Sequence[Record]) -> _Symptom:
    for name, threshold, smallest in (("grad_norm", 6.0, 0.1), ("loss", 8.0, 0.03)):
        is_spike = SpikeDetector(threshold=threshold, smallest_deviation=smallest)
        finite = [record for record in steps if record.get(name) is not None and math.isfinite(record[name])]
        spikes = [record for record in finite if is_spike(record[name])]
        if spikes:
            worst = max(spikes, key=lambda record: record[name])
            largest = f"the largest {worst[name]:.3g} at step {worst.get('step')}{_rate_of(worst)}"
            return "spikes", f"{len(spikes)} of {name}, {largest}"
    return None


def _oscillates(steps: Sequence[Record]) -> _Symptom:
    """The later half goes up and down by more than it has fallen, or weights move by too much at a time."""
    losses = _losses(steps)
    later = [value for value in losses[len(losses) // 2 :] if math.isfinite(value)]
    half = len(later) // 2
    if half < 2:
        return None
    fall, spread = fmean(later[:half]) - fmean(later[half:]), pstdev(later)
    turns = [right - left for left, right in pairwise(later)]
    alternating = sum(one * other < 0 for one, other in pairwise(turns)) / max(1, len(turns) - 1)
    if spread > 0.25 * abs(fmean(later)) and spread > 2 * abs(fall) and alternating > 0.6:
        return "oscillates", f"the later half varies by {spread:.3g} around {fmean(later):.3g} and falls by {fall:.3g}"
    ratios = [record["update_ratio"] for record in steps if record.get("update_ratio") is not None]
    if ratios and median(ratios) > HEALTHY_RATIO[1]:
        return "oscillates", f"updates are {median(ratios):.1e} of the weights; above {HEALTHY_RATIO[1]:g} is unstable"
    return None


def _slow(steps: Sequence[Record]) -> _Symptom:
    ratios = [record["update_ratio"] for record in steps if record.get("update_ratio") is not None]
    if ratios and median(ratios) < HEALTHY_RATIO[0]:
        return (
            "slow",
            f"updates are {median(ratios):.1e} of the weights; below {HEALTHY_RATIO[0]:g} hardly anything moves",
        )
    losses = [value for value in _losses(steps) if math.isfinite(value)]
    if len(losses) < len(steps):
        return None
    start, end = median(losses[:5]), median(losses[-10:])
    if 0 <= start - end < 0.02 * abs(start):
        return "slow", f"the loss went from {start:.4g} to {end:.4g} in {len(losses)} steps"
    return None


def _overfits(records: Sequence[Record]) -> _Symptom:
    held_out = [record["eval_loss"] for record in records if record.get("eval_loss") is not None]
    if len(held_out) < 3:
        return None
    best = min(range(len(held_out)), key=held_out.__getitem__)
    losses = _losses([record for record in records if record.get("loss") is not None])
    still_falling = median(losses[-10:]) < median(losses[: max(5, len(losses) // 4)])
    if best < len(held_out) - 2 and held_out[-1] > 1.02 * held_out[best] and still_falling:
        return (
            "overfits",
            f"held-out loss was {held_out[best]:.3g} and is {held_out[-1]:.3g}, while training loss falls",
        )
    return None


def _losses(steps: Sequence[Record]) -> list[float]:
    return [math.inf if record["loss"] is None else record["loss"] for record in steps]


def _rate_of(record: Record) -> str:
    rate = record.get("learning_rate")
    return f" (learning rate {rate:.2e})" if rate is not None else ""
