from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from wootz.engine.cache import BlockPool, BlockTable


def admitted(pool: BlockPool, tokens: list[int], **options) -> tuple[BlockTable, int]:
    result = pool.admit(tokens, **options)
    assert result is not None
    return result


def computed(pool: BlockPool, tokens: list[int], **options) -> BlockTable:
    """A table whose tokens are all computed."""
    table, _ = admitted(pool, tokens, **options)
    pool.publish(table, tokens, len(tokens))
    return table


def test_full_blocks_are_shared_and_partial_ones_are_not():
    pool = BlockPool(20, 4)
    first = computed(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second, num_cached = admitted(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert num_cached == 8
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    pool.check_integrity([first, second])


def test_equal_tokens_under_another_parent_are_not_shared():
    """The keys and values of a token depend on all tokens before it."""
    pool = BlockPool(20, 2)
    computed(pool, [1, 2, 7, 7])
    _, num_cached = admitted(pool, [3, 4, 7, 7, 5])
    assert num_cached == 0


def test_another_salt_shares_nothing():
    pool = BlockPool(20, 2)
    computed(pool, [1, 2, 3, 4])
    assert admitted(pool, [1, 2, 3, 4, 5], salt="adapter")[1] == 0
    assert admitted(pool, [1, 2, 3, 4, 5])[1] == 4


def test_colliding_hashes_share_nothing():
    """CPython's hash(-1) equals hash(-2): these keys fall together, and only equality keeps them apart."""
    assert hash((-1, 5)) == hash((-2, 5))
    pool = BlockPool(20, 2)
    computed(pool, [-1, 5, 9])
    assert admitted(pool, [-2, 5, 9])[1] == 0


def test_nothing_is_shared_before_it_is_computed():
    pool = BlockPool(20, 2)
    table, _ = admitted(pool, [1, 2, 3, 4])
    pool.publish(table, [1, 2, 3, 4], 3)
    assert admitted(pool, [1, 2, 3, 4, 5])[1] == 2


def test_a_shared_block_is_copied_by_whoever_writes_first():
    copies: list[tuple[int, int]] = []
    pool = BlockPool(20, 4, copy=lambda source, target: copies.append((source, target)))
    parent = computed(pool, [1, 2, 3, 4, 5])
    child = pool.fork(parent)
    shared = parent.blocks[1]
    assert pool.make_writable(child, 5)
    assert copies == [(shared, child.blocks[1])]
    assert parent.blocks[1] == shared != child.blocks[1]
    assert pool.make_writable(parent, 5)
    assert len(copies) == 1, "the last owner needs no copy"
    pool.check_integrity([parent, child])


def test_the_least_recently_used_tail_is_evicted_first():
    pool = BlockPool(4, 2)
    pool.release(computed(pool, [1, 2, 3, 4]))
    pool.release(computed(pool, [5, 6, 7, 8]))
    table, _ = admitted(pool, [9, 9])
    pool.release(table)
    assert admitted(pool, [5, 6, 7, 8, 0])[1] == 4, "the newer one is whole"
    assert not pool.admit([1, 2, 3, 4, 0])
    assert pool.num_available == 1


def test_a_referenced_block_is_never_evicted():
    pool = BlockPool(3, 2)
    held = computed(pool, [1, 2, 3, 4])
    assert pool.admit([5, 6, 7, 8]) is None
    assert pool.admit([5, 6]) is not None
    assert not pool.make_writable(held, 4)
    pool.check_integrity([held, BlockTable([b for b in range(3) if b not in held.blocks])])


def test_waking_idle_blocks_counts_against_what_is_available():
    pool = BlockPool(4, 2)
    pool.release(computed(pool, [1, 2, 3, 4]))
    assert pool.admit([1, 2, 3, 4, 5, 6, 7, 8, 9]) is None
    pool.check_integrity([])
    assert admitted(pool, [1, 2, 3, 4, 5, 6, 7])[1] == 4


operations = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50), st.integers(1, 14)), max_size=60)


@settings(deadline=None, max_examples=200)
@given(operations, st.integers(3, 12), st.integers(1, 3), st.booleans())
def test_the_books_balance_after_any_operations(operations, num_blocks, block_size, prefix_caching):
    """And what is found in the cache is what was once written there, copies included."""
    content: dict[int, list[int]] = {block: [] for block in range(num_blocks)}
    pool = BlockPool(
        num_blocks,
        block_size,
        prefix_caching=prefix_caching,
        copy=lambda source, target: content.update({target: list(content[source])}),
    )
    live: list[tuple[BlockTable, list[int]]] = []

    def write(table: BlockTable, tokens: list[int], start: int) -> None:
        for position in range(start, len(tokens)):
            block = content[table.blocks[position // block_size]]
            del block[position % block_size :]
            block.append(tokens[position])
        pool.publish(table, tokens, len(tokens))

    for kind, pick, amount in operations:
        if kind == 0:
            tokens = [(i // 3) % 2 for i in range(amount)] if pick % 2 else [pick % 3] * amount
            if admitted := pool.admit(tokens):
                write(admitted[0], tokens, admitted[1])
                live.append((admitted[0], tokens))
        elif live:
            table, tokens = live[pick % len(live)]
            if kind == 1:
                del live[pick % len(live)]
                pool.release(table)
            elif kind == 2:
                live.append((pool.fork(table), list(tokens)))
            elif pool.make_writable(table, len(tokens)):
                tokens.append(amount)
                write(table, tokens, len(tokens) - 1)
        pool.check_integrity([table for table, _ in live])
        for table, tokens in live:
            stored = [content[table.blocks[p // block_size]][p % block_size] for p in range(len(tokens))]
            assert stored == tokens
    for table, _ in live:
        pool.release(table)
    assert pool.num_available == num_blocks
