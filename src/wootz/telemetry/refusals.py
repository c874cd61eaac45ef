"""Whether an answer is a refusal, by its first words. A measure for a trend, not a verdict on one answer.

Models refuse in set phrases, and nearly always begin with them; that the share of such beginnings rises is what an
alert is about. (A provider that says it itself ends with ``content_filter``.) Only the first characters are kept, and
only while the answer is under way.
"""

from __future__ import annotations

import re

from wootz.core.wire import ChunkChoice, CompletionChoice

ENOUGH_CHARS = 120

_CANNOT = r"(can['’]?t|cannot|can not|won['’]?t|will not|(am|['’]m) (not able|unable))"
_WHAT = r"(help|assist|provide|comply|create|generate|do that|fulfil|share|give|discuss|engage|support|answer)"
_REFUSAL = re.compile(
    rf"""^\W*(?:(?:but|no)\W+)?(
        (i['’]?m|i am) (very |really |so )?(sorry|afraid)\b[^.!?]{{0,40}}\bi ?{_CANNOT}
      | (sorry|unfortunately|i apologi[sz]e|as an ai)\b[^.!?]{{0,40}}\bi ?{_CANNOT}
      | i ?{_CANNOT}( to)?( {_WHAT}|[,.]|$)
      | i (must|have to) (decline|refuse)
      | (很?抱歉|对不起|非常抱歉)[^。!!]{{0,20}}(无法|不能|不便)
      | 我(无法|不能)(提供|协助|帮助|回答|满足|生成)
      | es tut mir leid\b
      | ich kann (dir|ihnen|das|dabei) nicht\b
      | je ne peux pas\b
      | je suis désolée?\b
      | lo siento\b
      | no puedo (ayudar|hacer)\b
      | 申し訳
    )""".replace("\n      | ", "|")
    .replace("\n        ", "")
    .replace("\n    ", ""),
    re.IGNORECASE,
)


def is_refusal(opening: str) -> bool:
    """By the first 120 characters."""
    return _REFUSAL.match(opening[:ENOUGH_CHARS]) is not None


class Ear:
    """Listens to an answer's beginning. Of several choices the first one counts."""

    __slots__ = ("_opening",)

    def __init__(self) -> None:
        self._opening = ""

    def hear(self, choice: ChunkChoice | CompletionChoice) -> None:
        if len(self._opening) < ENOUGH_CHARS and not choice.index:
            text = choice.text if isinstance(choice, CompletionChoice) else choice.delta.content
            self._opening += (text or "")[:ENOUGH_CHARS]

    @property
    def hears_refusal(self) -> bool:
        return is_refusal(self._opening)
