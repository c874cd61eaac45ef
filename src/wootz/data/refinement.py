"""`refine`: in the middle of a run, weigh sources anew by what is left to read of them.

A classifier that was retrained on what the run taught scores a sample of the rows that *would come next*. Sources whose
rows score well above the mixture's mean are read more from then on, by ``weight · exp(strength · (score - mean))``.
What was done stands in the log, and the new weights in the state of the batches, so that a resumed run has them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wootz.data.packing import PackedBatches, Row


@dataclass(frozen=True)
class Refinement:
    """One change of weights: when, why, and from what to what."""

    step: int
    scores: dict[str, float]
    before: dict[str, float]
    after: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def refine(
    batches: PackedBatches,
    scores: Callable[[Sequence[str]], NDArray[np.floating]],
    decode: Callable[[Sequence[int]], str],
    *,
    sample: int = 64,
    strength: float = 2.0,
) -> Refinement:
    """Score ``sample`` coming rows of each source (`QualityClassifier.scores`) and set the weights. No row is taken."""
    before, upcoming = batches.mixture.weights, batches.shares()
    found = {}
    for source in before:
        rows = [Row(source, upcoming[source].rows + number) for number in range(sample)]
        texts = [decode(batches.read(row)[0][:-1].tolist()) for row in rows]
        found[source] = float(np.mean(scores(texts)))
    mean = sum(before[source] * score for source, score in found.items())
    raised = {source: before[source] * math.exp(strength * (score - mean)) for source, score in found.items()}
    batches.mixture.set_weights({source: raised.get(source, 0.0) for source in batches.stores})
    return Refinement(batches.step, found, before, batches.mixture.weights)
