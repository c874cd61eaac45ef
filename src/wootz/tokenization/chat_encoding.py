"""A conversation straight to ids: control tokens come from the template alone, and training sees who wrote what.

Two things must be known of the rendered text: what a message wrote rather than the template (so that ``<|im_end|>`` in
a message stays text), and what is the model's own part (the mask for supervised training). Jinja tells neither, so
the characters do: a character that may begin a control token in a message is replaced, one for one, by one that
nobody uses, and put back after rendering; ``{% generation %}`` writes two such characters around its part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wootz.core.errors import UnsupportedError

if TYPE_CHECKING:
    from wootz.tokenization.tokenizer import Tokenizer

PRIVATE_PLANE = range(0xF0000, 0xFFFFE)
"""Characters that Unicode leaves to private agreement (Supplementary Private Use Area-A)."""


@dataclass(frozen=True)
class EncodedChat:
    ids: list[int]
    assistant_mask: list[bool]
    """One per id: whether the model is to learn to write it."""


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
) -> list[int]:
    """See `Tokenizer.encode_chat`. For messages without control tokens in them, the ids of ``encode(render(…))``.

    An assistant's message may write markup that is not special (``<think>``, ``<tool_call>``), as the model did; the
    names and arguments of its calls may not.
    """
    chat = _Rendering(tokenizer, messages, tools)
    text = chat.render(add_generation_prompt=add_generation_prompt)
    return chat.encode(chat.reveal(text))


def encode_chat_masked(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None
) -> EncodedChat:
    """A finished conversation with the mask that transformers gives as ``assistant_masks``: the tokens of which any
    part is in ``{% generation %}``. A template without it is rendered once for each turn, and what an assistant's turn
    adds after its generation prompt is the model's, up to the control token that ends it.

    Raises `UnsupportedError` if such a template writes earlier turns differently once others follow.
    """
    chat = _Rendering(tokenizer, messages, tools)
    text = chat.reveal(chat.render(add_generation_prompt=False))
    text, spans = chat.marked_spans(text) if chat.template.marks_generation else (text, chat.added_spans(text))
    ids, offsets = chat.encode_with_offsets(text)
    mask = [any(start < end and begin < stop for start, stop in spans) for begin, end in offsets]
    return EncodedChat(ids, mask)


class _Rendering:
    """One conversation in disguise. `render` gives text that still wears it; `reveal` takes it off."""

    def __init__(
        self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> None:
        if tokenizer.chat_template is None:
            raise UnsupportedError("this model has no chat template; use /v1/completions", param="messages")
        self.tokenizer, self.template = tokenizer, tokenizer.chat_template
        self._syntax = tokenizer.control_syntax
        self._names_tokens = False
        self._unused = _unused_characters([messages, tools, self.template.source])
        self._marks = (next(self._unused), next(self._unused)) if self.template.marks_generation else ("", "")
        self._private: dict[str, str] = {}
        self._messages = [self._disguise_message(message) for message in messages]
        self._tools = self._disguise(tools, self._syntax.beginning)

    def render(self, num_messages: int | None = None, *, add_generation_prompt: bool) -> str:
        """The first ``num_messages``, or all."""
        return self.template.render(
            self._messages[:num_messages],
            tools=self._tools,
            add_generation_prompt=add_generation_prompt,
            generation_marks=self._marks,
        )

    def reveal(self, text: str) -> str:
        """The text for `encode`: messages as they were written, and the template's control tokens under their secret
        names if the messages spell some out."""
        if not self._private:
            return text
        shown = self._undisguise(text)
        if self._spans(text) == self._spans(shown) and not self._names_tokens:
            return shown
        self._names_tokens = True
        return self._undisguise(self.tokenizer.literal.mark(text))

    def encode(self, text: str) -> list[int]:
        for mark in filter(None, self._marks):
            text = text.replace(mark, "")
        if self._names_tokens:
            return self.tokenizer.literal.encoding(text)[0]
        return self.tokenizer.segments.encode(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        return (self.tokenizer.literal if self._names_tokens else self.tokenizer).encoding(text)

    # --- the model's own part -------------------------------------------------------------------------------------

    def marked_spans(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """The text without the marks of ``{% generation %}``, and where they were."""
        opening, closing = self._marks
        parts, spans, length = [], [], 0
        for part in re.split(f"({opening}[^{closing}]*{closing})", text):
            inside = part.startswith(opening)
            part = part.strip(opening + closing) if inside else part
            if inside:
                spans.append((length, length + len(part)))
            parts.append(part)
            length += len(part)
        return "".join(parts), spans

    def added_spans(self, text: str) -> list[tuple[int, int]]:
        """What each assistant's turn adds to the text before it."""
        spans = []
        for index, message in enumerate(self._messages):
            if message.get("role") != "assistant":
                continue
            before = self.reveal(self.render(index, add_generation_prompt=True))
            after = self.reveal(self.render(index + 1, add_generation_prompt=False))
            if not (text.startswith(after) and after.startswith(before)):
                raise UnsupportedError(
                    f"the chat template does not tell which part of message {index} the model writes",
                    hint="mark it with {% generation %} … {% endgeneration %}",
                )
            spans.append((len(before), len(self._until_its_end(after))))
        return spans

    def _until_its_end(self, turn: str) -> str:
        """White space after the token that ends a turn is the template's."""
        ends = self._syntax.texts + (self.tokenizer.literal.names if self._names_tokens else ())
        return turn.rstrip() if turn.rstrip().endswith(ends) else turn

    # --- the disguise ---------------------------------------------------------------------------------------------

    def _disguise_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        outside_markup = message.get("role") == "assistant"
        return {
            key: self._disguise(
                value,
                self._syntax.beginning_outside_markup
                if outside_markup and key != "tool_calls"
                else self._syntax.beginning,
            )
            for key, value in message.items()
        }

    def _disguise(self, value: Any, pattern: re.Pattern[str]) -> Any:
        match value:
            case str():
                return pattern.sub(self._hide, value)
            case Mapping():
                return {self._disguise(key, pattern): self._disguise(item, pattern) for key, item in value.items()}
            case list() | tuple():
                return [self._disguise(item, pattern) for item in value]
        return value

    def _hide(self, match: re.Match[str]) -> str:
        if match[0] not in self._private:
            self._private[match[0]] = next(self._unused)
        return self._private[match[0]]

    def _undisguise(self, text: str) -> str:
        for character, private in self._private.items():
            text = text.replace(private, character).replace(json.dumps(private)[1:-1], character)
        return text

    def _spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in self._syntax.token.finditer(text)]


def _unused_characters(values: Any) -> Iterator[str]:
    """Found out when the first is asked for."""
    used = set()
    stack = [values]
    while stack:
        match stack.pop():
            case str() as text:
                used.update(text)
            case Mapping() as mapping:
                stack += [*mapping.keys(), *mapping.values()]
            case list() | tuple() as items:
                stack += items
    yield from (chr(code) for code in PRIVATE_PLANE if chr(code) not in used)
