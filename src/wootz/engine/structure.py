"""What a request wants its answer to be, made into a prompt that says so, a grammar, and a reader of the answer.

Three wishes meet here: a structure for the text (`StructuredOutput`), tools to call (`ToolUse`), and a model that
thinks before it answers. The grammar is one for all: thoughts, then calls in the model's own format or the text in its
structure. Of a request with ``choice="auto"`` the text is free, and what follows the format's trigger is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from wootz.core import BadRequestError, UnsupportedError
from wootz.engine.answer import AnswerStream
from wootz.engine.grammar import CompiledGrammar, Constraint, GrammarCompiler
from wootz.engine.protocol import StructuredOutput, ToolUse
from wootz.tokenization.tool_formats import (
    JSON_OPTIONS,
    THINK,
    THINK_END,
    AnswerReader,
    Grammar,
    ParsedCall,
    Thinking,
    Tool,
    ToolFormat,
    detect_tool_format,
    knows_tools,
    tool_format,
)

if TYPE_CHECKING:
    from wootz.tokenization import Tokenizer

GAP = r"/[\n ]{1,4}/"
"""Between thoughts and answer."""

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class AnswerPlan:
    """How one request's answers are constrained and read. ``shown_ids`` are special tokens that the reader sees."""

    grammar: CompiledGrammar | None = None
    format: ToolFormat | None = None
    tools: tuple[Tool, ...] = ()
    thinking: Thinking = "none"
    shown_ids: frozenset[int] = frozenset()

    def begin(self) -> Constraint | None:
        """A place in the grammar for one choice."""
        return self.grammar.begin() if self.grammar is not None else None

    def new_answer(self) -> AnswerStream | None:
        """A reader for one choice; None where the text is all there is."""
        if self.format is None and self.thinking == "none":
            return None
        reader = AnswerReader(self.format, self.tools, thinking=self.thinking)
        return AnswerStream(reader, id_chars=self.format.id_chars if self.format else None)


