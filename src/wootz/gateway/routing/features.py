"""A prompt as the terms that the learned router weighs: words and pairs of words, and how long and of what kind it is.

Shape counts as terms too (``#len:5``, ``#code``), and so does each dimension of an embedding (``#0``, ``#1``, …), so
that a router is one table of weights and nothing else.
"""

from __future__ import annotations

import base64
import math
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from wootz.core import LanguageModel
from wootz.core.journey import ANYWHERE, Bounds
from wootz.core.wire import EmbeddingRequest

READ_CHARS = 4000
"""Of a prompt; more tells little about how hard it is, and everybody waits for it."""

_WORD = re.compile(r"[^\W\d_]+|\d+|[一-鿿]", re.UNICODE)
_CODE = re.compile(r"```|\bdef \w+\(|[{};]\s*$|</\w+>|\b(?:import|return|SELECT)\b", re.MULTILINE)


def terms(prompt: str) -> Counter[str]:
    """Each term with how often it occurs."""
    text = prompt[:READ_CHARS]
    words = ["#number" if word.isdecimal() else word.lower() for word in _WORD.findall(text)]
    found = Counter(words)
    found.update(f"{left} {right}" for left, right in pairwise(words))
    found[f"#len:{len(prompt).bit_length()}"] += 1
    if _CODE.search(text):
        found["#code"] += 1
    if (numbers := words.count("#number")) > 2:
        found[f"#numbers:{numbers.bit_length()}"] += 1
    return found


def tf_idf(counts: Mapping[str, int], idf: Mapping[str, float]) -> dict[str, float]:
    """Of length 1; terms that are not in ``idf`` are left out."""
    return unit({term: (1 + math.log(count)) * idf[term] for term, count in counts.items() if term in idf})


def unit(vector: Mapping[str, float]) -> dict[str, float]:
    norm = math.sqrt(sum(value * value for value in vector.values())) or 1.0
    return {term: value / norm for term, value in vector.items()}


async def embedded(embedder: LanguageModel, prompts: list[str], bounds: Bounds = ANYWHERE) -> list[dict[str, float]]:
    """Each prompt's vector, its dimensions as terms."""
    asked = EmbeddingRequest(model=embedder.name, input=[prompt[:READ_CHARS] for prompt in prompts])
    asked.journey.bounds = bounds
    answer = await embedder.embed(asked)
    vectors = [
        array("f", base64.b64decode(one.embedding)) if isinstance(one.embedding, str) else one.embedding
        for one in answer.data
    ]
    return [unit({f"#{place}": value for place, value in enumerate(vector)}) for vector in vectors]
