"""Time to first token against prompt length: first linear (every token through every weight), then quadratic (every
token looks at every other)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from wootz.evals.long_context.case import Case, Question, random_for
from wootz.evals.long_context.layout import lay_out
from wootz.evals.long_context.needle import fill
from wootz.evals.long_context.setup import Setup


def prefill_cases(setup: Setup, lengths: Sequence[int], samples: int) -> list[Case]:
    """Prompts of each length that begin differently, so that no prefix cache helps; one token is asked for. Run them
    one at a time, or they wait for each other."""

    def build(length: int, sample: int) -> Question:
        rng = random_for(setup.seed, "prefill", length, sample)
        haystack, tag = setup.haystack(rng), f"{rng.getrandbits(64):x}"

        def prompt(text: str) -> str:
            return lay_out(text, "Say OK.", instruction=tag)

        text = fill("prefill", haystack, [], [], prompt, setup.count, length - 1)
        return Question(prompt=prompt(text), expected=(), grade=lambda answer, expected: 1.0, max_tokens=1)

    return [
        Case(
            task="prefill",
            length=length,
            sample=sample,
            build=lambda length=length, sample=sample: build(length, sample),
        )
        for length in sorted(lengths)
        for sample in range(samples)
    ]


@dataclass(frozen=True)
class PrefillCurve:
    """``seconds ≈ linear * n + quadratic * n²``, the fit with the least relative error (None with fewer than two
    lengths). ``exponents`` are the slopes between neighbouring lengths in log-log: 1 is linear, 2 quadratic."""

    medians: Mapping[int, float]
    linear: float | None
    quadratic: float | None
    exponents: Sequence[float]

    @property
    def crossover(self) -> float | None:
        """The length at which the quadratic part takes as long as the linear one."""
        if not self.linear or not self.quadratic or self.linear < 0 or self.quadratic < 0:
            return None
        return self.linear / self.quadratic


def prefill_curve(points: Sequence[tuple[int, float]]) -> PrefillCurve:
    """From ``(prompt tokens, seconds to the first token)`` pairs."""
    by_length: dict[int, list[float]] = {}
    for tokens, seconds in points:
        by_length.setdefault(tokens, []).append(seconds)
    medians = {tokens: median(times) for tokens, times in sorted(by_length.items())}
    pairs = list(medians.items())
    exponents = [
        math.log(later / sooner) / math.log(more / fewer) for (fewer, sooner), (more, later) in pairwise(pairs)
    ]
    if len(pairs) < 2:
        return PrefillCurve(medians, None, None, exponents)
    # Least squares of (linear n + quadratic n²) / t = 1: two normal equations, by Cramer's rule.
    ones, twos = [n / t for n, t in pairs], [n * n / t for n, t in pairs]
    aa, ab, bb = _dot(ones, ones), _dot(ones, twos), _dot(twos, twos)
    a, b = sum(ones), sum(twos)
    determinant = aa * bb - ab * ab
    return PrefillCurve(medians, (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant, exponents)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))
