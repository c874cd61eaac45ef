"""gpt-oss writes *Harmony* (https://github.com/openai/harmony): an answer is a run of messages, each with a channel.

    <|channel|>analysis<|message|>I should look it up.<|end|><|start|>assistant
    <|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Zürich"}<|call|>

The channel "analysis" is what the model thinks, "final" what it says, and a recipient makes a message a call.
``<|call|>`` and ``<|return|>`` are end tokens, so they are no part of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from wootz.tokenization.tool_formats.base import ParsedCall, ToolFormat, any_of, dump
from wootz.tokenization.tool_formats.cursor import CallEnd, CallStart, Cursor, Reasoning, Steps, Text
from wootz.tokenization.tool_formats.grammar import Grammar, Tool
from wootz.tokenization.tool_formats.json_text import arguments

CHANNEL, MESSAGE, CONSTRAIN = "<|channel|>", "<|message|>", "<|constrain|>"
START, END, CALL, RETURN = "<|start|>", "<|end|>", "<|call|>", "<|return|>"
_RECIPIENT = re.compile(r"to=(?:functions\.)?(\S+?)(?=<\||\s|$)")


class Harmony(ToolFormat):
    name = "harmony"
    trigger = CHANNEL
    markers = (MESSAGE, CONSTRAIN, START, END)

    def body(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        begun = [f"commentary to=functions.{tool.name} {CONSTRAIN}json{MESSAGE}" for tool in tools]
        return any_of(
            [f"{grammar.literal(text)} {grammar.json(tool.schema)}" for text, tool in zip(begun, tools, strict=True)]
        )

    def start(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool, content: str | None) -> str:
        """Maybe an analysis, and then a call or the final message."""
        thoughts = grammar.text_before("thoughts", END)
        analysis = f"{grammar.literal(f'{CHANNEL}analysis{MESSAGE}')} {thoughts} {grammar.literal(f'{START}assistant')}"
        ways = [f"{grammar.literal(CHANNEL)} {grammar.rule('calls', self.body(grammar, tools, parallel=parallel))}"]
        ways = ways if tools else []
        if content is not None:
            ways.append(f"{grammar.literal(f'{CHANNEL}final{MESSAGE}')} {content}")
        grammar.rule("analysis", analysis)
        grammar.rule("answer", any_of(ways))
        return "analysis? answer"

    def read(self, cursor: Cursor) -> Steps[None]:
        """Message after message; an answer that begins in another way is text."""
        while (yield from cursor.some()):
            yield from self._block(cursor, "")
            if not cursor.block_was_whole:
                yield from cursor.say_until(Text)

    def calls(self, cursor: Cursor) -> Steps[None]:
        """One message."""
        yield from cursor.literal(f"{START}assistant", CHANNEL)
        header, _ = yield from cursor.until(MESSAGE)
        recipient = _RECIPIENT.search(header)
        if recipient:
            cursor.emit(CallStart(recipient[1]))
            yield from arguments(cursor)
            cursor.emit(CallEnd())
            yield from cursor.space()
            yield from cursor.literal(CALL, END, or_end=True)
        else:
            yield from cursor.say_until(Reasoning if "analysis" in header else Text, END, RETURN)

    def write(self, calls: Sequence[ParsedCall]) -> str:
        written = (
            f"{CHANNEL}commentary to=functions.{call.name} {CONSTRAIN}json{MESSAGE}{dump(call.arguments)}{CALL}"
            for call in calls
        )
        return f"{START}assistant".join(written)
