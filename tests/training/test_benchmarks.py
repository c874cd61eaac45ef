"""Multiple choice while training: the likeliest choice per byte, in a run's rows, event files and at its end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import small_model

from wootz.core.errors import ConfigError
from wootz.models import Decoder
from wootz.tokenization import load_tokenizer
from wootz.training.stages.benchmarks import Item, picks, read_items, run_benchmarks

CODES = {"<|endoftext|>": 0} | {letter: n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyzĠ", 1)}
MERGES = [("a", "b"), ("Ġ", "a"), ("c", "d")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel

    codes = CODES | {left + right: len(CODES) + n for n, (left, right) in enumerate(MERGES)}
    backend = Tokenizer(models.BPE(codes, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return load_tokenizer(folder)


def spread_model() -> Decoder:
    model = small_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def nats_alone(model: Decoder, ids: list[int], asked: int) -> float:
    """One text at a time, from all of its logits."""
    odds = model.logits(ids).log_softmax(-1)
    return -sum(odds[place - 1, ids[place]].item() for place in range(len(ids) - asked, len(ids)))


words = st.text("abcd ", min_size=1, max_size=12)


@settings(max_examples=10, deadline=None)
@given(items=st.lists(st.tuples(words, st.lists(words, min_size=2, max_size=4)), min_size=1, max_size=4))
def test_picked_is_the_likeliest_choice_per_byte(tokenizer, items: list[tuple[str, list[str]]]) -> None:
    model, asked = spread_model(), [Item(context=c, choices=tuple(all_), answer=0) for c, all_ in items]
    expected = []
    with torch.inference_mode():
        for item in asked:
            costs = []
            for choice in item.choices:
                whole = tokenizer.encode(item.context + choice)
                alone = tokenizer.encode(item.context)
                shared = 0
                while shared < len(alone) and alone[shared] == whole[shared]:
                    shared += 1
                costs.append(nats_alone(model, [0, *whole], len(whole) - shared) / len(choice.encode()))
            expected.append(costs)
    for found, costs in zip(picks(model, tokenizer, asked, multiple=3), expected, strict=True):
        assert costs[found] == pytest.approx(min(costs), rel=1e-4)


def test_a_context_that_is_too_long_loses_its_beginning(tokenizer) -> None:
    model = spread_model()
    model.config = type(model.config)(**{**model.config.__dict__, "max_position_embeddings": 8})
    item = Item(context="a c b d " * 20, choices=("c", "bd"), answer=0)
    ids = [tokenizer.encode(item.context + choice) for choice in item.choices]
    with torch.inference_mode():
        costs = [nats_alone(model, each[-9:], n) / n for n, each in zip((1, 2), ids, strict=True)]
    assert picks(model, tokenizer, [item]) == [costs.index(min(costs))]


def test_accuracy_comes_with_its_standard_error(tokenizer) -> None:
    model = spread_model()
    items = [Item(context=letter, choices=("a", "c", "d"), answer=0) for letter in "abcdefghij"]
    right = [pick == 0 for pick in picks(model, tokenizer, items)]
    scored = run_benchmarks(model, tokenizer, {"letters": items})["letters"]
    assert 0 < sum(right) < 10
    assert scored["accuracy"] == sum(right) / 10
    assert scored["standard_error"] == pytest.approx(torch.tensor(right).float().std().item() / math.sqrt(10))
    assert scored["chance"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: Invalid JSON"),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "line 2: choices"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "line 2: answer 2 of 2 choices"),
        ('{"context": "a", "choices": ["b", ""], "answer": 0}', "line 2: a choice is empty"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path: Path, line: str, words: str) -> None:
    good = json.dumps({"context": "a", "choices": ["b", "c"], "answer": 0, "id": 7})
    file = tmp_path / "items.jsonl"
    file.write_text(f"{good}\n{line}\n")
    assert len(read_items(file, 1)) == 1
    with pytest.raises(ConfigError, match=words):
        read_items(file)
