"""`StreamDecoder`: text out of tokens as they come, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from wootz.tokenization.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes one sequence step by step, in time proportional to the new tokens only.

    All pushes and the final flush, joined, equal `Tokenizer.decode` of all ids. The one state is UTF-8's: up to three
    bytes of a character that is not complete yet.

    SentencePiece puts a space before a text, and decoding drops it. With ``continues_text`` the tokens go on from a
    text that came before (a prompt to complete), so a space in front is the model's own and stays. ``shown_ids`` are
    special tokens that are not skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        continues_text: bool = False,
        shown_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids - shown_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drops_space = tokenizer.strips_leading_space and not continues_text

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; what of them is still half a character comes with a later push."""
        data = b"".join(self._tokenizer.token_bytes(id) for id in token_ids if id not in self._skip)
        return self._text(self._utf8.decode(data))

    def flush(self) -> str:
        """The end: a character that stayed incomplete comes out as U+FFFD."""
        return self._text(self._utf8.decode(b"", final=True))

    def _text(self, text: str) -> str:
        if self._drops_space and text:
            self._drops_space = False
            return text.removeprefix(" ")
        return text
