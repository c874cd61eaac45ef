"""Answers that are given again: exactly the same request, equal requests under way, questions of the same meaning."""

from wootz.gateway.caches.caches import Caches
from wootz.gateway.caches.store import MemoryStore, Store

__all__ = ["Caches", "MemoryStore", "Store"]
