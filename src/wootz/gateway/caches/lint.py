"""Where do requests that could share their beginning stop doing so, by what, and what does that cost?

A provider reads a prompt as tools, then system prompt, then messages, and keeps it up to the first character that is
another one. So a date in the first line of a system prompt makes everything behind it be computed again each time.
Requests are laid out here in that order, sorted into groups that mean to be the same (one model, equal names of tools),
and each group is searched for two things: the place where its members part, with what stands there; and, where they
agree, what will part them from the next day's or the next user's.

What it costs: the characters that most members have in common *behind* the first break would be read from the cache if
the break stood behind them. Tokens are estimated from characters.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from wootz.core import BadRequestError, NotFoundError

CHARS_PER_TOKEN = 4
MAX_COMPARED = 200
"""Members of a group that are compared with its first."""
EARLY = 0.5
"""Of the prefix before the first message of a user: what changes in that part breaks nearly everything."""

CHANGING = {
    "date or time": re.compile(
        r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2})?)?|\b\d{1,2}:\d{2}(?::\d{2})?\s?(?:am|pm|AM|PM)?\b|"
        r"\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b|"
        r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b|\b(?:January|February|March|April|June|July|August|"
        r"September|October|November|December) \d{1,2}\b"
    ),
    "UUID": re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE),
    "long number or id": re.compile(r"\b\d{9,}\b|\b(?=[0-9a-f]*\d)[0-9a-f]{16,}\b|\b[a-z]{2,8}[_-][A-Za-z0-9]{12,}\b"),
    "user's name or address": re.compile(
        r"\b[\w.+-]+@[\w-]+\.[\w.]+\b|(?i:\b(?:user(?:name| name| id)?|customer|name)\b(?: is|:| =|=) ?)\S+"
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    where: str
    """``messages[0] at 57``, or ``tools``."""
    what: str
    text: str
    requests: int
    lost_tokens: int
    """Per request: tokens behind it that most requests have in common."""


@dataclass(frozen=True, slots=True)
class Group:
    model: str
    requests: int
    prompt_tokens: int
    """Of all of them."""
    shared_tokens: int
    """Of all but the first: what stands before their first difference."""
    lost_tokens: int
    findings: list[Finding]

    @property
    def cacheable(self) -> float:
        return self.shared_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def saved(self, input_price: Decimal, cached_price: Decimal) -> Decimal:
        """USD for these requests, were the breaks mended; prices per million tokens."""
        return self.lost_tokens * (input_price - cached_price) / 1_000_000


def read_requests(file: Path) -> list[dict[str, Any]]:
    """JSONL of chat requests, each alone or under ``body`` or ``request``. Raises `BadRequestError` with the line."""
    if not file.is_file():
        raise NotFoundError(f"there is no file {file}")
    requests = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        for name in ("body", "request"):
            if isinstance(row, dict) and isinstance(row.get(name), dict):
                row = row[name]
        if not (
            isinstance(row, dict) and isinstance(row.get("messages"), list) and all(map(_is_message, row["messages"]))
        ):
            raise BadRequestError(f'{file}, line {number}: not a chat request with "messages"')
        requests.append(row)
    return requests


def lint(requests: Iterable[Mapping[str, Any]]) -> list[Group]:
    """The costliest group first. Of equal groups the larger."""
    groups: defaultdict[tuple[str, tuple[str, ...]], list[Prompt]] = defaultdict(list)
    for request in requests:
        tools = tuple(sorted(str((tool.get("function") or {}).get("name")) for tool in request.get("tools") or ()))
        groups[str(request.get("model") or "-"), tools].append(Prompt.of(request))
    found = [_lint_group(model, prompts) for (model, _), prompts in groups.items()]
    return sorted(found, key=lambda group: (-group.lost_tokens, -group.requests))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request in the order in which a provider reads it."""

    text: str
    starts: list[tuple[int, str]]
    """Where each part begins, and its name."""
    num_stable: int
    """Characters before the last message: what the application repeats."""

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Prompt:
        pieces: list[tuple[str, str]] = []
        if request.get("tools"):
            pieces.append(("tools", json.dumps(request["tools"], ensure_ascii=False)))
        system = [(n, m) for n, m in enumerate(request["messages"]) if m.get("role") in ("system", "developer")]
        others = [(n, m) for n, m in enumerate(request["messages"]) if m.get("role") not in ("system", "developer")]
        pieces += [(f"messages[{number}]", _text(message)) for number, message in system + others]
        starts, position = [], 0
        for name, text in pieces:
            starts.append((position, name))
            position += len(text)
        num_stable = starts[-1][0] if len(pieces) > 1 else position
        return cls("".join(text for _, text in pieces), starts, num_stable)

    def where(self, position: int) -> str:
        start, name = max((one for one in self.starts if one[0] <= position), default=(0, "messages[0]"))
        return f"{name} at {position - start}"


