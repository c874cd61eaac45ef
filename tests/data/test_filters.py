"""Heuristics on texts that break one rule each, and languages on texts that come with Wootz."""

from __future__ import annotations

import random

import pytest

from wootz.core.errors import ConfigError
from wootz.data.filters import Heuristics, Languages, _characters_in_repeats, language
from wootz.tokenization.samples import sample_texts

WORDS = "the river runs below and that hill with its old stones over to be seen of many people have come"


def prose(num_words: int = 120, seed: int = 0) -> str:
    lot = random.Random(seed)
    made = [lot.choice(WORDS.split()) + lot.choice(["", "s", "ing", "ed", "er"]) for _ in range(num_words)]
    made[::10] = [lot.choice(["the", "of", "and", "with"]) for _ in made[::10]]
    return " ".join(made)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (prose(), None),
        (prose(40), "too short"),
        ("a I of " * 40, "word length"),
        (" ".join(f"{word} #" for word in prose().split()), "symbols"),
        ("\n".join(f"- {line}" for line in [prose(10, n) for n in range(12)]), "bullets"),
        ("\n".join(f"{line}…" for line in [prose(30, n) for n in range(5)]), "ellipses"),
        (" ".join(f"{word} 12345" for word in prose().split()), "not words"),
        (prose().replace(" ", "q "), "stop words"),
        ("\n".join([prose(60), *["the same line of text"] * 12]), "repeated lines"),
        ("\n\n".join([prose(30, 1), prose(30, 2), prose(30, 1)]), "repeated lines"),
        (prose(60) + " river bank" * 30, "repeated 2-grams"),
        (prose(200, 1) + " " + prose(60, 2) + " " + " ".join(prose(60, 2).split()), "repeated 5-grams"),
    ],
)
def test_a_text_is_dropped_by_the_rule_it_breaks(text: str, reason: str | None) -> None:
    assert Heuristics().reason_to_drop(text) == reason


def test_words_in_several_repeats_count_once() -> None:
    """Against marking every word of every repeated n-gram."""
    lot = random.Random(0)
    for n in (2, 3, 5):
        words = [lot.choice("abc") * lot.randint(1, 3) for _ in range(60)]
        seen, marked = set(), set()
        for start in range(len(words) - n + 1):
            ngram = tuple(words[start : start + n])
            if ngram in seen:
                marked.update(range(start, start + n))
            seen.add(ngram)
        assert _characters_in_repeats(words, n) == sum(len(words[place]) for place in marked)


def test_languages_are_told_apart() -> None:
    """The declaration of human rights, in the languages that come with the project."""
    for name, parts in sample_texts().items():
        if name != "python":
            assert language(parts[0])[0] == name
    assert language("Der schnelle braune Fuchs springt über den faulen Hund, und alle sehen zu.")[0] == "de"
    assert language("敏捷的棕色狐狸跳过了懒狗，大家都在看。")[0] == "zh"
    assert language("12345 ... !!")[1] < 0.65


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ConfigError, match="klingon"):
        Languages(keep=("en", "klingon"))
