"""RULER's aggregation tasks: common words and frequent words. The answer stands nowhere; it has to be counted."""

from __future__ import annotations

import math
from itertools import islice
from random import Random

from wootz.evals.long_context.case import Question, random_for, string_match_all
from wootz.evals.long_context.fitting import fit
from wootz.evals.long_context.layout import lay_out
from wootz.evals.long_context.setup import Setup
from wootz.evals.long_context.words import coined, distinct_words

COMMON_WORDS_TOKENS = 120
FREQUENT_WORDS_TOKENS = 50

NUM_COMMON = 10
FREQUENCIES = ((30, 3), (10, 2), (6, 1), (3, 1), (2, 1))
"""How often a common and an uncommon word occur. RULER's own is the first; short windows get the first that fits."""

FEWEST_UNCOMMON = 5

ZIPF_EXPONENT = 2.0


def common_words(setup: Setup, length: int, sample: int) -> Question:
    """`cwe`: a numbered list in which ten words occur often and all others seldom; which ten?"""
    rng = random_for(setup.seed, "cwe", length, sample)
    source = distinct_words(rng)
    common = list(islice(source, NUM_COMMON))
    others: list[str] = []
    order = rng.randrange(2**32)
    max_tokens = setup.answer_room(length, COMMON_WORDS_TOKENS)

    def prompt(num_others: int, often: int, seldom: int) -> str:
        others.extend(islice(source, max(0, num_others - len(others))))
        words = common * often + others[:num_others] * seldom
        Random(order).shuffle(words)
        laid = lay_out(
            "\n".join(f"{number}. {word}" for number, word in enumerate(words, 1)),
            f"What are the {NUM_COMMON} most common words in the list? "
            "Answer with the words, separated by commas, and nothing else.",
            instruction="In the following numbered list some words occur more often than the others.",
        )
        return laid + setup.opening(f"The {NUM_COMMON} most common words are:")

    budget = length - max_tokens
    fitting = (pair for pair in FREQUENCIES if setup.count(prompt(FEWEST_UNCOMMON, *pair)) <= budget)
    often, seldom = next(fitting, FREQUENCIES[-1])
    num_others = fit("cwe", lambda n: prompt(n, often, seldom), setup.count, budget, least=FEWEST_UNCOMMON)
    return Question(
        prompt=prompt(num_others, often, seldom),
        expected=tuple(common),
        grade=string_match_all,
        max_tokens=max_tokens,
    )


def frequent_words(setup: Setup, length: int, sample: int) -> Question:
    """`fwe`: coined words whose frequencies follow Zipf's law; the most frequent is shown as dots, the next three are
    asked for."""
    rng = random_for(setup.seed, "fwe", length, sample)
    taken = set[str]()
    vocabulary = ["....", *(coined(rng, taken) for _ in range(max(5, length // 50)))]
    order = rng.randrange(2**32)
    max_tokens = setup.answer_room(length, FREQUENT_WORDS_TOKENS)

    def prompt(num_words: int) -> str:
        counts = zipf_counts(num_words, len(vocabulary))
        words = [word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)]
        Random(order).shuffle(words)
        laid = lay_out(
            " ".join(words),
            "What are the three most frequent words in the coded text? Ignore the dots. "
            "Answer with the words, separated by commas, and nothing else.",
            instruction="Count how often each word occurs in the following coded text.",
        )
        return laid + setup.opening("The three most frequent words are:")

    size = fit("fwe", prompt, setup.count, length - max_tokens, least=27)
    return Question(
        prompt=prompt(size),
        expected=tuple(vocabulary[1:4]),
        grade=string_match_all,
        max_tokens=max_tokens,
    )


def zipf_counts(num_words: int, vocabulary_size: int) -> list[int]:
    """How often the word of each rank occurs among about ``num_words``: in proportion to ``rank ** -2``.

    The ranks asked for (2 to 4) occur at least once, and every later one less often than those, so the answer is
    unique however rounding falls.
    """
    total = sum(rank**-ZIPF_EXPONENT for rank in range(1, vocabulary_size + 1))
    counts = [math.floor(num_words * rank**-ZIPF_EXPONENT / total) for rank in range(1, vocabulary_size + 1)]
    counts[1:4] = [max(1, count) for count in counts[1:4]]
    return counts[:4] + [min(count, counts[3] - 1) for count in counts[4:]]
