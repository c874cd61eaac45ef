"""What counts as a refusal: set phrases at the beginning, and not the words alone."""

from __future__ import annotations

import pytest

from wootz.core.wire import ChunkChoice, CompletionChoice, Delta
from wootz.telemetry.refusals import Ear, is_refusal


@pytest.mark.parametrize(
    ("opening", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but I can’t assist with that.", True),
        ("I cannot provide instructions for this.", True),
        ("Unfortunately, I am unable to do so.", True),
        ("As an AI language model, I cannot have opinions.", True),
        ("I must decline.", True),
        ("很抱歉,我无法提供这些信息。", True),
        ("Es tut mir leid, das kann ich nicht.", True),
        ("Je ne peux pas vous aider.", True),
        ("Lo siento, no puedo ayudar con eso.", True),
        ("申し訳ありませんが", True),
        ("The word sorry is an apology.", False),
        ("I can help with that.", False),
        ("I can't wait to see it!", False),
        ("I cannot overstate how good steel is.", False),
        ("Sorry for the delay! Here is the table.", False),
        ("I'm sorry to hear that. Here is what you can do.", False),
        ("The model said: I can't help with that.", False),
        ("", False),
    ],
)
def test_refusals_are_known_by_their_first_words(opening, refused):
    assert is_refusal(opening) is refused


def test_the_first_choice_counts_however_it_is_cut():
    text, ear, other = "I'm sorry, but I can't help with that.", Ear(), Ear()
    for letter in text:
        ear.hear(ChunkChoice(delta=Delta(content=letter)))
        other.hear(CompletionChoice(index=1, text=letter))
    for _ in range(10_000):
        ear.hear(ChunkChoice(delta=Delta(content="and so on ")))
    assert ear.hears_refusal
    assert not other.hears_refusal
    assert len(ear._opening) < 300
