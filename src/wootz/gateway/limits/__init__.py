"""Limits and budgets: held before a request is answered, settled after it. `docs/limits.md` says what is promised."""

from wootz.gateway.limits.memory import MemoryCounters
from wootz.gateway.limits.meters import Counters, CountersUnavailable, Meter, Use, Verdict
from wootz.gateway.limits.redis import RedisCounters
from wootz.gateway.limits.rules import NO_LIMITS, Limits, Subject

__all__ = [
    "NO_LIMITS",
    "Counters",
    "CountersUnavailable",
    "Limits",
    "MemoryCounters",
    "Meter",
    "RedisCounters",
    "Subject",
    "Use",
    "Verdict",
]
