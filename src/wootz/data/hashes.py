"""64-bit hashes of texts, and which of very many of them came first: what exact deduplication needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wootz.core.errors import MissingExtraError

try:
    import xxhash
except ImportError:
    raise MissingExtraError("data", "train", "xxhash") from None

_AT_ONCE = 1 << 26


def hash_text(text: str) -> int:
    """Never 0, which stands for "not compared". Two different texts of a billion share one with probability 1/40."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) or 1


def first_occurrences(parts: Sequence[NDArray[np.uint64]], at_once: int = _AT_ONCE) -> list[NDArray[np.bool_]]:
    """Which numbers have not occurred before, in this part or an earlier one; a 0 is always new.

    Parts may be files mapped to memory: numbers are looked at in classes modulo m, so that about ``at_once`` of them
    are held together, 17 bytes each.
    """
    total = sum(len(part) for part in parts)
    classes = max(1, -(-total // at_once))
    first = [np.zeros(len(part), bool) for part in parts]
    for remainder in range(classes):
        chosen = [np.flatnonzero(part % np.uint64(classes) == remainder) for part in parts]
        numbers = np.concatenate([part[places] for part, places in zip(parts, chosen, strict=True)] or [_NONE])
        new = np.zeros(len(numbers), bool)
        new[np.unique(numbers, return_index=True)[1]] = True
        new |= numbers == 0
        place = 0
        for flags, places in zip(first, chosen, strict=True):
            flags[places] = new[place : place + len(places)]
            place += len(places)
    return first


_NONE = np.empty(0, np.uint64)
