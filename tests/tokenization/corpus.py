"""Two megabytes of text that every machine with the development extra has: no download, no file of ours.

Words of fifty languages come from the locale data of Babel, code from Python's own standard library, and the rest
is made: every script of Unicode, emoji with joiners and skin tones, digits of all kinds, runs of white space.
"""

from __future__ import annotations

import random
import sys
import sysconfig
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from babel import localedata

LANGUAGES = (
    "zh zh_Hant ja ko ar fa ur he ru uk bg sr el hy ka am hi mr ne bn pa gu ta te kn ml si th lo my km mn "
    "de fr es pt it nl pl cs sk hu ro sv fi tr vi id sw yo cy is mt eu"
)


def corpus(num_bytes: int = 2 * 2**20) -> list[str]:
    """Texts of some kilobytes each, a quarter code, half languages, a quarter made up; the same on every call."""
    rng = random.Random(7)
    parts = [(_languages(rng), 2), (_code(), 1), (_made_up(rng), 1)]
    shares = sum(share for _, share in parts)
    texts = []
    for source, share in parts:
        size = 0
        while size < num_bytes * share / shares:
            text = next(source)
            texts.append(text)
            size += len(text.encode())
    return texts


def _languages(rng: random.Random) -> Iterator[str]:
    words = {language: sorted(set(_strings(localedata.load(language)))) for language in LANGUAGES.split()}
    while True:
        for language in words:
            chosen = rng.choices(words[language], k=rng.randint(50, 250))
            yield "".join(word + rng.choice((" ", " ", " ", ", ", ". ", "，", "\n", "; ")) for word in chosen)


def _strings(tree: object) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif hasattr(tree, "items"):
        for value in tree.items():
            yield from _strings(value[1])


def _code() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    while True:
        for file in sorted(library.glob("*.py")):
            source = file.read_text(encoding="utf-8", errors="replace")
            yield from (source[start : start + 8000] for start in range(0, len(source), 8000))


def _made_up(rng: random.Random) -> Iterator[str]:
    assigned = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    numerals = [c for c in assigned if unicodedata.category(c)[0] == "N"]
    letters = [c for c in assigned if unicodedata.category(c)[0] == "L"]
    marks = [c for c in assigned if unicodedata.category(c)[0] == "M"]
    ascii_spaces = ["\t", "\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", " "]
    spaces = [*ascii_spaces, "\x85", "\u00a0", "\u200b", "\u2028", "\u3000", "\ufeff"]
    faces = [chr(c) for c in range(0x1F600, 0x1F650)]
    people = [chr(c) for c in (0x1F468, 0x1F469, 0x1F467, 0x1F466, 0x1F9D1, 0x1F3C3)]
    tones = ["", *(chr(c) for c in range(0x1F3FB, 0x1F400))]
    flags = [chr(c) for c in range(0x1F1E6, 0x1F200)]

    def piece() -> str:
        match rng.randrange(10):
            case 0:
                return "".join(rng.choices(assigned, k=rng.randint(1, 8)))
            case 1:
                return "".join(rng.choices(numerals, k=rng.randint(1, 6)))
            case 2:
                return str(rng.randrange(10 ** rng.randint(1, 20)))
            case 3:
                return rng.choice(spaces) * rng.randint(1, 9)
            case 4:
                return "".join(rng.choices(spaces, k=rng.randint(1, 6)))
            case 5:
                return "\u200d".join(rng.choice(people) + rng.choice(tones) for _ in range(rng.randint(1, 4)))
            case 6:
                return rng.choice(faces) * rng.randint(1, 5) + "".join(rng.choices(flags, k=2)) + "\ufe0f"
            case 7:
                return "".join(rng.choice(letters) + rng.choice(marks) for _ in range(rng.randint(1, 5)))
            case 8:
                return rng.choice(("I'm", "we'LL", "it’s", "a'b", "'S", "don't've")) + rng.choice(
                    "!?.,;:-_=/\\|<>[]{}()"
                )
            case _:
                return rng.choice("-=*#. \u2581~/") * rng.randint(2, 40)

    while True:
        yield "".join(piece() + rng.choice(("", "", " ", "  ")) for _ in range(400))
