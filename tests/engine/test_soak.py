"""Whatever is asked of an engine, and however long: all of it is answered, as it would be alone; nothing is left."""

from __future__ import annotations

import pytest
from soak import MIX, USERS, soak

from wootz.core import EngineConfig
from wootz.engine import Engine
from wootz.models import load
from wootz.tokenization import load_tokenizer

FEW_BLOCKS = {"cache_bytes": 2_000_000, "max_running": 16, "max_step_tokens": 96}
SWAP = {"preemption": "swap", "swap_bytes": 2_000_000}


def engine(folder, **config) -> Engine:
    """In float64, so that the company cannot tip a tie between two tokens."""
    return Engine(load(folder, dtype="float64"), config=EngineConfig(**config), tokenizer=load_tokenizer(folder))


def check(folder, num_requests: int, most_growth: int) -> None:
    tested = engine(folder, **FEW_BLOCKS, **SWAP)
    result = soak(tested, num_requests)
    assert result.finished.total() + result.cancelled == num_requests
    assert set(result.finished) | {"impatient"} == {kind.name for kind in MIX}
    assert result.jain >= 0.9, result.served
    assert result.longest_steps < 2500, "somebody was forgotten for long"
    assert result.new_files == 0
    assert result.memory_growth < most_growth
    assert not tested.has_work
    tested.scheduler.check_integrity()
    assert tested.pool.num_available == tested.pool.num_blocks
    assert tested.scheduler.swap.num_used == 0
    assert not tested.scheduler.waiting.served
    stats = tested.stats()
    assert stats.preemptions >= stats.swapped_out >= stats.swapped_in > 0
    assert 0 < stats.prefix_hits < stats.requests_admitted <= num_requests
    alone = engine(folder, cache_bytes=2**22, max_running=4, prefix_caching=False)
    for ask, params, tokens in result.answers[:: max(1, len(result.answers) // 20)]:
        (answer,) = alone.generate([ask.prompt], params)
        assert [choice.token_ids for choice in answer.choices] == tokens


def test_five_hundred_requests_of_every_kind(tiny_folder):
    check(tiny_folder, 500, most_growth=100 * 2**20)


def test_without_knowing_who_asks_the_shares_would_be_unequal(tiny_folder):
    result = soak(engine(tiny_folder, **FEW_BLOCKS), 250, one_user=True)
    assert result.jain < 0.85, result.served
    assert result.served["flood"] > result.served["ann"] * USERS["flood"] / USERS["ann"] / 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_four_thousand_requests_of_every_kind(tiny_folder):
    check(tiny_folder, 24_000, most_growth=60 * 2**20)