def _lint_group(model: str, prompts: Sequence[Prompt]) -> Group:
    first, others = prompts[0], prompts[1:]
    shared = [_common(first.text, other.text) for other in others]
    total = sum(len(prompt.text) for prompt in prompts)
    breaks: Counter[tuple[str, str, str]] = Counter()
    lost: Counter[tuple[str, str, str]] = Counter()
    for other, place in list(zip(others, shared, strict=True))[:MAX_COMPARED]:
        if place >= min(first.num_stable, other.num_stable):
            continue  # They part at the question itself, as they should.
        behind = _common_behind(first.text[place : first.num_stable], other.text[place : other.num_stable])
        if behind < CHARS_PER_TOKEN:
            continue
        what, text = _what_changed(first, other, place)
        key = (first.where(place), what, text)
        breaks[key] += 1
        lost[key] += behind
    scale = len(others) / min(len(others), MAX_COMPARED) if others else 1.0
    findings = [
        Finding(where, what, text, round(number * scale), lost[where, what, text] // number // CHARS_PER_TOKEN)
        for (where, what, text), number in breaks.most_common()
    ]
    if not findings:
        findings = _suspects(first, len(prompts))
    return Group(
        model=model,
        requests=len(prompts),
        prompt_tokens=total // CHARS_PER_TOKEN,
        shared_tokens=sum(shared) // CHARS_PER_TOKEN,
        lost_tokens=round(sum(lost.values()) * scale) // CHARS_PER_TOKEN,
        findings=findings,
    )


def _suspects(prompt: Prompt, requests: int) -> list[Finding]:
    """In requests that agree so far: what will not be the same tomorrow, or for somebody else."""
    found = []
    head = prompt.text[: prompt.num_stable]
    for what, pattern in CHANGING.items():
        if (match := pattern.search(head)) and match.start() < EARLY * max(len(head), 1):
            behind = (len(head) - match.end()) // CHARS_PER_TOKEN
            if behind:
                found.append(Finding(prompt.where(match.start()), what, match[0][:60], requests, behind))
    return found


def _what_changed(first: Prompt, other: Prompt, place: int) -> tuple[str, str]:
    a, b = (prompt.text[max(0, place - 40) : place + 60] for prompt in (first, other))
    inside = min(place, 40)
    for what, pattern in CHANGING.items():
        spans = [match for text in (a, b) for match in pattern.finditer(text) if match.start() <= inside <= match.end()]
        if spans:
            return what, spans[0][0][:60]
    if first.where(place).startswith("tools"):
        tools = [prompt.text[: prompt.starts[1][0]] if len(prompt.starts) > 1 else "" for prompt in (first, other)]
        if sorted(tools[0]) == sorted(tools[1]):
            return "order of keys or tools", first.text[place : place + 40]
        return "another tool", first.text[place : place + 40]
    return "changing text", first.text[place : place + 40]


def _common(a: str, b: str) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a.startswith(b[low:middle], low) else (low, middle - 1)
    return low


def _common_behind(a: str, b: str) -> int:
    """Characters that both have, behind the place where they part, in stretches worth keeping."""
    lines_a, lines_b = (re.split(r"(?<=[\n.,])", text) for text in (a, b))
    blocks = SequenceMatcher(None, lines_a, lines_b, autojunk=False).get_matching_blocks()
    return sum(len(line) for block in blocks for line in lines_a[block.a : block.a + block.size])


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    calls = message.get("tool_calls")
    return text + (json.dumps(calls, ensure_ascii=False) if calls else "")


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and "role" in message
