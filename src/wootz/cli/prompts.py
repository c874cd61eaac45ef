"""`wootz prompts`: look at prompts as a provider's cache sees them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

import typer

from wootz.cli.common import AsJson, load, print_json, stderr, stdout, table

app = typer.Typer(help="Look at prompts as a provider's cache sees them.", no_args_is_help=True)


@app.callback()
def prompts() -> None:
    """Look at prompts as a provider's cache sees them."""


@app.command("lint-cache")
def lint_cache(
    ctx: typer.Context,
    requests: Annotated[Path, typer.Argument(help="JSONL of chat requests, each alone or under body or request.")],
    baseline: Annotated[
        Path | None, typer.Option(help="The requests before a change: exit with 1 when less is shared now.")
    ] = None,
    input_price: Annotated[
        str | None, typer.Option(help="USD per million tokens. \\[default: the model's own]")
    ] = None,
    cached_price: Annotated[
        str | None, typer.Option(help="Of cached ones. \\[default: the model's, or a tenth]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say where requests stop sharing their beginning, what stands there, and what it costs.

    Examples:
      [bold]wootz prompts lint-cache requests.jsonl --input-price 3[/bold]
      [bold]wootz prompts lint-cache new.jsonl --baseline old.jsonl[/bold]
    """
    from wootz.gateway.caches.lint import lint, read_requests

    groups = lint(read_requests(requests))
    models = load(ctx).config.models

    def prices(model: str) -> tuple[Decimal, Decimal]:
        own = models[model].price if model in models else None
        fresh = _decimal(input_price) if input_price else own.input if own else Decimal(0)
        cached = _decimal(cached_price) if cached_price else own.cached_input if own else None
        return fresh, fresh / 10 if cached is None else cached

    saved = {id(group): group.saved(*prices(group.model)) for group in groups}
    if as_json:
        print_json([asdict(group) | {"saved_usd": saved[id(group)]} for group in groups])
    else:
        rows = table("model", "where", "what", "found", "requests", "tokens lost", right=("requests", "tokens lost"))
        for group in groups:
            for finding in group.findings[:10]:
                figures = (f"{finding.requests:,}", f"{finding.lost_tokens:,}")
                rows.add_row(group.model, finding.where, finding.what, finding.text, *figures)
        if rows.row_count:
            stdout().print(rows)
        for group in groups:
            stderr().print(
                f"{group.model}: {group.requests} share {group.cacheable:.0%} of {group.prompt_tokens:,} tokens; "
                f"{group.lost_tokens:,} more are lost to breaks, USD {saved[id(group)].normalize():f}"
            )
    if baseline is not None:
        before = _shared(lint(read_requests(baseline)))
        now = _shared(groups)
        if now < before:
            stderr().print(f"[red]✗[/red] {now:.0%} of the tokens are shared; it was {before:.0%}")
            raise typer.Exit(1)
        stderr().print(f"[green]✓[/green] {now:.0%} of the tokens are shared; it was {before:.0%}")


@app.command("diff")
def diff_prompts(
    ctx: typer.Context,
    old: Annotated[Path, typer.Argument(help="The template before: text, or a chat request as .json.")],
    new: Annotated[Path, typer.Argument(help="And after.")],
    model: Annotated[
        str | None, typer.Option(help="The model or route that it is for: its price, and its calls in the ledger.")
    ] = None,
    calls: Annotated[
        int | None, typer.Option(min=0, help="Calls a month. \\[default: those of the last 30 days, by --model]")
    ] = None,
    input_price: Annotated[str | None, typer.Option(help="USD per million tokens. \\[default: the model's]")] = None,
    cached_price: Annotated[
        str | None, typer.Option(help="Of cached ones. \\[default: the model's, or a tenth]")
    ] = None,
    hit_rate: Annotated[float, typer.Option(min=0, max=1, help="Part of the calls that find it still kept.")] = 1.0,
    least_tokens: Annotated[int, typer.Option(min=0, help="Shorter beginnings the provider does not keep.")] = 1024,
    tokenizer: Annotated[
        str | None, typer.Option(help="To count exactly: a model's name or folder. \\[default: 4 characters each]")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Also fail when it is only read once more.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether an edit breaks the beginning that a provider's cache keeps, where, and what that costs a month.

    Exits with 1 when less is kept from now on: every request pays for that.

    Examples:
      [bold]wootz prompts diff prompts/support.txt prompts/support.new.txt --model chat[/bold]
      [bold]wootz prompts diff old.json new.json --calls 300000 --input-price 3 --cached-price 0.3[/bold]
    """
    from wootz.gateway.caches.prompt_diff import Traffic, about, diff, read_template

    own = _price_of(ctx, model) if model else None
    fresh = _decimal(input_price) if input_price else own[0] if own else Decimal(0)
    cached = _decimal(cached_price) if cached_price else own[1] if own else fresh / 10
    if calls is None:
        calls = asyncio.run(_calls(ctx, model)) if model else 0
    traffic = Traffic(calls=calls, input_price=fresh, cached_price=cached, hit_rate=hit_rate, least_tokens=least_tokens)
    count = about
    if tokenizer is not None:
        from wootz.cli.tokenizer_inputs import load_named

        encode = load_named(ctx, tokenizer).encode
        count = lambda text: len(encode(text))  # noqa: E731
    found = diff(read_template(old), read_template(new), traffic, count)
    if as_json:
        print_json(asdict(found) | {"change": found.change, "calls": calls})
    elif found.changed_at is None:
        stdout().print("Nothing changed.")
    else:
        out = stdout()
        out.print(f"first change  {found.where} (character {found.changed_at:,}, token {found.changed_at_token:,})")
        out.print(f"kept          {found.old_kept:,} of {found.old_tokens:,} tokens before, "
                  f"{found.new_kept:,} of {found.new_tokens:,} now")  # fmt: skip
        bill = f"USD {found.old_bill:,.2f} a month before, {found.new_bill:,.2f} now ({found.change:+,.2f})"
        out.print(f"bill          {bill}, for {calls:,} calls" if fresh and calls else
                  "bill          not predicted: give --model, or --calls and --input-price")  # fmt: skip
        if found.shrinks:
            out.print(f"[red]✗[/red] less is kept in every request: {found.because}", soft_wrap=True)
        elif found.breaks_once:
            out.print("[yellow]![/yellow] what is kept is another text: it is read once more at full price, then kept")
        else:
            out.print("[green]✓[/green] what is kept stays as it is")
    if found.shrinks or (strict and found.breaks_once):
        raise typer.Exit(1)


def _price_of(ctx: typer.Context, model: str) -> tuple[Decimal, Decimal] | None:
    """Fresh and cached, of any model with a known price, or of the first target of a route."""
    from wootz.telemetry import PriceBook

    config = load(ctx).config
    while model in config.routes:
        model = config.routes[model].targets[0].model
    price = PriceBook.of(config).listed(model, datetime.now(UTC))
    return None if price is None else (price.input, price.cached_input)


async def _calls(ctx: typer.Context, model: str) -> int:
    """Of the last 30 days, without the copies of a migration."""
    from wootz.app.preflight import open_database
    from wootz.telemetry import Ledger

    async with open_database(load(ctx).config) as database:
        rows = await Ledger(database).report(["model", "lane"], datetime.now(UTC) - timedelta(days=30))
    return sum(row.requests for row in rows if row.group["model"] == model and row.group["lane"] != "shadow")


def _shared(groups: list) -> float:
    total = sum(group.prompt_tokens for group in groups)
    return sum(group.shared_tokens for group in groups) / total if total else 0.0


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise typer.BadParameter(f'"{text}" is not a price') from None
