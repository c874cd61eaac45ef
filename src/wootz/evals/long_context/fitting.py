"""Bring a prompt to a length in tokens, by asking a tokenizer and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from wootz.core import BadRequestError, LanguageModel
from wootz.evals.asking import ask

CountTokens = Callable[[str], int]
"""How many tokens a prompt takes, with all that the model's template puts around it."""

MOST_SECANTS = 8


class TokenizerLike(Protocol):
    """What `wootz.tokenization.Tokenizer` offers and this room needs of it."""

    def encode(self, text: str) -> list[int]: ...
    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]: ...


def chat_counter(tokenizer: TokenizerLike) -> CountTokens:
    """Counts a prompt as the one user message of a chat, the template included."""
    return lambda prompt: len(tokenizer.encode_chat([{"role": "user", "content": prompt}]))


def plain_counter(tokenizer: TokenizerLike) -> CountTokens:
    """Counts a prompt that is continued as it is (with BOS, where the model has one)."""
    return lambda prompt: len(tokenizer.encode(prompt))


async def counter_by_probing(model: LanguageModel, *, chat: bool = True) -> CountTokens:
    """For a remote model whose tokenizer we lack: four short requests tell, through their ``usage``, what a word, a
    digit and a hexadecimal character cost. Good to some percent; a row's ``prompt_tokens`` is always the endpoint's
    own.

    Raises `BadRequestError` for an endpoint that does not tell its usage.
    """
    rng = random.Random(0)
    words, digits = ("time year people way day man thing woman life child world school " * 12).split(), "0123456789"
    uuids = " ".join("".join(rng.choices("0123456789abcdef-", k=36)) for _ in range(8))
    numbers = " ".join("".join(rng.choices(digits, k=7)) for _ in range(32))

    async def tokens(text: str) -> int:
        return (await ask(model, text, max_tokens=1, chat=chat)).prompt_tokens

    few, many = await tokens(" ".join(words[:16])), await tokens(" ".join(words))
    if many <= few:
        raise BadRequestError(
            f'"{model.name}" does not tell its usage, so prompts can\'t be measured',
            hint="name its tokenizer with --tokenizer",
        )
    per_word = (many - few) / (len(words) - 16)
    around = few - 16 * per_word
    per_digit = (await tokens(numbers) - around) / (32 * 7)
    per_hex = (await tokens(uuids) - around) / len(uuids)

    def count(prompt: str) -> int:
        total = around
        for word in prompt.split():
            if not any(character.isdigit() for character in word):
                # A long or coined word is several tokens; punctuation is one of its own.
                letters = sum(map(str.isalnum, word))
                total += per_word * max(1.0, letters / 6) + (len(word) - letters)
            elif "-" in word and len(word) > 20:
                total += per_hex * (len(word) + 1)
            else:
                total += per_digit * len(word)
        return round(total)

    return count


def fit(
    task: str,
    build: Callable[[int], str],
    count: CountTokens,
    length: int,
    *,
    least: int = 0,
    most: int | None = None,
) -> int:
    """The largest size, from ``least`` to ``most``, whose ``build(size)`` takes at most ``length`` tokens.

    Tokens grow nearly in proportion to the size, so secants find it in some five counts, which matters where a count
    means tokenizing a book. Raises `BadRequestError` when even ``build(least)`` is too long.
    """
    low, low_tokens = least, count(build(least))
    if low_tokens > length:
        raise BadRequestError(
            f"{task}: its shortest prompt takes {low_tokens} tokens, {length} are left beside the answer",
            hint="ask for longer lengths",
        )
    high = None if most is None else max(most, least) + 1  # The smallest size that is known to be too much.
    per_token, steps = 0.25, 0
    while high is None or high - low > 1:
        size = low + max(1, round((length - low_tokens) * per_token))
        if high is not None:  # Where tokens are far from even, halving ends what secants may not.
            size = min(size, high - 1) if steps < MOST_SECANTS else (low + high) // 2
        steps += 1
        tokens = count(build(size))
        if tokens != low_tokens:
            per_token = abs((size - low) / (tokens - low_tokens))
        if tokens <= length:
            low, low_tokens = size, tokens
        else:
            high = size
    return low