class Planner:
    """One engine's. Threads may share it. ``format`` is a name, or None for what the chat template shows."""

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, end_token_ids: frozenset[int], format: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.template = tokenizer.chat_template.source if tokenizer.chat_template else None
        self.format = tool_format(format) if format else detect_tool_format(self.template)
        self.compiler = GrammarCompiler(tokenizer, vocab_size, end_token_ids)
        self.thinks = self.format.name != "harmony" and THINK_END in (self.template or "")
        self._special = {text.decode(): id for id in tokenizer.special_ids if (text := tokenizer.token_bytes(id))}
        shown = (self.format.trigger, *self.format.markers, THINK, THINK_END)
        self._shown_ids = frozenset(self._special[text] for text in shown if text in self._special)

    # --- the prompt -------------------------------------------------------------------------------------------

    def prompt(self, messages: Messages, use: ToolUse | None) -> tuple[Messages, list[dict[str, Any]] | None]:
        """The messages and tools for the chat template. One that knows no tools is told in words."""
        offered = use is not None and use.choice != "none"
        if knows_tools(self.template):
            return messages, use.tools if use and offered else None
        messages = [self._in_words(message) for message in messages]
        if use and offered:
            messages = _with_system(messages, self._instructions(use))
        return messages, None

    def _in_words(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        content = message.get("content") or ""
        if message.get("role") == "tool":
            return {"role": "user", "content": self.format.result(content)}
        if calls := message.get("tool_calls"):
            written = self.format.write(
                [ParsedCall(call["function"]["name"], call["function"]["arguments"]) for call in calls]
            )
            return {"role": "assistant", "content": f"{content}\n{written}" if content else written}
        return message

    def _instructions(self, use: ToolUse) -> str:
        tools = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in use.tools)
        return (
            f"You can call these functions:\n{tools}\n\nTo call one, answer in exactly this form, with its name and a "
            f"value for each argument:\n{self.format.example()}"
        )

    # --- the answer -------------------------------------------------------------------------------------------

    def plan(
        self, structured: StructuredOutput | None, use: ToolUse | None, *, chat: bool, prompt_ids: Sequence[int]
    ) -> AnswerPlan:
        """Raises `BadRequestError` for a structure that can't be enforced."""
        if use is not None and use.choice == "none":
            use = None
        thinking = self._thinking(prompt_ids) if chat else "none"
        format = self.format if chat and (use is not None or self.format.name == "harmony") else None
        tools, guarantee = self._tools(use) if use is not None else ((), "schema")
        return AnswerPlan(
            self._grammar(structured, use, tools, guarantee, format, thinking),
            format,
            tools,
            thinking,
            self._shown_ids if format is not None or thinking != "none" else frozenset(),
        )

    def _thinking(self, prompt_ids: Sequence[int]) -> Thinking:
        if not self.thinks:
            return "none"
        tail = self.tokenizer.decode(prompt_ids[-8:], skip_special_tokens=False).rstrip()
        return "begun" if tail.endswith(THINK) else "may"

    def _tools(self, use: ToolUse) -> tuple[tuple[Tool, ...], str]:
        """The tools as far as they can be enforced, and what that makes certain."""
        tools, guarantee = [], "schema"
        for number, definition in enumerate(use.tools):
            function = definition["function"]
            if use.name not in (None, function["name"]):
                continue
            schema = {"type": "object", "properties": {}, **(function.get("parameters") or {})}
            if "additionalProperties" not in schema and "patternProperties" not in schema:
                schema["additionalProperties"] = False  # no argument that the function does not have
            param = f"tools[{number}].function.parameters"
            try:
                self.compiler.compile(_json_grammar(schema), param=param)
            except BadRequestError:
                if function.get("strict"):
                    raise
                schema, guarantee = {"type": "object"}, "json"
            tools.append(Tool(function["name"], schema))
        return tuple(tools), guarantee

    def _grammar(
        self,
        structured: StructuredOutput | None,
        use: ToolUse | None,
        tools: Sequence[Tool],
        guarantee: str,
        format: ToolFormat | None,
        thinking: Thinking,
    ) -> CompiledGrammar | None:
        if structured is None and use is None:
            return None
        content, param = None, "tools"
        if structured is not None:
            content, param = content_grammar(structured), structured.param
            if structured.json_object and guarantee == "schema":
                guarantee = "json"
        if content is not None and use is None and format is None and thinking == "none":
            return self._compiled(json.dumps({"grammars": [content]}), param, guarantee)
        grammar = Grammar(self._special)
        if content is not None and use is not None and format is not None and format.only_first:
            raise UnsupportedError(
                f'this model\'s tool calls ("{format.name}") look like a structured answer; ask for one of the two',
                param=param,
            )
        if use is not None and (use.choice == "required" or use.name is not None):
            text = None
        else:
            text = "TEXT" if content is None else "@content"
        if format is not None:
            start = format.start(grammar, tools, parallel=use is not None and use.parallel, content=text)
        else:
            start = text or ""
        if thinking != "none":
            grammar.rule("answer", start)
            thoughts = grammar.rule("thoughts", grammar.text_before("thought", THINK_END))
            begun = thoughts if thinking == "begun" else f"{grammar.literal(THINK)} {thoughts}"
            start = f"{begun} GAP? answer" + ("" if thinking == "begun" else " | answer")
            grammar.rule("GAP", GAP)
        grammars = [{"name": "main", "lark_grammar": grammar.text(start)}]
        if text == "@content" and content is not None:
            grammars.append({"name": "content", **content})
        return self._compiled(json.dumps({"grammars": grammars}), param, guarantee, lazy=text == "TEXT")

    def _compiled(self, text: str, param: str, guarantee: str, *, lazy: bool = False) -> CompiledGrammar:
        matcher = self.compiler.compile(text, param=param)
        return CompiledGrammar(matcher, self.compiler.vocabulary.vocab_size, guarantee, lazy)


def content_grammar(structured: StructuredOutput) -> dict[str, Any]:
    """The structure as one grammar of llguidance's. Raises `BadRequestError` for GBNF that is none."""
    match structured:
        case StructuredOutput(regex=str() as regex):
            return {"lark_grammar": f"start: /{llguidance.regex_to_lark(regex)}/"}
        case StructuredOutput(choice=tuple() as choice):
            return {"lark_grammar": f"start: {' | '.join(map(json.dumps, choice))}"}
        case StructuredOutput(grammar=str() as grammar):
            try:
                return {"lark_grammar": any_to_lark(grammar)}
            except Exception:  # whatever its parser says
                raise BadRequestError(
                    f'"{structured.param}" is neither Lark nor GBNF', param=structured.param
                ) from None
        case StructuredOutput(json_schema=None, json_object=True):
            return json.loads(_json_grammar({"type": "object"}))["grammars"][0]
        case StructuredOutput(json_schema=bool() | dict() as schema):
            return json.loads(_json_grammar(schema))["grammars"][0]
    raise UnsupportedError("no structure is given", param=structured.param)


def _json_grammar(schema: Mapping[str, Any] | bool) -> str:
    schema = {**schema} if isinstance(schema, Mapping) else {"allOf": [schema]}
    return json.dumps({"grammars": [{"json_schema": schema | {"x-guidance": JSON_OPTIONS}}]})


def _with_system(messages: Messages, text: str) -> Messages:
    first = messages[0] if messages else {}
    if first.get("role") == "system":
        return [{**first, "content": f"{first.get('content') or ''}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
