"""How large a model, on how much text: laws of the field, and fits of one's own runs.

    L(N, D) = E + A / N ** alpha + B / D ** beta          (arXiv 2203.15556)

From it follow, for a budget of C = 6 N D operations, the best N in closed form; and, if the model is going to be used
for D_inf tokens, the N that reaches a loss with the fewest operations in all, ``6 N D + 2 N D_inf`` (arXiv 2401.00448):
smaller, and trained for longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wootz.core.errors import BadRequestError, MissingExtraError


@dataclass(frozen=True)
class Law:
    """Loss in nats per token, for N parameters without embeddings and D tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def tokens_for(self, parameters: float, loss: float) -> float:
        """Tokens with which a model of this size reaches ``loss``; infinite where it never does."""
        left = loss - self.E - self.A / parameters**self.alpha
        return math.inf if left <= 0 else (self.B / left) ** (1 / self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens with the lowest loss for so many operations in training."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = ratio * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, flops / 6 / parameters

    def optimum_with_use(self, loss: float, used_tokens: float) -> tuple[float, float]:
        """Parameters and tokens that reach ``loss`` with the fewest operations in training and use together."""
        if loss <= self.E:
            raise BadRequestError(f"no model reaches a loss of {loss:g}: this law ends at {self.E:g}")

        def cost(log_n: float) -> float:
            parameters = math.exp(log_n)
            return 6 * parameters * self.tokens_for(parameters, loss) + 2 * parameters * used_tokens

        smallest = math.log(self.A / (loss - self.E)) / self.alpha  # at which it would take infinitely many tokens
        best = _golden_section(cost, smallest + 1e-6, smallest + 30)
        return math.exp(best), self.tokens_for(math.exp(best), loss)


CHINCHILLA = Law(1.69, 406.4, 410.7, 0.34, 0.28)
"""As published (approach 3). Its optimum is near 20 tokens for each parameter at 1e21 operations, and above later."""
EPOCH = Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
"""The same data, fitted again (arXiv 2404.10102): closer to what approaches 1 and 2 of the paper say."""
TOKENS_PER_PARAMETER = {"chinchilla": 20.0, "kaplan": 1.7}
"""Rules of thumb. Kaplan's is GPT-3's: 300B tokens for 175B parameters, after arXiv 2001.08361."""


def rule_of_thumb(flops: float, tokens_per_parameter: float) -> tuple[float, float]:
    """Parameters and tokens of a budget at a fixed ratio."""
    parameters = (flops / 6 / tokens_per_parameter) ** 0.5
    return parameters, parameters * tokens_per_parameter


@dataclass(frozen=True)
class Run:
    """One finished run: the final loss of ``parameters`` on ``tokens``."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Fit:
    law: Law
    low: Law
    """Of each figure by itself, the 10th percentile over resampled runs; ``high`` the 90th."""
    high: Law
    residual: float
    """Root mean square of log loss."""
    num_runs: int
    samples: tuple[Law, ...]

    def forecast(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """Loss, and the 10th and 90th percentile over resampled runs."""
        losses = np.array([law.loss(parameters, tokens) for law in self.samples] or [math.nan])
        low, high = np.percentile(losses, [10, 90])
        return self.law.loss(parameters, tokens), float(low), float(high)


def fit_law(runs: Sequence[Run], *, resamples: int = 50, seed: int = 0) -> Fit:
    """The published recipe: Huber loss (1e-3) between log losses, from a grid of starts; then resampled with
    replacement for error bars. Raises `BadRequestError` for runs that do not determine five figures."""
    if len(runs) < 6 or len({run.parameters for run in runs}) < 3 or len({run.tokens for run in runs}) < 3:
        raise BadRequestError(
            f"{len(runs)} runs do not determine a law of five figures",
            hint="six runs at least, of three sizes and three lengths",
        )
    data = np.array([(run.parameters, run.tokens, run.loss) for run in runs])
    if not (np.isfinite(data).all() and (data > 0).all()):
        raise BadRequestError("parameters, tokens and losses of runs must be positive numbers")
    best = _fit(data, _grid(data))
    generator = np.random.default_rng(seed)
    samples = []
    while len(samples) < resamples:
        chosen = data[generator.integers(len(data), size=len(data))]
        if len(np.unique(chosen[:, 0])) >= 3 and len(np.unique(chosen[:, 1])) >= 3:
            samples.append(_law(_fit(chosen, [best])))
    law = _law(best)
    spread = np.array([list(vars(sample).values()) for sample in samples or [law]])
    low, high = (_law_of(np.percentile(spread, at, axis=0)) for at in (10, 90))
    errors = np.log(data[:, 2]) - np.log([law.loss(n, d) for n, d, _ in data])
    return Fit(law, low, high, float(np.sqrt(np.mean(errors**2))), len(runs), tuple(samples))


MOST_STARTS = 6
"""Of the grid, those that fit best to begin with; the others end in the same valleys, or worse ones."""


def _grid(data: np.ndarray) -> list[np.ndarray]:
    """Starts as log E, log A, log B, alpha, beta. A and B make their terms as large as the losses are at the middle."""
    middle, least = np.exp(np.log(data).mean(0)), data[:, 2].min()
    starts = []
    for alpha in (0.2, 0.5, 0.8):
        for beta in (0.2, 0.5, 0.8):
            for share in (0.2, 0.6, 0.95):
                rest = math.log(max(middle[2] - share * least, 1e-3) / 2)
                logs = (rest + alpha * math.log(middle[0]), rest + beta * math.log(middle[1]))
                starts.append(np.array([math.log(share * least), *logs, alpha, beta]))
    return starts


def _fit(data: np.ndarray, starts: Sequence[np.ndarray]) -> np.ndarray:
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise MissingExtraError("training.planning", "train", "scipy") from None
    log_n, log_d, log_l = np.log(data).T
    delta = 1e-3

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        terms = np.stack((np.full_like(log_n, x[0]), x[1] - x[3] * log_n, x[2] - x[4] * log_d))
        top = terms.max(0)
        shares = np.exp(terms - top)
        total = shares.sum(0)
        error = top + np.log(total) - log_l
        shares /= total
        inside = np.abs(error) <= delta
        value = np.where(inside, error**2 / 2, delta * (np.abs(error) - delta / 2)).sum()
        slope = np.clip(error, -delta, delta)
        gradient = [shares[0], shares[1], shares[2], -shares[1] * log_n, -shares[2] * log_d]
        # Scaled up, for the optimiser's tolerances are absolute.
        return 1e6 * value, 1e6 * np.array([(slope * part).sum() for part in gradient])

    bounds = [(None, None)] * 3 + [(0.01, 3.0)] * 2
    found = [minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000})
             for start in sorted(starts, key=lambda start: objective(start)[0])[:MOST_STARTS]]  # fmt: skip
    return min(found, key=lambda result: result.fun).x


def _law(x: np.ndarray) -> Law:
    return _law_of(np.concatenate((np.exp(x[:3]), x[3:])))


def _law_of(figures: np.ndarray) -> Law:
    E, A, B, alpha, beta = map(float, figures)
    return Law(E, A, B, alpha, beta)


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is lowest."""
    golden = (5**0.5 - 1) / 2
    for _ in range(100):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if function(left) < function(right):
            high = right
        else:
            low = left
    return (low + high) / 2
