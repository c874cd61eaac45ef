"""What counting can do: n-gram models of the same tokens, by interpolated Kneser-Ney, to read a model's loss against.

The probability of a word after a history of n - 1 words is its discounted count, and what was discounted goes to the
shorter history, whose counts are not of occurrences but of how many different words came before (Kneser & Ney 1995;
Chen & Goodman 1999). The unigram model is n = 1. Everything is arrays: an n-gram gets a number, which is the pair of
its beginning's number and its last word, looked up among the pairs that were seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Order:
    """All n-grams of one length. ``totals`` and ``kinds`` are of the history, by its number."""

    pairs: Ints
    """``history number * V + word``, sorted: an n-gram's number is its place here."""
    counts: Floats
    totals: Floats
    kinds: Floats
    discount: float


class NGrams:
    def __init__(self, tokens_N: Ints, vocab_size: int, order: int = 5) -> None:
        self.vocab_size = vocab_size
        numbers, orders, tails = tokens_N.astype(np.int64), [], []
        unigrams = np.bincount(tokens_N, minlength=vocab_size).astype(np.float64)
        for _ in range(2, order + 1):
            codes = numbers[:-1] * vocab_size + tokens_N[-len(numbers) + 1 :]
            pairs, first, longer = np.unique(codes, return_index=True, return_inverse=True)
            tails.append(numbers[1:][first])  # the n-gram without its first word, by number
            orders.append((pairs, np.bincount(longer).astype(np.float64)))
            numbers = longer.astype(np.int64)
        # Below the longest, an n-gram counts once for each word that was seen before it.
        counts = [unigrams, *(counted for _, counted in orders)]
        sizes = [vocab_size, *(len(pairs) for pairs, _ in orders)]
        for n in range(order - 1):
            counts[n] = np.bincount(tails[n], minlength=sizes[n]).astype(np.float64)
        self.unigram_N = (counts[0] + 1) / (counts[0].sum() + vocab_size)
        self.orders = [_order(pairs, counts[n + 1], sizes[n], vocab_size) for n, (pairs, _) in enumerate(orders)]

    def nats(self, tokens_N: Ints) -> Floats:
        """``-log p`` of every token, given those before it."""
        tokens_N = tokens_N.astype(np.int64)
        probability = self.unigram_N[tokens_N]
        histories = np.concatenate(([-1], tokens_N[:-1]))  # by number, of growing length; -1: never seen
        numbers = tokens_N
        for order in self.orders:
            known = histories >= 0
            codes = np.where(known, histories * self.vocab_size + tokens_N, -1)
            place = np.minimum(np.searchsorted(order.pairs, codes), len(order.pairs) - 1)
            seen = known & (order.pairs[place] == codes)
            history = np.where(known, histories, 0)
            total = order.totals[history]
            known &= total > 0
            share = np.maximum(np.where(seen, order.counts[place], 0) - order.discount, 0)
            mixed = (share + order.discount * order.kinds[history] * probability) / np.maximum(total, 1e-9)
            probability = np.where(known, mixed, probability)
            numbers = np.where(seen, place, -1)
            histories = np.concatenate(([-1], numbers[:-1]))
        return -np.log(probability)


def _order(pairs: Ints, counts: Floats, num_histories: int, vocab_size: int) -> _Order:
    history = pairs // vocab_size
    once, twice = np.sum(counts == 1), np.sum(counts == 2)
    discount = float(once / max(once + 2 * twice, 1)) or 0.5
    totals = np.bincount(history, weights=counts, minlength=num_histories)
    kinds = np.bincount(history, weights=counts > 0, minlength=num_histories)
    return _Order(pairs, counts, totals, kinds, discount)
