"""The engine's log-probabilities in OpenAI's two layouts.

JSON has no minus infinity: like OpenAI we say -9999 for a token that cannot come. A token that is only a part of a
character has no text of its own; it is written ``bytes:\\xf0\\x9f``, so that distinct tokens stay distinct.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from wootz.core.wire import ChoiceLogprobs, CompletionLogprobs, TopLogprob
from wootz.core.wire import TokenLogprob as WireTokenLogprob
from wootz.engine.protocol import TokenLogprob

IMPOSSIBLE = -9999.0


def chat_logprobs(tokens: Sequence[TokenLogprob] | None, num_top: int) -> ChoiceLogprobs:
    """``choices[].logprobs`` of a chat chunk: one entry a token, each with its ``num_top`` likeliest alternatives."""
    content = [
        WireTokenLogprob(
            token=_text(token.token),
            logprob=max(token.logprob, IMPOSSIBLE),
            bytes=list(token.token),
            top_logprobs=[
                TopLogprob(token=_text(text), logprob=max(logprob, IMPOSSIBLE), bytes=list(text))
                for _, text, logprob in token.top[:num_top]
            ],
        )
        for token in tokens or ()
    ]
    return ChoiceLogprobs(content=content)


class CompletionLogprobsWriter:
    """``choices[].logprobs`` of ``/v1/completions``, chunk by chunk; knows how much text came before."""

    def __init__(self, num_top: int) -> None:
        self._num_top = num_top
        self._offset = 0
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def add_prompt(self, layout: CompletionLogprobs, tokens: Sequence[TokenLogprob], prompt: str) -> None:
        """Of a prompt that is echoed. Nothing comes before its first token, so that has none. Offsets are those in the
        prompt as it was given: what a tokenizer puts before it (a special token, a space) takes no place in it."""
        self.add(layout, tokens)
        if tokens:
            layout.token_logprobs[0] = layout.top_logprobs[0] = None
        extra = self._offset - len(prompt)
        layout.text_offset = [max(0, offset - extra) for offset in layout.text_offset]
        self._offset = len(prompt)

    def add(self, layout: CompletionLogprobs, tokens: Sequence[TokenLogprob] | None) -> None:
        """As in OpenAI's answers, ``top_logprobs`` always holds the chosen token too."""
        for token in tokens or ():
            layout.tokens.append(_text(token.token))
            layout.token_logprobs.append(max(token.logprob, IMPOSSIBLE))
            top = {_text(text): max(logprob, IMPOSSIBLE) for _, text, logprob in token.top[: self._num_top]}
            layout.top_logprobs.append(top | {_text(token.token): max(token.logprob, IMPOSSIBLE)})
            layout.text_offset.append(self._place(token.token))

    def _place(self, token: bytes) -> int:
        """Where the token begins in the text; one that is only a part of a character, where that character does."""
        before = self._offset
        self._offset += len(self._characters.decode(token))
        try:
            return self._offset - len(token.decode())  # Before it may stand the � of a character that broke off.
        except UnicodeDecodeError:
            return before


def _text(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
