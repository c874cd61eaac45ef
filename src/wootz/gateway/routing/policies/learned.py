"""A learned router: what it learned from preferences says how likely it is that only the dear model will do.

The score is a logistic regression over tf-idf weighted terms: a table look-up for each term of the prompt, well under
a millisecond. `wootz router train` makes the table, `wootz router curve` shows what each threshold buys.

Source: I. Ong et al., *RouteLLM*, 2024 (arXiv:2406.18665), with a classifier of terms in place of its embeddings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wootz.core import ConfigError
from wootz.core.tool_wire import ModelRequest
from wootz.gateway.routing.candidate import Candidate, Policy, last_text
from wootz.gateway.routing.features import terms


@dataclass(frozen=True)
class Router:
    """``terms`` maps each to its inverse document frequency and its weight."""

    bias: float
    terms: Mapping[str, tuple[float, float]]

    def score(self, prompt: str) -> float:
        """Between 0, the cheap model does, and 1, it takes the dear one."""
        product = squares = 0.0
        for term, count in terms(prompt).items():
            if known := self.terms.get(term):
                value = (1 + math.log(count)) * known[0]
                squares += value * value
                product += value * known[1]
        margin = self.bias + (product / math.sqrt(squares) if squares else 0.0)
        return 0.5 * (1 + math.tanh(margin / 2))  # The logistic function, in the form that can't overflow.

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"bias": self.bias, "terms": self.terms}, ensure_ascii=False))

    @classmethod
    def load(cls, path: Path) -> Router:
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            known = {str(term): (float(idf), float(weight)) for term, (idf, weight) in content["terms"].items()}
            return cls(float(content["bias"]), known)
        except OSError as error:
            raise ConfigError(f"router {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"router {path}: not a file of `wootz router train`") from None


def learned(path: Path, threshold: float) -> Policy:
    """Raises `ConfigError` for a file that is no router."""
    router = Router.load(path)

    def order(candidates: Sequence[Candidate], request: ModelRequest) -> list[Candidate]:
        cheap, dear = candidates
        hard = router.score(last_text(request)) >= threshold
        return [dear, cheap] if hard else [cheap, dear]

    return order
