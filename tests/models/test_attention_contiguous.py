"""A batch in one rectangle: each row is read as it would be alone, in any order, with any tokens taken back; and beam
search on top of it gives transformers' own beams."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import transformers
from random_reference import save_random
from test_wootz_family import moved, small

from wootz.core.errors import BadRequestError, UnsupportedError
from wootz.models import load
from wootz.models.attention.contiguous import ContiguousContext

KINDS = {
    "attention": {"layers": "A"},
    "windows-and-bias": {"layers": "WA", "positions": "rope+t5", "softcap": 5.0, "sinks": True},
    "latent": {"layers": "L", "positions": "rope"},
    "hybrid": {"layers": "MA"},
}


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_each_row_is_read_as_it_would_be_alone(kind: str) -> None:
    """Random chunks, of equal and unequal sizes, with rows put into another order and cut back between them."""
    model, rng = moved(small(**KINDS[kind])), random.Random(0)
    cache, texts = ContiguousContext(model, num_rows=3, capacity=40), [[], [], []]
    for step in range(14):
        counts = [1, 1, 1] if step % 3 == 2 else [rng.randrange(5) for _ in texts]
        counts[0] = max(counts[0], 1)
        new = [[rng.randrange(41) for _ in range(count)] for count in counts]
        if any(len(text) + len(more) > 40 for text, more in zip(texts, new, strict=True)):
            break
        texts = [text + more for text, more in zip(texts, new, strict=True)]
        positions = cache.next_positions(counts)
        logits = model.unembed(model(torch.tensor([token for more in new for token in more]), positions, cache)).split(
            counts
        )
        for text, found in zip(texts, logits, strict=True):
            if len(found):
                torch.testing.assert_close(found, model.logits(text)[-len(found) :], atol=1e-9, rtol=0)
        order = [rng.randrange(3) for _ in texts]
        cache.reorder(order)
        texts = [list(texts[row]) for row in order]
        if kind != "hybrid":
            row = rng.randrange(3)
            cut = rng.randrange(len(texts[row]) + 1)
            cache.truncate(row, cut)
            del texts[row][cut:]
    assert step > 5
    assert cache.lengths == [len(text) for text in texts]
    assert cache.waste == pytest.approx(1 - sum(map(len, texts)) / 120)


def test_what_does_not_fit_or_cannot_be_taken_back_is_refused() -> None:
    cache = ContiguousContext(small(layers="MA"), num_rows=2, capacity=8)
    cache.next_positions([3, 8])
    with pytest.raises(BadRequestError, match="row 1 reserves 8 tokens, and 9 would have to be kept"):
        cache.next_positions([1, 1])
    assert cache.lengths == [3, 8]
    with pytest.raises(UnsupportedError, match="cannot be taken back"):
        cache.truncate(0, 2)
    with pytest.raises(UnsupportedError, match="need whole texts"):
        ContiguousContext(small(layers="N"), num_rows=2, capacity=8)


@torch.inference_mode()
def test_beams_in_the_rectangle_are_those_of_transformers(tmp_path: Path) -> None:
    """Beam search in its plainest form, without end tokens: keep the W likeliest of W·V continuations."""
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=None, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    reference, width, prompt = save_random(tmp_path / "model", config), 4, [5, 9, 2, 33]
    expected = reference.generate(
        torch.tensor([prompt]), num_beams=width, num_return_sequences=width, max_new_tokens=9, do_sample=False,
        length_penalty=0.0,
    )  # fmt: skip
    model = load(tmp_path / "model")
    cache = ContiguousContext(model, num_rows=width, capacity=16)
    beams, scores = [prompt] * width, torch.tensor([0.0] + [-torch.inf] * (width - 1))
    tokens = torch.tensor(prompt * width)
    orders = []
    for _ in range(9):
        hidden = model(tokens, cache.next_positions([len(tokens) // width] * width), cache)
        logprobs = model.unembed(hidden.unflatten(0, (width, -1))[:, -1]).log_softmax(-1)
        scores, chosen = (scores[:, None] + logprobs).flatten().topk(width)
        parents, tokens = chosen // 60, chosen % 60
        beams = [[*beams[parent], token] for parent, token in zip(parents.tolist(), tokens.tolist(), strict=True)]
        cache.reorder(parents.tolist())
        orders.append(parents.tolist())
    assert beams == expected.tolist()
    assert any(order != [0, 1, 2, 3] for order in orders[1:])  # rows were really moved
