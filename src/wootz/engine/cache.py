"""The paged cache's book-keeping: which block holds what, who refers to it, and what can be shared.

Keys and values live in blocks of ``block_size`` tokens (PagedAttention, arXiv 2309.06180). A sequence's `BlockTable`
lists its blocks in order; blocks are counted, so sequences can share them:

- **Prefix sharing.** A full block whose keys and values are computed is *published*. The index maps
  ``(parent, tokens)`` to a block, where the parent is the published block before it, known by a number that is never
  used twice, and before the first block stands the *salt*: what else the numbers depend on (an adapter's name). So
  the index is a radix tree laid out in one dictionary, whose keys are the content itself: equality is checked by the
  dictionary, and no collision of hashes can ever share wrongly. One pool belongs to one model.
- **Copy-on-write.** `fork` shares every block of a table, the last, partly filled one too. Whoever first writes to it
  gets a copy.
- **Eviction.** A published block nobody refers to stays until its place is needed; least recently used goes first,
  and of one sequence the tail before the head, since a tail is of no use without its head.

- **States.** What recurrent layers keep is not made of tokens, so it is neither shared nor published: a sequence that
  runs holds one state, and a fork gets a copy of it.

This file moves no data; `copy` and `copy_state` are called when content has to be.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

Parent = int | str


@dataclass
class BlockTable:
    """Where one sequence's tokens are: position p is in ``blocks[p // block_size]``."""

    blocks: list[int] = field(default_factory=list)
    num_published: int = 0
    """This many leading blocks are in the index (or have a twin there)."""
    parent: Parent = ""
    """Under this parent the next block will be published."""
    state: int | None = None
    """Where recurrent layers keep this sequence's state."""


