"""Whatever is asked of an engine, and however long: all of it is answered, as it would be alone; nothing is left."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import peft
import pytest
import torch
import transformers
from soak import ADAPTERS, MIX, SCHEMA, USERS, WORDS, soak

from wootz.core import EngineConfig, SpeculationConfig
from wootz.engine import Engine
from wootz.models import load
from wootz.tokenization import load_tokenizer

FEW_BLOCKS = {"cache_bytes": 2_000_000, "max_running": 16, "max_step_tokens": 96}
SWAP = {"preemption": "swap", "swap_bytes": 2_000_000}
DRAFTS = {"speculation": SpeculationConfig(row_cost=0)}


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    for name in ADAPTERS:
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, init_lora_weights=False))
        model.save_pretrained(folder / name)
    return {name: folder / name for name in ADAPTERS}


def engine(folder, adapters, **config) -> Engine:
    """In float64, so that company cannot tip a tie between two tokens. Of the two adapters one has room at a time."""
    options = EngineConfig(max_adapters=1, **config)
    model, tokenizer = load(folder, dtype="float64"), load_tokenizer(folder)
    return Engine(model, config=options, tokenizer=tokenizer, adapters=adapters)


def check(folder, adapters, num_requests: int, most_growth: int, *, drafts: bool = False) -> None:
    tested = engine(folder, adapters, **FEW_BLOCKS, **SWAP, **(DRAFTS if drafts else {}))
    result = soak(tested, num_requests, temperature=0 if drafts else 1)
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
    assert (stats.draft_tokens_accepted > 0) == drafts
    alone = engine(folder, adapters, cache_bytes=2**22, max_running=4, prefix_caching=False)
    for ask, params, tokens in result.answers[:: max(1, len(result.answers) // 20)]:
        (answer,) = alone.generate([ask.prompt], params, adapters=ask.adapter)
        assert [choice.token_ids for choice in answer.choices] == tokens
    for _, params, tokens in result.answers:
        if params.structured is not None:
            text = tested.tokenizer.decode(tokens[0])
            if params.structured.choice:
                assert text in WORDS
            else:
                jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize("drafts", [pytest.param(False, marks=pytest.mark.slow), True])
def test_five_hundred_requests_of_every_kind(tiny_folder, adapters, drafts):
    check(tiny_folder, adapters, 500, most_growth=100 * 2**20, drafts=drafts)


def test_without_knowing_who_asks_the_shares_would_be_unequal(tiny_folder, adapters):
    result = soak(engine(tiny_folder, adapters, **FEW_BLOCKS), 250, one_user=True)
    assert result.jain < 0.85, result.served
    assert result.served["flood"] > result.served["ann"] * USERS["flood"] / USERS["ann"] / 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("drafts", [False, True])
def test_twenty_four_thousand_requests_of_every_kind(tiny_folder, adapters, drafts):
    check(tiny_folder, adapters, 24_000, most_growth=60 * 2**20, drafts=drafts)
