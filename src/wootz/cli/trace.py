"""`wootz trace`: what happened to a request, and where the time of many went."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import AsJson, load, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.telemetry import RequestRecord
    from wootz.telemetry.bodies import StoredBody

app = typer.Typer(help="Follow requests: what happened, why, how fast, at what cost.", no_args_is_help=True)

MOST_RECORDS = 20_000


@app.callback()
def trace() -> None:
    """Follow requests: what happened, why, how fast, at what cost."""


@app.command("explain")
def explain(
    ctx: typer.Context,
    request_id: Annotated[str, typer.Argument(help="From the answer's header x-request-id, or the console.")],
    body: Annotated[bool, typer.Option("--body", help="Also what was asked and answered, if it was kept.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell one request in words: who asked, every decision and attempt, times against their budget, the bill."""
    from wootz.telemetry import PriceBook
    from wootz.telemetry.explain import explain as in_words
    from wootz.telemetry.latency import budget

    config = load(ctx).config
    record, names = asyncio.run(_one(ctx, request_id))
    lines = in_words(record, PriceBook.of(config), budget(config.telemetry.latency_budget), names)
    if as_json:
        import msgspec

        whole = record.whole()
        try:
            if body and (kept := asyncio.run(_body(ctx, record))):
                whole["body"] = msgspec.to_builtins(kept)
        finally:  # Of a body that does not open, the record all the same.
            print_json(whole)
        return
    width = max(len(about) for about, _ in lines)
    out = stdout()
    out.print(f"{record.request_id}, {record.started_at:%Y-%m-%d %H:%M:%S} UTC", markup=False)
    before = None
    for about, words in lines:
        out.print(f"  {about if about != before else '':>{width}}  {printable(words)}", markup=False, soft_wrap=True)
        before = about
    if body:
        _print_body(asyncio.run(_body(ctx, record)))


def _print_body(kept: StoredBody | None) -> None:
    if kept is None:
        stderr().print("Nothing of it was kept (telemetry.store_bodies), or it has been deleted.", markup=False)
        return
    for title, text in (("asked", kept.request), ("answered", kept.answer)):
        stdout().print(f"\n--- {title} ---\n{printable(text)}", markup=False, soft_wrap=True)


def printable(text: str) -> str:
    """What others wrote moves no cursor and sets no colour."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


async def _one(ctx: typer.Context, request_id: str) -> tuple[RequestRecord, dict[str, str]]:
    from wootz.app.preflight import open_database
    from wootz.gateway import KeyStore
    from wootz.telemetry import Ledger

    async with open_database(load(ctx).config) as database:
        record = await Ledger(database).get(request_id)
        return record, {key.id: key.name for key in await KeyStore(database).list()}


async def _body(ctx: typer.Context, record: RequestRecord) -> StoredBody | None:
    """Read after the record is told, which needs no key."""
    from wootz.app.preflight import open_database
    from wootz.core.acting import actor
    from wootz.store.audit import AuditLog
    from wootz.store.secrets import wrapper_of
    from wootz.telemetry.bodies import BodyStore

    config = load(ctx).config
    async with open_database(config) as database:
        await AuditLog(database).append(actor=actor(), action="body.read", subject=record.request_id)
        return await BodyStore(database, wrapper_of(config)).get(record)


@app.command("latency")
def latency(
    ctx: typer.Context,
    last: Annotated[str, typer.Option(help="How far back: 30m, 24h, 7d.")] = "24h",
    model: Annotated[str | None, typer.Option(help="Only requests for this model.")] = None,
    tokens: Annotated[int, typer.Option("--out", help="Also estimate an answer of so many tokens.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Percentiles of each stage against its budget; what is over it at p95 is marked."""
    from wootz.telemetry import parse_period
    from wootz.telemetry.latency import budget, end_to_end, latency_report

    records = asyncio.run(_many(ctx, datetime.now(UTC) - parse_period(last), model))
    lines = latency_report(records, budget(load(ctx).config.telemetry.latency_budget))
    if as_json:
        return print_json([vars(line) | {"over": line.over} for line in lines])
    if not lines:
        stderr().print(f"No requests in the last {last}.")
        return
    heads = ("stage", "requests", "p50 ms", "p95 ms", "p99 ms", "budget ms", "")
    rows = table(*heads, right=heads[1:6])
    for line in lines:
        times = (f"{1000 * value:,.1f}" for value in (line.p50, line.p95, line.p99))
        limit = "" if line.budget is None else f"{1000 * line.budget:,.1f}"
        rows.add_row(printable(line.stage), f"{line.count:,}", *times, limit, "[red]over[/red]" if line.over else "")
    stdout().print(rows)
    by_stage = {line.stage: line for line in lines}
    if "first_token" in by_stage and "between_tokens" in by_stage:
        first, between = by_stage["first_token"], by_stage["between_tokens"]
        usual, slow = (end_to_end(getattr(first, p), getattr(between, p), tokens) for p in ("p50", "p95"))
        stdout().print(f"An answer of {tokens} tokens: {usual:.2f} s as a rule, {slow:.2f} s when it is slow (p95).")


@app.command("estimate")
def estimate(
    first: Annotated[float, typer.Option("--ttft", help="Milliseconds to the first token, all stages.")] = 565,
    between: Annotated[float, typer.Option("--itl", help="Milliseconds from one token to the next.")] = 25,
    tokens: Annotated[int, typer.Option("--out", help="Tokens of the answer.")] = 200,
) -> None:
    """When an answer is there: time to first token, plus the tokens times the time between them."""
    from wootz.telemetry.latency import CLASSES, end_to_end

    stdout().print(f"{end_to_end(first, between, tokens) / 1000:.2f} s for {tokens} tokens.")
    good = [name for name, limit in CLASSES.items() if first <= 1000 * limit]
    stdout().print(f"A first token after {first:g} ms is soon enough for: {', '.join(good) or 'none of these uses'}.")


async def _many(ctx: typer.Context, since: datetime, model: str | None) -> list[RequestRecord]:
    from wootz.app.preflight import open_database
    from wootz.telemetry import Ledger

    async with open_database(load(ctx).config) as database:
        return await Ledger(database).list(limit=MOST_RECORDS, since=since, model=model)
