"""Does an edit of a prompt break what a provider's cache has of it, where, and what does that do to the monthly bill?

A template is text with places that are filled in for each request: ``{name}``, ``{{name}}``, ``<name>`` in capitals,
``${name}``, ``{% … %}``. A provider reads it from the front and keeps it up to the first character that is another one
from request to request, which is the first of these places. Two things can go wrong with an edit:

- *The kept beginning is another one.* At the roll-out it is read once more at full price, and then it is kept again.
- *The kept beginning is shorter*, because a place moved forward or a new one came in early. Every request pays for it
  from then on. This is what makes bills jump, and what fails in CI.

A beginning under the provider's least (1024 tokens for OpenAI and most of Anthropic's models) is not kept at all.
Tokens are estimated from characters unless a tokenizer is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from wootz.core import BadRequestError, NotFoundError
from wootz.gateway.caches.lint import CHARS_PER_TOKEN, Prompt

LEAST_TOKENS = 1024
"""https://platform.openai.com/docs/guides/prompt-caching; https://platform.claude.com/docs/en/build-with-claude/prompt-caching"""

PLACE = re.compile(r"\{\{.+?\}\}|\{%.+?%\}|\$\{\w+\}|(?<![{\w\"'])\{[A-Za-z_][\w.]*\}|<[A-Z][A-Z0-9_]+>", re.DOTALL)
"""What is filled in. JSON's braces are not: a name follows at once, and no quote stands before."""

Count = Callable[[str], int]


def about(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)


@dataclass(frozen=True)
class Template:
    text: str
    """In the order in which a provider reads it."""
    where: Callable[[int], str]
    """A place in words."""

    @property
    def first_place(self) -> re.Match[str] | None:
        return PLACE.search(self.text)

    @property
    def stable(self) -> str:
        """What every request begins with."""
        place = self.first_place
        return self.text if place is None else self.text[: place.start()]


def read_template(file: Path) -> Template:
    """Plain text, or a chat request as JSON (`.json`): tools, system, then messages. Raises `BadRequestError`."""
    if not file.is_file():
        raise NotFoundError(f"there is no file {file}")
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequestError(f"{file}: {error}") from None
    if file.suffix != ".json":
        return Template(text, lambda at: _line(text, at))
    try:
        request = json.loads(text)
        prompt = Prompt.of(request)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadRequestError(f'{file}: not a chat request with "messages"') from None
    return Template(prompt.text, prompt.where)


def _line(text: str, at: int) -> str:
    before = text[:at]
    return f"line {before.count(chr(10)) + 1}, column {at - (before.rfind(chr(10)) + 1) + 1}"


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What the template is used for; prices are USD per million tokens."""

    calls: int
    """In a month."""
    input_price: Decimal
    cached_price: Decimal
    hit_rate: float = 1.0
    """Part of the calls that come while the beginning is still kept."""
    least_tokens: int = LEAST_TOKENS


@dataclass(frozen=True, kw_only=True)
class Diff:
    changed_at: int | None
    """The first character that is another one; None when nothing changed."""
    changed_at_token: int | None
    where: str
    old_kept: int
    new_kept: int
    """Tokens of the beginning that is kept."""
    old_tokens: int
    new_tokens: int
    breaks_once: bool
    """The kept beginning is another one: it is read once more at full price."""
    shrinks: bool
    """A smaller part of the prompt is kept, in every request from now on."""
    because: str
    """Of what it shrinks, in words."""
    old_bill: Decimal
    new_bill: Decimal
    """USD a month, of the template's own tokens."""

    @property
    def change(self) -> Decimal:
        return self.new_bill - self.old_bill


def diff(old: Template, new: Template, traffic: Traffic, count: Count = about) -> Diff:
    common = _common(old.text, new.text)
    changed = None if old.text == new.text else common
    sizes = [(count(one.stable), count(one.text)) for one in (old, new)]
    kept = [stable if stable >= traffic.least_tokens else 0 for stable, _ in sizes]
    (_, old_tokens), (_, new_tokens) = sizes
    shrinks = kept[1] < kept[0] and old_tokens - kept[0] < new_tokens - kept[1]
    place = new.first_place
    because = ""
    if shrinks and place is not None:
        because = f"{' '.join(place[0].split())[:60]} stands at {new.where(place.start())}"
        if kept[1] == 0:
            because += (
                f", and {sizes[1][0]:,} tokens before it are fewer than the {traffic.least_tokens:,} that are kept"
            )
    elif shrinks:
        because = f"{sizes[1][0]:,} tokens are fewer than the {traffic.least_tokens:,} that are kept"
    return Diff(
        changed_at=changed,
        changed_at_token=None if changed is None else count(new.text[:changed]),
        where="" if changed is None else new.where(changed),
        old_kept=kept[0],
        new_kept=kept[1],
        old_tokens=old_tokens,
        new_tokens=new_tokens,
        breaks_once=changed is not None and kept[0] > 0 and changed < len(old.stable),
        shrinks=shrinks,
        because=because,
        old_bill=_bill(kept[0], old_tokens, traffic),
        new_bill=_bill(kept[1], new_tokens, traffic),
    )


def _bill(kept: int, tokens: int, traffic: Traffic) -> Decimal:
    """What is filled in costs the same before and after, so it is left out."""
    hits = Decimal(str(traffic.hit_rate))
    cached = kept * hits
    each = (tokens - cached) * traffic.input_price + cached * traffic.cached_price
    return traffic.calls * each / 1_000_000


def _common(a: str, b: str) -> int:
    number = min(len(a), len(b))
    return next((at for at in range(number) if a[at] != b[at]), number)
