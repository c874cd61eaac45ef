"""One request in words: who asked, what was decided and why, every attempt, where the time went, what it cost and how.

Everything comes from the record alone, so it can be told of any request there ever was. Only the lines of the bill are
reckoned again, from the prices of that time; where that gives another sum (a price in the config has changed since),
the recorded one stands and it is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from wootz.telemetry.journal import HITS
from wootz.telemetry.latency import stages_of
from wootz.telemetry.price_book import PriceBook
from wootz.telemetry.prices import EXACT, Price, Tokens, cost, items
from wootz.telemetry.record import AttemptRecord, RequestRecord, SpanRecord

Line = tuple[str, str]
"""What it is about, and the words."""

CACHES = {
    "off": "no cache is switched on",
    "bypass": "this request did not use the cache",
    "miss": "the cache had no answer",
    "exact": "the cache had the answer to the same request",
    "semantic": "the cache had the answer to a request that means the same",
    "shared": "another request under way got the same answer",
}


def explain(
    record: RequestRecord, prices: PriceBook, budgets: Mapping[str, float], key_names: Mapping[str, str] | None = None
) -> list[Line]:
    return [
        *_who(record, key_names or {}),
        *_way(record),
        *_answer(record),
        *_times(record, budgets),
        *_bill(record, prices),
    ]


def _who(record: RequestRecord, key_names: Mapping[str, str]) -> Iterator[Line]:
    key = key_names.get(record.key_id or "", record.key_id)
    who = [
        f"{name} {value}" for name, value in (("key", key), ("team", record.team_id), ("user", record.user)) if value
    ]
    yield "who", ", ".join(who) or "nobody with a key"
    if record.tags:
        yield "tags", ", ".join(f"{name}={value}" for name, value in sorted(record.tags.items()))
    how = "streamed" if record.stream else "in one piece"
    yield "asked", f"{record.model} at {record.route}, {how}, {record.lane} lane"


def _way(record: RequestRecord) -> Iterator[Line]:
    if record.cache != "off":
        yield "cache", CACHES[record.cache]
    if (version := record.timeline.secret_version) is not None:
        yield "why", f"sent with version {version} of its key"
    for note in record.timeline.notes:
        yield "why", note
    for number, event in enumerate_attempts(record):
        if isinstance(event, AttemptRecord):
            yield f"+{ms(event.start)}", f"attempt {number}: {_attempt(event)}"
        else:
            took = "has no end" if event.end is None else f"took {ms(event.end - event.start)}"
            told = "".join(f", {name} {value}" for name, value in event.attributes.items())
            yield f"+{ms(event.start)}", f"{event.name} {took}{told}"


def enumerate_attempts(record: RequestRecord) -> Iterator[tuple[int, AttemptRecord | SpanRecord]]:
    """Stages and attempts as they began; attempts are counted from 1, stages are 0."""
    timeline = record.timeline
    first = record.num_attempts - len(timeline.attempts) + 1
    numbered = [*((0, span) for span in timeline.spans), *enumerate(timeline.attempts, first)]
    yield from sorted(numbered, key=lambda pair: pair[1].start)


def _attempt(attempt: AttemptRecord) -> str:
    words = f"{attempt.deployment} ({attempt.provider})"
    if attempt.secret_version is not None:
        words += f" with version {attempt.secret_version} of its key"
    if attempt.error_code is not None:
        words += f" failed with {attempt.error_code}"
    if attempt.end is not None:
        words += f" after {ms(attempt.end - attempt.start)}"
    if attempt.first_token is not None:
        words += f", first token after {ms(attempt.first_token - attempt.start)}"
    if attempt.prompt_tokens or attempt.completion_tokens:
        words += f"; {attempt.prompt_tokens:,} + {attempt.completion_tokens:,} tokens"
        words += f", {usd(attempt.cost)} USD" if attempt.price else ", at a price that is not known"
    return words


def _answer(record: RequestRecord) -> Iterator[Line]:
    if record.client_disconnected:
        yield "ended", f"the client went away ({record.status})"
    elif record.error_code is not None:
        yield "ended", f"refused or failed: {record.error_code} ({record.status})"
    else:
        by = f" by {record.deployment}" if record.deployment else ""
        yield "ended", f"answered{by}, {record.finish_reason or 'whole'} ({record.status})"
    parts = [f"{record.prompt_tokens:,} prompt tokens"]
    parts += [f"{record.cached_tokens:,} of them cached"] if record.cached_tokens else []
    parts += [f"{record.cache_write_tokens:,} put into the provider's cache"] if record.cache_write_tokens else []
    parts += [f"{record.completion_tokens:,} answered"]
    parts += [f"{record.reasoning_tokens:,} of them reasoning"] if record.reasoning_tokens else []
    yield "tokens", ", ".join(parts)
    if record.tools:
        yield "calls", ", ".join(record.tools)
    if record.guarantee:
        yield "certain", f"of its structure: {record.guarantee}"
    if record.arithmetic:
        yield "computed", f"in {record.arithmetic}"


def _times(record: RequestRecord, budgets: Mapping[str, float]) -> Iterator[Line]:
    for stage, seconds in stages_of(record).items():
        words = f"{stage.replace('_', ' ')} {ms(seconds)}"
        if (limit := budgets.get(stage)) is not None:
            words += f" of {ms(limit)}" + (f", over its budget by {ms(seconds - limit)}" if seconds > limit else "")
        yield "time", words


@dataclass(frozen=True)
class _Call:
    deployment: str
    tokens: Tokens
    price: str | None


def _calls(record: RequestRecord) -> list[_Call]:
    """What was paid for, one by one."""
    if attempts := record.timeline.attempts:
        return [
            _Call(
                one.deployment,
                Tokens(one.prompt_tokens, one.cached_tokens, one.cache_write_tokens, one.completion_tokens),
                one.price,
            )
            for one in attempts
        ]
    if record.provider is None or record.cache in HITS:
        return []
    tokens = Tokens(record.prompt_tokens, record.cached_tokens, record.cache_write_tokens, record.completion_tokens)
    return [_Call(record.deployment or record.model, tokens, record.price)]


def _bill(record: RequestRecord, prices: PriceBook) -> Iterator[Line]:
    provider = {one.deployment: one.provider for one in record.timeline.attempts}
    again, all_known = Decimal(0), record.priced
    for call in _calls(record):
        where = provider.get(call.deployment, record.provider or "")
        price = prices.find(call.deployment, where, record.started_at, call.tokens.prompt)
        if not call.tokens.any:
            if price is not None and price.unit and record.cost:  # How many it made is what its cost says.
                made = record.cost / price.unit
                yield "cost", f"{call.deployment} at {call.price}: {usd(made)} x {usd(price.unit)} = {usd(record.cost)}"
                again += record.cost
            continue
        yield "cost", f"{call.deployment} at {call.price or 'a price that is not known'}{_lane(record, price)}"
        if call.price is None or price is None:
            all_known = False
            continue
        again += cost(call.tokens, price, record.lane)
        for item in items(call.tokens, price, record.lane):
            amount = EXACT.scaleb(EXACT.multiply(Decimal(item.tokens), item.price), -6)
            yield "", f"{item.tokens:,} {item.name} tokens x {usd(item.price)} / 1M = {usd(amount)}"
    yield "total", f"{usd(record.cost)} USD" + ("" if record.priced else ", and what has no known price")
    if all_known and again != record.cost:
        yield "note", f"reckoned again with today's config it would be {usd(again)} USD; the record stands"


def _lane(record: RequestRecord, price: Price | None) -> str:
    if record.lane != "batch" or price is None or price.batch == 1:
        return ""
    return f", {price.batch:.0%} of it in the batch lane"


def ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def usd(amount: Decimal) -> str:
    """Every digit that is there, and no more."""
    return f"{amount.normalize():f}" if amount else "0"
