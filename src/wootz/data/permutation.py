"""A shuffle that needs no memory: any place of a random order of ``n`` things, computed when it is asked for.

A Feistel network is a bijection of the numbers below a power of four, whatever its rounds mix in; a number that it
throws outside of ``range(n)`` is put in again until it lands inside (cycle walking, Black and Rogaway 2002). So a
billion rows are shuffled differently in every epoch, and row 700,000,000 is found without the others.
"""

from __future__ import annotations

import hashlib

_ROUNDS = 6
_MASK = (1 << 64) - 1


def permuted(place: int, num_things: int, key: int) -> int:
    """What stands at ``place`` when ``range(num_things)`` is shuffled by ``key`` (64 bits)."""
    half = max(1, ((num_things - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = place >> half, place & low
        for round in range(_ROUNDS):
            left, right = right, left ^ (_mix(right + (round << 40) ^ key) & low)
        place = left << half | right
        if place < num_things:
            return place


def key_of(*parts: int | str) -> int:
    """64 bits that depend on all the parts, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def _mix(number: int) -> int:
    """SplitMix64's finaliser."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & _MASK
    return number ^ number >> 31
