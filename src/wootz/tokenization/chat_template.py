"""Chat templates: a conversation becomes the text its model was trained on.

A template is a Jinja program that comes with the model, so it is untrusted: it runs in Jinja's immutable sandbox
(no Python internals, no changing of what it is given), its loops and calls are counted, and whatever goes wrong in it
is the request's `BadRequestError`. What it may use is what transformers offers templates
(https://huggingface.co/docs/transformers/chat_templating_writing): ``raise_exception``, ``strftime_now``, plain
``tojson``, ``{% break %}`` and ``{% continue %}``, and ``{% generation %}``, which marks what the model itself writes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from wootz.core.errors import BadRequestError, ModelFileError

MAX_STEPS = 200_000
"""Most loop passes and calls of one rendering. A conversation of a thousand messages takes some thousands."""
MAX_RESULT = 1_000_000
"""Most characters, items or bits of what one ``*`` or ``**`` makes."""


class ChatTemplate:
    """One compiled template. ``special_tokens`` maps roles to token texts: ``{"bos_token": "<s>", …}``.

    Raises `ModelFileError` when ``source`` is not a template.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self.marks_generation = "endgeneration" in source
        """Whether the template says which part is the model's own."""
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except TemplateSyntaxError as error:
            raise ModelFileError(f"chat template, line {error.lineno}: {error.message}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        generation_marks: tuple[str, str] = ("", ""),
    ) -> str:
        """The conversation's text, up to where the answer begins if ``add_generation_prompt``.

        ``generation_marks`` go before and after each part in ``{% generation %}``. Raises `BadRequestError`, in one
        line, when the template refuses the messages or fails on them.
        """
        token, marks = _steps.set(itertools.count(1)), _marks.set(generation_marks)
        try:
            return self._template.render(
                messages=list(messages),
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except Exception as error:  # the template is foreign code: it may fail in any way
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise BadRequestError(f"the chat template refuses these messages: {reason}", param="messages") from None
        finally:
            _steps.reset(token)
            _marks.reset(marks)


# --- the sandbox ----------------------------------------------------------------------------------------------

_steps: ContextVar[Iterator[int]] = ContextVar("steps")
_marks: ContextVar[tuple[str, str]] = ContextVar("marks")


def _count_step() -> None:
    if next(_steps.get()) > MAX_STEPS:
        raise TemplateError(f"it takes more than {MAX_STEPS} steps")


@pass_context
def _counted(_: Context, iterable: Iterable[Any]) -> Iterator[Any]:
    for item in iterable:
        _count_step()
        yield item


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox keeps a template away from Python; this one also bounds how much it computes."""

    intercepted_binops = frozenset({"*", "**"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        return tree

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _count_step()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if _result_size(operator, left, right) > MAX_RESULT:
            raise TemplateError(f'the result of "{operator}" is too large')
        return super().call_binop(context, operator, left, right)


def _result_size(operator: str, left: Any, right: Any) -> int:
    """Characters, items or bits of ``left operator right``, at most."""
    match operator, left, right:
        case "**", int(), int():
            return left.bit_length() * abs(right)
        case "*", int(), int():
            return left.bit_length() + right.bit_length()
        case "*", Sized(), int():
            return len(left) * right
        case "*", int(), Sized():
            return left * len(right)
    return 0


class _GenerationBlock(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the answer for training masks."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Callable[[], str]) -> str:
        opening, closing = _marks.get()
        return opening + caller() + closing


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own ``tojson`` escapes for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControls, _GenerationBlock])
    environment.filters |= {"tojson": _to_json, "_counted": _counted}
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    environment.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)  # the type would lend its mutators
    del environment.globals["lipsum"]
    return environment


_ENVIRONMENT = _environment()
