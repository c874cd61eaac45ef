"""Which of several replicas a prompt goes to: the one that most likely still has its beginning in its cache.

A prompt is cut into blocks, and what is remembered is which replica was last given which leading blocks: an index of
prefixes like the engine's own (`wootz.engine.cache`), but of names instead of keys and values, and bounded, least
recently used first. It can be wrong, as a replica may have evicted what we remember; then a prompt is computed that
might have been found elsewhere, and that is all.

Affinity alone would send a popular system prompt, and so everybody, to one replica. So it holds only as long as that
replica has at most ``most_extra`` more requests under way than the idlest. (SGLang's router has such a bound, too.)
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

BLOCK = 64
"""Characters (or tokens) of a prompt that are looked up together."""


class PrefixRouting:
    """Says where to, and is told what was sent and what is done. Replicas are known by name.

    A prompt is text or token ids; only prompts of one kind can share.
    """

    def __init__(self, *, block: int = BLOCK, most_extra: int = 8, most_prefixes: int = 200_000) -> None:
        self.block, self.most_extra, self.most_prefixes = block, most_extra, most_prefixes
        self.under_way: Counter[Hashable] = Counter()
        self._given: OrderedDict[int, Hashable] = OrderedDict()
        """Leading blocks (by a hash of all of them) to the replica that was last given them."""
        self._sent: Counter[Hashable] = Counter()

    def choose(self, prompt: Sequence[Any], replicas: Iterable[Hashable]) -> Hashable:
        """One of ``replicas``, of which there is at least one."""
        there = list(replicas)
        idlest = min(there, key=lambda replica: (self.under_way[replica], self._sent[replica]))
        holder = self.holder(prompt, there)
        if holder is None or self.under_way[holder] - self.under_way[idlest] > self.most_extra:
            return idlest
        return holder

    def holder(self, prompt: Sequence[Any], replicas: Iterable[Hashable]) -> Hashable | None:
        """Which of these replicas was last given the longest beginning of the prompt."""
        there, found = set(replicas), None
        for prefix in self._prefixes(prompt):
            if prefix not in self._given:
                break
            if self._given[prefix] in there:
                found = self._given[prefix]
        return found

    def sent(self, prompt: Sequence[Any], replica: Hashable) -> None:
        """The replica was given the prompt, and will soon have all of it."""
        self.under_way[replica] += 1
        self._sent[replica] += 1
        for prefix in reversed(list(self._prefixes(prompt))):  # the head is used last, so that it is forgotten last
            self._given[prefix] = replica
            self._given.move_to_end(prefix)
        while len(self._given) > self.most_prefixes:
            self._given.popitem(last=False)

    def done(self, replica: Hashable) -> None:
        """One of the replica's requests is over."""
        self.under_way[replica] = max(0, self.under_way[replica] - 1)

    def _prefixes(self, prompt: Sequence[Any]) -> Iterable[int]:
        """A number for each run of leading full blocks, shortest first."""
        so_far = 0
        for end in range(self.block, len(prompt) + 1, self.block):
            block = prompt[end - self.block : end]
            so_far = hash((so_far, block if isinstance(block, str) else tuple(block)))
            yield so_far
