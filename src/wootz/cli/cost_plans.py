"""`wootz cost whatif` and `wootz cost host-or-buy`: arithmetic on prices, before the money is spent."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import AsJson, load, print_json, stdout, table

if TYPE_CHECKING:
    from wootz.telemetry import Price

PriceText = Annotated[
    str, typer.Option("--price", help="USD per million tokens, IN/OUT or IN/OUT/CACHED, or the name of a model here.")
]


def add_commands(app: typer.Typer) -> None:
    app.command("whatif")(whatif)
    app.command("host-or-buy")(host_or_buy)


def whatif(
    ctx: typer.Context,
    price: PriceText,
    calls: Annotated[str, typer.Option(help="Calls a day.")] = "10000",
    prompt: Annotated[str, typer.Option("--in", help="Prompt tokens of a call.")] = "4000",
    completion: Annotated[str, typer.Option("--out", help="Answered tokens of a call.")] = "500",
    cached: Annotated[str, typer.Option(help="Prompt tokens found in the provider's cache.")] = "0",
    semantic: Annotated[str, typer.Option(help="Share of calls that a semantic cache answers.")] = "0",
    cascade: Annotated[
        str | None, typer.Option(help="SHARE:PRICE, the calls that a cheaper model answers well enough.")
    ] = None,
    ignore_failed: Annotated[
        bool, typer.Option(help="Leave out what the cheaper model's other answers cost, as many reckonings do.")
    ] = False,
    days: Annotated[int, typer.Option(help="Days of a month.")] = 30,
    as_json: AsJson = False,
) -> None:
    """What a prompt cache, a semantic cache and a cascade would save, each on what the ones before have left.

    Example:
      [bold]wootz cost whatif --price 3/15/0.30 --cached 3000 --semantic 0.3 --cascade 0.6:0.10/0.30[/bold]
    """
    from wootz.telemetry.what_if import Cascade, Traffic, what_if

    traffic = Traffic(calls_a_day=_number(calls), prompt=_number(prompt), completion=_number(completion), days=days)
    cheap = None
    if cascade is not None:
        share, _, cheaper = cascade.partition(":")
        cheap = Cascade(share=_share(share), price=_price(ctx, cheaper), counts_failures=not ignore_failed)
    if (found_cached := _number(cached)) > traffic.prompt:
        raise typer.BadParameter("more tokens are cached than a prompt has")
    steps = what_if(traffic, _price(ctx, price), cached=found_cached, semantic=_share(semantic), cascade=cheap)
    if as_json:
        return print_json([vars(step) for step in steps])
    rows = table(
        "",
        "USD a call",
        "USD a month",
        "saves",
        "all together",
        right=("USD a call", "USD a month", "saves", "all together"),
    )
    for step in steps:
        saved = (f"{step.marginal:.1%}", f"{step.total:.1%}") if step is not steps[0] else ("", "")
        rows.add_row(step.name, f"{step.per_call.normalize():f}", f"{step.a_month:,.2f}", *saved)
    stdout().print(rows)


def host_or_buy(
    ctx: typer.Context,
    price: PriceText,
    tokens: Annotated[str, typer.Option(help="Tokens a month, input and output together: 1e9.")] = "1e9",
    gpu: Annotated[str, typer.Option(help="USD an hour for one machine.")] = "2.5",
    tps: Annotated[str, typer.Option(help="Tokens a second that one machine computes at full load.")] = "2500",
    output_share: Annotated[str, typer.Option(help="Share of the tokens that are answered ones.")] = "0.2",
    utilisation: Annotated[str, typer.Option(help="How busy a machine may be before another is rented.")] = "0.7",
    engineering: Annotated[str, typer.Option(help="USD a month for whoever looks after the machines.")] = "0",
    as_json: AsJson = False,
) -> None:
    """Rent machines or buy tokens: both costs by volume, by how busy the machines are, and where they meet.

    Example:
      [bold]wootz cost host-or-buy --tokens 1e9 --gpu 2.5 --tps 2500 --price 1.4/5.6[/bold]
    """
    from wootz.telemetry.host_or_buy import Machine, blended, break_even, break_even_utilisation, compare

    machine = Machine(
        dollars_an_hour=_positive(gpu),
        tokens_a_second=_positive(tps),
        highest_utilisation=_share(utilisation) or Decimal("0.01"),
        engineering_a_month=_number(engineering),
    )
    api = _price(ctx, price)
    per_million = blended(api.input, api.output, _share(output_share))
    if not per_million:
        raise typer.BadParameter("what costs nothing is not worth comparing", param_hint="--price")
    volume, meet = _positive(tokens), break_even(machine, per_million)
    found = [compare(volume * factor, machine, per_million) for factor in map(Decimal, ("0.1", "0.3", "1", "3", "10"))]
    busy = {share: machine.per_million(Decimal(share)) for share in ("0.1", "0.3", "0.5", "0.7", "0.9")}
    if as_json:
        by_volume = [vars(one) | {"host_per_million": one.host_per_million} for one in found]
        answer = {"api_per_million": per_million, "by_volume": by_volume, "host_per_million_by_utilisation": busy}
        return print_json(answer | {"break_even_tokens_a_month": meet})
    heads = ("tokens a month", "API USD", "machines", "hosted USD", "busy", "hosted USD/M")
    rows = table(*heads, right=heads)
    for one in found:
        cheaper = "[green]" if one.host < one.buy else ""
        rows.add_row(
            f"{one.tokens_a_month:,.0f}", f"{one.buy:,.2f}", f"{one.machines:,}", f"{cheaper}{one.host:,.2f}",
            f"{one.utilisation:.1%}", f"{one.host_per_million:,.2f}",
        )  # fmt: skip
    stdout().print(rows)
    stdout().print(f"The API: {per_million.normalize():f} USD per million tokens of this mix.")
    stdout().print("One machine, by how busy it is all month, USD per million: "
                   + ", ".join(f"{Decimal(share):.0%} {cost:,.2f}" for share, cost in busy.items()))  # fmt: skip
    level = break_even_utilisation(machine, per_million)
    stdout().print(
        f"They meet at {meet:,.0f} tokens a month." if meet
        else f"They never meet: a machine would have to be {level:.0%} busy."
    )  # fmt: skip


def _price(ctx: typer.Context, text: str) -> Price:
    from datetime import UTC, datetime

    from wootz.telemetry import Price, PriceBook

    config = load(ctx).config
    if "/" in text and text not in config.models:
        parts = [_number(part) for part in text.split("/")]
        if len(parts) not in (2, 3):
            raise typer.BadParameter(f'"{text}" is no price; write IN/OUT or IN/OUT/CACHED')
        cached = parts[2] if len(parts) == 3 else parts[0]
        return Price(
            input=parts[0], cached_input=cached, cache_write=parts[0], output=parts[1],
            batch=Decimal(1), unit=Decimal(0), version="given",
        )  # fmt: skip
    price = PriceBook.of(config).listed(text, datetime.now(UTC))
    if price is None:
        raise typer.BadParameter(f'no price is known for "{text}"; write IN/OUT in USD per million tokens')
    return price


def _number(text: str) -> Decimal:
    try:
        number = Decimal(text.replace("_", ""))
    except InvalidOperation:
        number = Decimal(-1)
    if not (number.is_finite() and number >= 0):
        raise typer.BadParameter(f'"{text}" is no amount')
    return number


def _positive(text: str) -> Decimal:
    if not (number := _number(text)):
        raise typer.BadParameter(f'"{text}" must be more than 0')
    return number


def _share(text: str) -> Decimal:
    if (share := _number(text)) > 1:
        raise typer.BadParameter(f'"{text}" is no share; write 0.3 for 30 %')
    return share