class BlockPool:
    """All blocks of the cache. Every block is in exactly one state: free, referenced, or idle (published, kept)."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        num_states: int | None = None,
        prefix_caching: bool = True,
        copy: Callable[[int, int], None] = lambda source, target: None,
        copy_state: Callable[[int, int], None] = lambda source, target: None,
    ) -> None:
        if num_states is not None and prefix_caching:
            raise ValueError("a running state has no parts that could be shared")
        self.num_blocks, self.block_size, self.prefix_caching = num_blocks, block_size, prefix_caching
        self.num_states, self.copy, self.copy_state = num_states, copy, copy_state
        self.free_states = list(reversed(range(num_states or 0)))
        self.references = [0] * num_blocks
        self.free = list(reversed(range(num_blocks)))
        self.idle: dict[int, None] = {}
        """An ordered set, least recently used first."""
        self.index: dict[tuple[Parent, tuple[int, ...]], int] = {}
        self.published: dict[int, tuple[int, tuple[Parent, tuple[int, ...]]]] = {}
        """Block to its number as a parent, and its key in the index."""
        self._numbers = itertools.count()

    @property
    def num_available(self) -> int:
        """Blocks that could be allocated now."""
        return len(self.free) + len(self.idle)

    @property
    def num_referenced(self) -> int:
        return self.num_blocks - self.num_available

    # --- getting blocks ---------------------------------------------------------------------------------------

    def admit(
        self, token_ids: list[int], *, salt: str = "", spare: int = 0, share: bool = True
    ) -> tuple[BlockTable, int] | None:
        """A table with room for all tokens, and how many of them it already holds, shared.

        The last token is never among those: it has to be computed for its logits; without ``share`` none is. None, and
        nothing changed, if then fewer than ``spare`` blocks would be left.
        """
        table, shared = self._match(token_ids, salt) if share else (BlockTable(parent=salt), [])
        num_new = -(-len(token_ids) // self.block_size) - len(shared)
        num_woken = sum(self.references[block] == 0 for block in shared)
        if num_new + num_woken + spare > self.num_available or (self.num_states and not self.free_states):
            return None
        for block in shared:
            self.idle.pop(block, None)
            self.references[block] += 1
        table.blocks = shared + [self._allocate() for _ in range(num_new)]
        table.state = self._allocate_state()
        return table, len(shared) * self.block_size

    def make_writable(self, table: BlockTable, position: int) -> bool:
        """Make sure that ``position``, at most one past what the table covers, can be written. False: no block left."""
        place = position // self.block_size
        is_new = place == len(table.blocks)
        if not is_new and self.references[table.blocks[place]] == 1:
            return True
        if not self.num_available:
            return False
        block = self._allocate()
        if is_new:
            table.blocks.append(block)
        else:
            shared = table.blocks[place]
            self.copy(shared, block)
            table.blocks[place] = block
            self.references[shared] -= 1
        return True

    def fork(self, table: BlockTable) -> BlockTable:
        """A second table over the same blocks, with a copy of the state."""
        for block in table.blocks:
            self.references[block] += 1
        state = self._allocate_state()
        if state is not None and table.state is not None:
            self.copy_state(table.state, state)
        return BlockTable(list(table.blocks), table.num_published, table.parent, state)

    def release(self, table: BlockTable) -> None:
        """Give up every block of the table, which must not be used again."""
        self.truncate(table, 0)
        if table.state is not None:
            self.free_states.append(table.state)
            table.state = None

    def truncate(self, table: BlockTable, num_tokens: int) -> None:
        """Give up the blocks that lie wholly behind the first ``num_tokens`` tokens."""
        while len(table.blocks) > -(-num_tokens // self.block_size):
            block = table.blocks.pop()
            self.references[block] -= 1
            if self.references[block] == 0:
                if block in self.published:
                    self.idle[block] = None
                else:
                    self.free.append(block)

    # --- sharing ----------------------------------------------------------------------------------------------

    def publish(self, table: BlockTable, token_ids: list[int], num_computed: int) -> None:
        """Let others share the blocks that ``num_computed`` tokens have filled."""
        if not self.prefix_caching:
            return
        while (end := (table.num_published + 1) * self.block_size) <= num_computed:
            key = table.parent, tuple(token_ids[end - self.block_size : end])
            block = table.blocks[table.num_published]
            twin = self.index.setdefault(key, block)  # computed by two sequences at the same time: one is indexed
            if twin == block:
                self.published[block] = next(self._numbers), key
            table.parent = self.published[twin][0]
            table.num_published += 1

    def num_cached(self, token_ids: list[int], *, salt: str = "") -> int:
        """How many of these tokens `admit` would find now."""
        return len(self.known_blocks(token_ids, salt)) * self.block_size

    def forget(self) -> None:
        """What was published cannot be found any more: the weights it came from are gone. Nobody may hold blocks."""
        assert self.num_referenced == 0, "somebody still reads this"
        self.free += reversed(self.idle)
        self.idle.clear()
        self.published.clear()
        self.index.clear()

    def known_blocks(self, token_ids: list[int], salt: str = "") -> list[int]:
        """The published blocks of the longest prefix that is here, short of the last token."""
        return self._match(token_ids, salt)[1]

    def _match(self, token_ids: list[int], salt: str) -> tuple[BlockTable, list[int]]:
        """The longest published prefix, short of the last token."""
        table, blocks = BlockTable(parent=salt), []
        for end in range(self.block_size, len(token_ids), self.block_size):
            block = self.index.get((table.parent, tuple(token_ids[end - self.block_size : end])))
            if block is None:
                break
            blocks.append(block)
            table.parent = self.published[block][0]
        table.num_published = len(blocks)
        return table, blocks

    def _allocate(self) -> int:
        """A block of one's own: a free one, else the least recently used of the idle."""
        if self.free:
            block = self.free.pop()
        else:
            block = next(iter(self.idle))
            del self.idle[block]
            _, key = self.published.pop(block)
            del self.index[key]
        self.references[block] = 1
        return block

    def _allocate_state(self) -> int | None:
        """There is one for each sequence that may run at a time."""
        return self.free_states.pop() if self.num_states else None

    # --- proof ------------------------------------------------------------------------------------------------

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Raise AssertionError unless the books agree with themselves and with all tables there are."""
        tables = list(tables)
        counted = Counter(block for table in tables for block in table.blocks)
        assert all(self.references[block] == counted[block] for block in range(self.num_blocks)), (
            "references miscounted"
        )
        held = sorted([*self.free, *self.idle, *counted])
        assert held == list(range(self.num_blocks)), "a block is in no state, or in two"
        assert {key: block for block, (_, key) in self.published.items()} == self.index, "index and blocks disagree"
        assert set(self.idle) <= set(self.published), "an idle block that nobody can find"
        assert not set(self.free) & set(self.published), "a free block that somebody can find"
        assert all(len(tokens) == self.block_size for _, tokens in self.index), "a published block that is not full"
        states = [*self.free_states, *(table.state for table in tables if table.state is not None)]
        assert sorted(states) == list(range(self.num_states or 0)), "a state that nobody or two sequences hold"
