"""Benchmarks while training: questions whose answer is picked, not written. Of a context's choices the model takes the
one that it finds likeliest *per byte*, so that long ones are not at a disadvantage ("acc_norm" of EleutherAI's
harness, by bytes): HellaSwag, ARC, OpenBookQA, MMLU and cloze tests in files of

    {"context": "The sky on a clear day is", "choices": [" blue.", " made of cheese."], "answer": 0}

``answer`` is the number of the right choice, from 0. A choice follows its context as it is, so it brings the space in
front of it. Small models are near chance on most of these for long; the standard error says whether a curve rises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from wootz.core.errors import ConfigError
from wootz.data.tokens import end_of_text
from wootz.models import Decoder, PackedContext
from wootz.tokenization import Tokenizer
from wootz.training.recipe import Recipe
from wootz.training.trainer import evaluation

TOKENS_AT_ONCE = 8192


class Item(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    context: str
    choices: tuple[str, ...] = Field(min_length=2)
    answer: int = Field(ge=0)

    @model_validator(mode="after")
    def has_its_answer(self) -> Item:
        if self.answer >= len(self.choices):
            raise ValueError(f"answer {self.answer} of {len(self.choices)} choices, which count from 0")
        if not all(self.choices):
            raise ValueError("a choice is empty")
        return self


def read_items(path: Path, most: int | None = None) -> list[Item]:
    """The first ``most``, or all. Raises `ConfigError`, naming the line that is no item."""
    items: list[Item] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if len(items) == most:
                    break
                try:
                    items.append(Item.model_validate_json(line))
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(str(part) for part in first["loc"])
                    message = f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
                    raise ConfigError(f"{path}, line {number}: {message}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    if not items:
        raise ConfigError(f"{path}: holds no items")
    return items


def benchmarks_of(recipe: Recipe, most: int | None = None) -> dict[str, list[Item]]:
    return {name: read_items(path, most) for name, path in recipe.pretrain.benchmarks.items()}


def run_benchmarks(
    model: Decoder, tokenizer: Tokenizer, benchmarks: Mapping[str, list[Item]], multiple: int = 1
) -> dict[str, dict[str, Any]]:
    """By name: accuracy, its standard error, what guessing would get, and how many items there are."""
    return {name: _scored(picks(model, tokenizer, items, multiple), items) for name, items in benchmarks.items()}


def _scored(picked: list[int], items: list[Item]) -> dict[str, Any]:
    right = sum(pick == item.answer for pick, item in zip(picked, items, strict=True)) / len(items)
    return {
        "accuracy": right,
        "standard_error": math.sqrt(right * (1 - right) / max(1, len(items) - 1)),
        "chance": sum(1 / len(item.choices) for item in items) / len(items),
        "items": len(items),
    }


@torch.inference_mode()
def picks(model: Decoder, tokenizer: Tokenizer, items: list[Item], multiple: int = 1) -> list[int]:
    """The number of the choice that the model takes, of each item."""
    texts = [_encoded(tokenizer, item.context, choice) for item in items for choice in item.choices]
    longest = model.config.max_position_embeddings + 1
    texts = [(ids[-longest:], min(asked, longest - 1)) for ids, asked in texts]
    nats: list[float] = []
    with evaluation(model):
        while len(nats) < len(texts):
            end, total = len(nats), 0
            while end < len(texts) and (total == 0 or total + len(texts[end][0]) <= TOKENS_AT_ONCE):
                total += len(texts[end][0])
                end += 1
            nats += _nats(model, texts[len(nats) : end], multiple)
    found, place = [], 0
    for item in items:
        per_byte = [nats[place + n] / len(choice.encode()) for n, choice in enumerate(item.choices)]
        found.append(per_byte.index(min(per_byte)))
        place += len(per_byte)
    return found


def _encoded(tokenizer: Tokenizer, context: str, choice: str) -> tuple[list[int], int]:
    """A document's tokens, and how many of its last ones are the choice's. A token that spans both counts to it."""
    alone = tokenizer.encode(context, add_special_tokens=False, control="text")
    whole = tokenizer.encode(context + choice, add_special_tokens=False, control="text")
    shared = next((n for n, pair in enumerate(zip(alone, whole, strict=False)) if pair[0] != pair[1]), len(alone))
    return [end_of_text(tokenizer), *whole], len(whole) - shared


def _nats(model: Decoder, texts: list[tuple[list[int], int]], multiple: int) -> list[float]:
    """Of the asked last tokens of each text, packed side by side."""
    lengths = [len(ids) - 1 for ids, _ in texts]
    inputs_T = torch.tensor([token for ids, _ in texts for token in ids[:-1]], device=model.device)
    positions_T = torch.cat([torch.arange(length) for length in lengths]).to(model.device)
    if padding := -len(inputs_T) % multiple:  # a document of its own, that sequence parallelism can share out
        lengths = [*lengths, padding]
        inputs_T, positions_T = F.pad(inputs_T, (0, padding)), F.pad(positions_T, (0, padding))
    hidden_TD: Tensor = model(inputs_T, positions_T, PackedContext(lengths))
    found, end = [], 0
    for ids, asked in texts:
        end += len(ids) - 1
        labels = torch.tensor(ids[-asked:], device=model.device)
        logits_AV = model.unembed(hidden_TD[end - asked : end])
        found.append(F.cross_entropy(logits_AV, labels, reduction="sum").item())
    return found
