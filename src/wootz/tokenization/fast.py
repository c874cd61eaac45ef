r"""`FastEncoder`: the ids of the `tokenizers` library, many times sooner.

`gigatoken` (https://github.com/marcelroed/gigatoken) finds words with SIMD code written for each known pattern instead
of a regex engine, and remembers the ids of words it has met. ``benchmarks/tokenization.py`` has the ratios. It stands
in for the library only where its ids *are* the library's, which is kept so in three ways:

- A vocabulary that it can't hold exactly is refused (`FastEncoder.of` returns None), among them every one whose ids
  differ on a text that probes the usual corners.
- What it can't do is put in terms that it can: where digits are cut apart before words (SmolLM2, StarCoder) they become
  added tokens, and bytes that a vocabulary has no token for get one that is never used.
- Single texts are left to the library (`encode` returns None): characters younger than the library's Unicode tables,
  text that NFC would change, bytes without a token.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import chain, islice
from string import digits
from typing import Any

import gigatoken
import tokenizers
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from wootz.tokenization.spelling import byte_level_alphabet

RENEW_AFTER = 64 * 2**20
"""Characters after which the word cache is thrown away. gigatoken 0.10 never forgets a word; this keeps the worst text
(random letters, 9 bytes of cache for each) under 600 MB, and costs half a second for the largest vocabularies."""

_PROBE = (
    "Hello, world!  We're   there's I'LL don't\n\n\r\n \t x=1234567890 3.14 ½²Ⅷ٣ \u3000\u00a0\u2028 naïve Ünïcödé "
    "def f(a, b):\n        return a[b] += `c` # éa\n\tWoRD camelCase XMLHttp/path/to.py 'single' \"dou\"ble -- $5"
    " 100%\n今天天气很好。日本語とカタカナ 한국어 русский عربى עברית हिन्दी ไทย 😀👩‍👩‍👧🏽 ſs 'ſ ▁▁"
    " <|x|> <0x41> \x00\x7f end  "
)


class FastEncoder:
    """Made by `of`. Threads may share it."""

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> FastEncoder | None:
        """An encoder with the ids of ``backend``, or None where gigatoken can't have them."""
        state = json.loads(backend.to_str())
        if state["model"]["type"] != "BPE" or state["model"].get("dropout") or not _plain(state["added_tokens"]):
            return None
        try:
            encoder = cls(state)
            specials = [token["content"] for token in state["added_tokens"]]
            probe = "".join(f"{text} a{text}{text}1\n" for text in (*specials[:20], *specials[-20:]))
            texts = [_PROBE, probe, _PROBE + probe, *_PROBE.split(" "), *(character * 40 for character in set(_PROBE))]
            library = [backend.encode(text, add_special_tokens=False).ids for text in texts]
            same = all(encoder.encode(text) in (None, ids) for text, ids in zip(texts, library, strict=True))
        except Exception:  # whatever it says about a vocabulary that it can't read
            return None
        return encoder if same and encoder.encode("a a") is not None else None

    def __init__(self, state: dict[str, Any]) -> None:
        """``state`` is the content of a ``tokenizer.json``. Raises what gigatoken raises when it can't be loaded."""
        self._nfc = state["normalizer"] == {"type": "NFC"}
        if self._nfc:
            state["normalizer"] = None
        self._cuts_digits = _take_digits(state)
        self._without_token = _complete_bytes(state["model"], state["pre_tokenizer"])
        self._json = json.dumps(state)
        self._renew()

    def encode(self, text: str) -> list[int] | None:
        """The library's ids, without what it adds around a document; None if it has to be asked.

        Raises `TypeError`, as the library does, for a text with a lone surrogate.
        """
        parts = self._parts(text)
        if parts is None:
            return None
        self._count(len(text))
        return [*chain.from_iterable(self._words.encode(part).tolist() for part in parts)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int] | None]:
        """`encode` of each, on all cores."""
        parts = [self._parts(text) for text in texts]
        everything = [part for some in parts for part in some or ()]
        self._count(sum(map(len, everything)))
        ids = iter(self._words.encode_batch_list(everything))
        return [None if some is None else [*chain.from_iterable(islice(ids, len(some)))] for some in parts]

    def _parts(self, text: str) -> list[str] | None:
        """What of ``text`` can be encoded piece by piece: mostly all of it, in one."""
        if any(character in text for character in self._without_token):
            return None
        if text.isascii():
            return [text]
        characters = set(text)
        if max(characters) > _LAST or not _unassigned().isdisjoint(characters):
            return None
        if self._nfc and not unicodedata.is_normalized("NFC", text):
            return None
        if self._cuts_digits and (numerals := _table(r"\P{N}+") & characters):
            return re.split(f"([{re.escape(''.join(numerals))}])", text)
        return [text]

    def _count(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            self._renew()

    def _renew(self) -> None:
        self._words = gigatoken.Tokenizer.from_json(self._json)
        self._left = RENEW_AFTER


# --- what gigatoken can't be trusted with ---------------------------------------------------------------------


def _plain(added: list[dict[str, Any]]) -> bool:
    """Whether added tokens are found in the text in one pass, each wherever it is written. The library makes two,
    one before and one after normalising, and that shows where tokens of the two overlap."""
    early = [token["content"] for token in added if not token["normalized"]]
    late = [token["content"] for token in added if token["normalized"]]
    if len(early) * len(late) > 100_000 or any(token["single_word"] for token in added):
        return False
    return not any(_overlap(a, b) or _overlap(b, a) for a in early for b in late)


def _overlap(left: str, right: str) -> bool:
    return right in left or any(left.endswith(right[:length]) for length in range(1, len(right)))


_LEADS_BEYOND = {0xC0, 0xC1, *range(0xF1, 0x100)}
"""Bytes that valid UTF-8 has nowhere, or only in characters beyond `_LAST`."""


def _complete_bytes(model: dict[str, Any], pre_tokenizer: dict[str, Any] | None) -> str:
    """Gives each byte without a token one that stays unused. Returns the characters that would use it."""
    if '"ByteLevel"' not in json.dumps(pre_tokenizer):
        return ""
    missing = {byte: text for byte, text in byte_level_alphabet().items() if text not in model["vocab"]}
    if any(byte >= 0x80 for byte in missing.keys() - _LEADS_BEYOND):
        raise ValueError("common characters lack a byte")
    first = max(model["vocab"].values(), default=-1) + 100_000
    model["vocab"] |= {text: first + n for n, text in enumerate(missing.values())}
    return "".join(chr(byte) for byte in missing if byte < 0x80)


_LAST = "\U00031fff"
"""Beyond it are only characters that nobody has written yet, and marks of variation."""


@cache
def _table(pattern: str) -> frozenset[str]:
    """The characters above ASCII of a class, by the tables of the library's own regex engine."""
    everything = "".join(map(chr, (*range(0x80, 0xD800), *range(0xE000, ord(_LAST) + 1))))
    return frozenset(
        chain.from_iterable(part for part, _ in Split(Regex(pattern), "removed").pre_tokenize_str(everything))
    )


def _unassigned() -> frozenset[str]:
    """The library's Unicode is older than gigatoken's, which sees letters where the library sees nothing yet."""
    return _table(r"\P{Cn}+")


def _take_digits(state: dict[str, Any]) -> bool:
    """Takes over the pre-tokenizer's first step where that is to isolate digits: an added token stands alone too, so
    each of 0-9 becomes one, with the id it has. Returns whether it did; rarer numerals have no such id."""
    steps = (state["pre_tokenizer"] or {}).get("pretokenizers", [])
    if len(steps) == 1:
        state["pre_tokenizer"] = steps[0]  # gigatoken knows GPT-2's cut only on its own
    if not steps or steps[0] != {"type": "Digits", "individual_digits": True}:
        return False
    if any(token["lstrip"] or token["rstrip"] or not token["content"].isascii() for token in state["added_tokens"]):
        raise ValueError("an added token reaches beyond a numeral, or holds one")
    state["pre_tokenizer"] = steps[1] if len(steps) == 2 else {"type": "Sequence", "pretokenizers": steps[1:]}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    state["added_tokens"] += [{"id": state["model"]["vocab"][digit], "content": digit, **plain} for digit in digits]
    return True
