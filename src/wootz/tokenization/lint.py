"""What is wrong between a tokenizer, its chat template and a conversation, before a model answers badly for it.

None of these mistakes raises an error by itself: a prompt with two BOS tokens, or without a generation prompt, is
answered, only worse. Each finding says what was seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wootz.core.errors import BadRequestError
from wootz.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class Finding:
    code: str
    """For example ``bos-doubled``; stable, to be filtered by."""
    severity: Literal["error", "warning", "note"]
    message: str


_USER, _ANSWER = {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi there."}
_LOOKS_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?[A-Z_]{3,40}\]|<(?:start|end)_of_turn>")
_PLAIN_TURN = re.compile(r"^\s*(user|human|assistant|ai|system|bot)\s*:", re.IGNORECASE | re.MULTILINE)


def lint_tokenizer(tokenizer: Tokenizer) -> list[Finding]:
    """What the template makes of two plain messages, seen by the tokenizer."""
    return list(_tokenizer_findings(tokenizer))


def _tokenizer_findings(tokenizer: Tokenizer) -> Iterator[Finding]:
    if not tokenizer.eos_token_ids:
        yield Finding("no-end", "error", "no token ends an answer: it will go on until max_tokens")
    template = tokenizer.chat_template
    if template is None:
        yield Finding("no-template", "note", "no chat template: only plain completions")
        return
    try:
        asked = template.render([_USER], add_generation_prompt=True)
        silent = template.render([_USER], add_generation_prompt=False)
        answered = template.render([_USER, _ANSWER], add_generation_prompt=False)
    except BadRequestError as error:
        yield Finding("template-fails", "error", f"a plain question and answer: {error}")
        return

    if (bos := tokenizer.bos_token_id) is not None:
        ids = tokenizer.encode(asked, add_special_tokens=False)
        if ids[:2] == [bos, bos]:
            yield Finding("bos-doubled", "error", "the template writes BOS twice")
        elif tokenizer.encode(asked)[:2] == [bos, bos]:
            yield Finding(
                "bos-added-twice",
                "note",
                "template and encoder both add BOS: encode a rendered chat with add_special_tokens=False",
            )
    if asked == silent:
        yield Finding(
            "no-generation-prompt",
            "warning",
            "the template ignores add_generation_prompt: "
            + ("it always asks for an answer, in training data too" if _asks(asked) else "it never asks"),
        )
    elif not asked.startswith(silent):
        yield Finding("prompt-rewritten", "warning", "with a generation prompt the template changes what came before")
    if not answered.startswith(asked.rstrip()):
        yield Finding(
            "answer-elsewhere",
            "warning",
            "an answer in the history does not stand where the generation prompt asked for it: "
            "no prompt is the beginning of the next, so nothing of it can be shared",
        )
    tail = tokenizer.encode(answered[answered.rindex("Hi there.") :], add_special_tokens=False)
    if tokenizer.eos_token_ids and not tokenizer.eos_token_ids.intersection(tail):
        yield Finding("turn-without-end", "error", "no end token follows an answer: the model never learns to stop")
    for text in sorted(set(_LOOKS_CONTROL.findall(template.source))):
        if len(tokenizer.encode(text, add_special_tokens=False)) > 1:
            yield Finding("not-a-token", "error", f"the template writes {text}, which this tokenizer cuts to pieces")
    if not template.marks_generation:
        yield Finding("no-mask", "note", "no {% generation %}: training finds the model's part by comparing renderings")


def _asks(text: str) -> bool:
    return not text.rstrip().endswith(_USER["content"]) and "assistant" in text[text.rindex(_USER["content"]) :]


def lint_messages(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """A conversation that is to be answered: order of roles, and control tokens where they are only text."""
    return list(_message_findings(tokenizer, messages))


def _message_findings(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    if not messages:
        yield Finding("empty", "error", "there are no messages")
        return
    roles = [str(message.get("role")) for message in messages]
    if late := [index for index, role in enumerate(roles) if role == "system" and index]:
        yield Finding("system-late", "warning", f"message {late[0]} is a system message, but not the first")
    called: set[str] = set()
    for index, (role, message) in enumerate(zip(roles, messages, strict=True)):
        before = next((role for role in reversed(roles[:index]) if role != "system"), None)
        if role in ("user", "assistant") and role == before:
            yield Finding("not-alternating", "warning", f"message {index} is by the {role}, as the one before it")
        elif role == "assistant" and before is None:
            yield Finding("answer-first", "warning", f"message {index} answers before anything was asked")
        elif role == "tool" and message.get("tool_call_id") is not None and message["tool_call_id"] not in called:
            yield Finding("result-without-call", "error", f"message {index} is the result of a call that nobody made")
        elif role == "tool" and before not in ("assistant", "tool"):
            yield Finding(
                "result-without-call", "error", f"message {index} is a tool's result, but no call precedes it"
            )
        called.update(call["id"] for call in message.get("tool_calls") or [] if call.get("id"))
        content = message.get("content")
        if isinstance(content, str) and role != "assistant":
            if found := tokenizer.control_syntax.token.search(content):
                yield Finding("control-in-text", "note", f"message {index} spells {found[0]}: it is encoded as text")
            if len(set(map(str.lower, _PLAIN_TURN.findall(content)))) > 1:
                yield Finding(
                    "plain-turns", "warning", f'message {index} holds a dialogue in "User: … Assistant:" form'
                )
    if roles[-1] == "assistant":
        yield Finding("already-answered", "warning", "the last message is the assistant's: there is nothing to answer")
    if tokenizer.chat_template is not None:
        try:
            tokenizer.chat_template.render(messages)
        except BadRequestError as error:
            yield Finding("refused", "error", str(error))


def lint_prompt(tokenizer: Tokenizer, prompt: str) -> list[Finding]:
    """A prompt that is already text, on its way to be encoded as a document."""
    findings = []
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer.encode(prompt)[:2] == [bos, bos]:
        findings.append(Finding("bos-doubled", "error", "the prompt writes BOS and the encoder adds it once more"))
    has_control = tokenizer.control_syntax.token.search(prompt) is not None
    if tokenizer.chat_template is not None and not has_control and _PLAIN_TURN.search(prompt):
        findings.append(
            Finding(
                "plain-turns",
                "warning",
                'the prompt has "User:" / "Assistant:" turns, but this model was trained on its chat template',
            )
        )
    return findings
