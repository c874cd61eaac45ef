"""A learned router: what it learned from preferences says how likely it is that only the dear model will do.

The score is a logistic regression over tf-idf weighted terms, a table look-up for each word of the prompt, or over the
prompt's embedding by a model of this gateway. `wootz router train` makes the table, `wootz router curve` shows what
each threshold buys.

Source: I. Ong et al., *RouteLLM*, 2024 (arXiv:2406.18665).
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wootz.core import ConfigError, LanguageModel, WootzError
from wootz.core.tool_wire import ModelRequest
from wootz.gateway.routing.candidate import Candidate, Policy, last_text
from wootz.gateway.routing.features import embedded, terms, tf_idf

PATIENCE = 2.0
"""Seconds that an embedder gets; a score is not worth a longer wait."""

Look = Callable[[ModelRequest], Awaitable[None]]
"""Writes a route's score on the request's journey; what has to be waited for can't be in a policy."""


@dataclass(frozen=True)
class Router:
    bias: float
    weights: Mapping[str, float]
    """Of each term."""
    idf: Mapping[str, float] = field(default_factory=dict)
    """Inverse document frequencies; none where an embedder makes the terms."""
    embedder: str | None = None
    """The model whose embeddings it was trained on."""

    def score(self, features: Mapping[str, float]) -> float:
        """Between 0, the cheap model does, and 1, it takes the dear one."""
        margin = self.bias + sum(value * self.weights.get(term, 0.0) for term, value in features.items())
        return 0.5 * (1 + math.tanh(margin / 2))  # The logistic function, in the form that can't overflow.

    def score_text(self, prompt: str) -> float:
        """Without an embedder."""
        return self.score(tf_idf(terms(prompt), self.idf))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), ensure_ascii=False))

    @classmethod
    def load(cls, path: Path) -> Router:
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            weights, idf = (
                {str(term): float(value) for term, value in content[name].items()} for name in ("weights", "idf")
            )
            return cls(float(content["bias"]), weights, idf, content["embedder"])
        except OSError as error:
            raise ConfigError(f"router {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"router {path}: not a file of `wootz router train`") from None


def learned(route: str, threshold: float) -> Policy:
    """Where there is no score, the dear one is asked: quality counts while nobody can tell."""

    def order(candidates: Sequence[Candidate], request: ModelRequest) -> list[Candidate]:
        cheap, dear = candidates
        hard = request.journey.scores.get(route, 1.0) >= threshold
        return [dear, cheap] if hard else [cheap, dear]

    return order


def look_of(route: str, path: Path, models: Mapping[str, LanguageModel]) -> Look:
    """Raises `ConfigError` for a file that is no router, or one whose embedder is not among the models."""
    router = Router.load(path)
    if router.embedder is not None and router.embedder not in models:
        raise ConfigError(f'router {path}: there is no model "{router.embedder}", whose embeddings it was trained on')

    async def look(request: ModelRequest) -> None:
        text, journey = last_text(request), request.journey
        if router.embedder is None:
            journey.scores[route] = router.score_text(text)
            return
        try:
            async with asyncio.timeout(PATIENCE):
                (features,) = await embedded(models[router.embedder], [text or " "], journey.bounds)
        except (WootzError, TimeoutError, ValueError) as error:
            why = str(error) or "it took too long"
            journey.notes.append(f"route {route}: no score, the embedder failed: {why}"[:300])
        else:
            journey.scores[route] = router.score(features)

    return look
