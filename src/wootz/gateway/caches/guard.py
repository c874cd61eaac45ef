"""Do two questions that an encoder finds alike differ in a word that turns the answer round?

Encoders put "enable" beside "disable", 2024 beside 2025, and "USD to EUR" beside "EUR to USD". This is a
cheap look at the words, in the spirit of the contrast sets on which paraphrase models fail (PAWS, Zhang et al. 2019,
arXiv 1904.01130): numbers, names, negations, opposites, what is asked for, and order. It errs on the side of asking the
model; how much it costs in true hits and saves in false ones is measured in `docs/caches.md`.
"""

from __future__ import annotations

import re
from itertools import pairwise

_WORD = re.compile(r"[A-Za-z]+(?:['’][a-z]+)?|\d+(?:[.,:/-]\d+)*|[^\W\d_]")
"""Words, numbers (also 3.11, 10:30, 2024-05-01), and each character of scripts without spaces."""

_COUNTING = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_COUNTING.split())} | {
    "first": "1", "second": "2", "third": "3", "half": "1/2", "double": "2", "twice": "2", "once": "1",
}  # fmt: skip

_NEGATING = """
not no never none nothing nobody without cannot neither nor hardly except unless stop avoid refuse isn't aren't wasn't
weren't don't doesn't didn't won't wouldn't can't couldn't shouldn't mustn't haven't hasn't
"""
_NEGATIONS = set(_NEGATING.split()) | set("不没無无非别未")

_OPPOSITES = """
enable/disable on/off start/stop begin/end open/close add/remove increase/decrease raise/lower up/down before/after
above/below over/under more/less most/least max/min maximum/minimum largest/smallest biggest/smallest highest/lowest
best/worst first/last earliest/latest oldest/newest buy/sell import/export upload/download encrypt/decrypt encode/decode
compress/decompress install/uninstall lock/unlock block/unblock allow/deny allow/forbid accept/reject accept/decline
approve/reject include/exclude win/lose gain/lose give/take send/receive lend/borrow push/pull left/right north/south
east/west hot/cold warm/cool fast/slow long/short old/new old/young big/small large/small high/low cheap/expensive
safe/dangerous legal/illegal possible/impossible public/private internal/external positive/negative pass/fail
success/failure true/false male/female man/woman men/women boy/girl father/mother brother/sister husband/wife king/queen
parent/child teacher/student morning/evening day/night today/tomorrow today/yesterday yesterday/tomorrow past/future
advantage/disadvantage advantages/disadvantages pros/cons benefits/risks benefit/risk cause/effect causes/effects
question/answer input/output read/write client/server monthly/yearly monthly/annual daily/weekly weekly/monthly
with/without attach/detach subscribe/unsubscribe activate/deactivate connect/disconnect load/unload mount/unmount
follow/unfollow deposit/withdraw debit/credit arrival/departure arrive/depart enter/leave entrance/exit hire/fire
join/leave create/delete upgrade/downgrade expand/collapse show/hide mute/unmute freeze/unfreeze horizontal/vertical
ascending/descending singular/plural synonym/antonym synonyms/antonyms prey/predator buyer/seller employer/employee
sender/receiver
"""
_POLE: dict[str, set[tuple[int, int]]] = {}
"""Of a word: the pairs that it is in, and on which side."""
for _pair, _words in enumerate(pair.split("/") for pair in _OPPOSITES.split()):
    for _side, _word in enumerate(_words):
        _POLE.setdefault(_word, set()).add((_pair, _side))

_ASKED = {"who": "who", "whose": "who", "whom": "who", "when": "when", "where": "where", "why": "why"}
_HOW = {
    "many": "how many",
    "much": "how much",
    "long": "how long",
    "old": "how old",
    "far": "how far",
    "often": "how often",
}


def difference(a: str, b: str) -> str | None:
    """What the two differ in, in one word, or None."""
    words_a, words_b = _WORD.findall(a), _WORD.findall(b)
    low_a, low_b = (
        [word.lower().replace("’", "'") for word in words_a],
        [word.lower().replace("’", "'") for word in words_b],
    )
    if low_a == low_b:
        return None
    if _numbers(low_a) != _numbers(low_b):
        return "number"
    if _negations(low_a) % 2 != _negations(low_b) % 2:
        return "negation"
    if _opposed(low_a, low_b):
        return "opposite"
    if _asked(low_a) != _asked(low_b):
        return "asked"
    if sorted(low_a) == sorted(low_b):
        return "order"
    if _names(words_a, low_b) or _names(words_b, low_a) or _order_of_names(words_a) != _order_of_names(words_b):
        return "name"
    return None


def _numbers(words: list[str]) -> list[str]:
    return [_NUMBER_WORDS.get(word, word) for word in words if word[0].isdigit() or word in _NUMBER_WORDS]


def _negations(words: list[str]) -> int:
    return sum(word in _NEGATIONS for word in words)


def _opposed(a: list[str], b: list[str]) -> bool:
    """One has a pole that the other lacks, and the other has its opposite that the one lacks."""
    poles_a = set().union(*(_POLE.get(word, set()) for word in a))
    poles_b = set().union(*(_POLE.get(word, set()) for word in b))
    only_a, only_b = poles_a - poles_b, poles_b - poles_a
    return any((pair, 1 - side) in only_b for pair, side in only_a)


def _asked(words: list[str]) -> set[str]:
    asked = {_ASKED[word] for word in words if word in _ASKED}
    return asked | {_HOW[after] for word, after in pairwise(words) if word == "how" and after in _HOW}


def _proper(words: list[str]) -> list[str]:
    """Words written as names: with a capital, not at the beginning; or in capitals, wherever."""
    return [
        word
        for place, word in enumerate(words)
        if word != "I"
        and not word.startswith(("I'", "I’"))
        and word[0].isupper()
        and (place or (len(word) > 1 and word.isupper()))
    ]


def _names(words: list[str], other: list[str]) -> bool:
    """A name of one that the other does not mention in any spelling."""
    return any(word.lower() not in other for word in _proper(words))


def _order_of_names(words: list[str]) -> list[str]:
    return [word.lower() for word in _proper(words)]
