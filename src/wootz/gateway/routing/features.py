"""A prompt as the terms that the learned router weighs: words and pairs of words, and how long and of what kind it is.

Shape counts as terms too (``#len:5``, ``#code``), so that a router is one table of weights and nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

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
