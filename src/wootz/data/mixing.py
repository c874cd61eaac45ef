"""Rules that find the weights of a mixture from losses, each a few lines of arithmetic.

`DoReMi` (Xie et al., arXiv 2305.10429): a small *proxy* is trained on what it is worse at than a small *reference*.
A source where the proxy's loss exceeds the reference's still has something to teach; one where both are as bad is
noise, one where both are as good is learned. Weights are multiplied by ``exp(eta · excess)`` at each step, and the
result is their mean over all steps, for the large model.

`OnlineMixing` (Albalak et al., arXiv 2312.02406): no proxies; the run itself is a bandit whose reward for reading a
source is the loss on it. It explores less and less, and can't tell what is hard from what is noise.

Both are used by `wootz.training.mixing`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Weights = dict[str, float]


class DoReMi:
    """``smoothing`` keeps every source's weight above ``smoothing / number of sources``."""

    def __init__(self, prior: Mapping[str, float], *, eta: float = 1.0, smoothing: float = 1e-3) -> None:
        self.eta, self.smoothing = eta, smoothing
        self.weights = _normalised(prior)
        self._sum = dict.fromkeys(prior, 0.0)
        self._num_steps = 0

    def update(self, excess: Mapping[str, float]) -> Weights:
        """The next weights, after one step with these excess losses in nats per token: per token the proxy's loss less
        the reference's, 0 at least, and the mean of it for each source. A source that was not read stays away."""
        raised = {
            name: weight * math.exp(self.eta * max(0.0, excess.get(name, 0.0))) for name, weight in self.weights.items()
        }
        uniform = 1 / len(raised)
        self.weights = {
            name: (1 - self.smoothing) * weight + self.smoothing * uniform
            for name, weight in _normalised(raised).items()
        }
        self._num_steps += 1
        for name, weight in self.weights.items():
            self._sum[name] += weight
        return dict(self.weights)

    @property
    def mean(self) -> Weights:
        """What a large model is to be trained with."""
        return {name: total / self._num_steps for name, total in self._sum.items()} if self._num_steps else self.weights


class OnlineMixing:
    """``memory`` is how much of a source's past reward counts. Its state resumes with the run."""

    def __init__(self, sources: Mapping[str, float], *, memory: float = 0.9) -> None:
        self.memory = memory
        self.weights = _normalised(sources)
        self._rewards = dict.fromkeys(sources, 0.0)
        self._num_steps = 0

    def update(self, losses: Mapping[str, float]) -> Weights:
        """The next weights, after a step that had these losses, in nats per token, on the sources it read."""
        for name, loss in losses.items():
            self._rewards[name] = self.memory * self._rewards[name] + (1 - self.memory) * loss / self.weights[name]
        rate = self._exploration(self._num_steps)
        self._num_steps += 1
        explored = self._exploration(self._num_steps)
        most = max(self._rewards.values())
        liked = _normalised({name: math.exp(rate * (reward - most)) for name, reward in self._rewards.items()})
        self.weights = {name: (1 - len(liked) * explored) * share + explored for name, share in liked.items()}
        return dict(self.weights)

    def _exploration(self, step: int) -> float:
        num = len(self._rewards)
        return min(1 / num, math.sqrt(math.log(num) / (num * step))) if step else 1 / num

    def state_dict(self) -> dict[str, Any]:
        return {"weights": dict(self.weights), "rewards": dict(self._rewards), "num_steps": self._num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights, self._rewards = dict(state["weights"]), dict(state["rewards"])
        self._num_steps = state["num_steps"]


def _normalised(weights: Mapping[str, float]) -> Weights:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
