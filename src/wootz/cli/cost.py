"""`wootz cost`: what the requests on the ledger cost."""

from __future__ import annotations

import asyncio
import csv
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, load, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.telemetry import ReportRow

app = typer.Typer(help="Report what was used and what it cost.", no_args_is_help=True)


@app.callback()
def cost() -> None:
    """Report what was used and what it cost."""


@app.command("report")
def report(
    ctx: typer.Context,
    by: Annotated[
        str,
        typer.Option(
            help="Group by any of key, team, user, model, deployment, provider, route, cache, lane, price, feature, "
            "prompt_version, template, tag:NAME, hour, day."
        ),
    ] = "key,model",
    last: Annotated[str, typer.Option(help="How far back: 30m, 24h, 7d, 4w.")] = "7d",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for a spreadsheet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sum requests, tokens and cost; the sums are exact decimals, costliest first.

    Where requests carry the tag [bold]conversation[/bold], also how many of them were resolved, and what each of those
    cost, with what was spent on the others. A conversation counts in every group that it asked in.

    Examples:
      [bold]wootz cost report[/bold]
      [bold]wootz cost report --by user,feature,model --last 4w --csv[/bold]
    """
    from wootz.telemetry import parse_period

    names = [name.strip() for name in by.split(",") if name.strip()]
    lines = asyncio.run(_report(ctx, names, datetime.now(UTC) - parse_period(last)))
    if as_json or as_csv:
        plain = [
            {**line.group, **{k: v for k, v in asdict(line).items() if k != "group"}}
            | {"cost_per_resolved": line.cost_per_resolved}
            for line in lines
        ]
        return _print_csv(plain) if as_csv else print_json(plain)
    if not lines:
        stderr().print(f"No requests in the last {last}.")
        return
    sums = ("requests", "errors", "tokens in", "cached", "tokens out", "USD")
    of_conversations = ("conversations", "resolved", "USD each")
    rows, ends = table(*names, *sums, right=sums), table(*names, *of_conversations, right=of_conversations)
    for line in lines:
        group = [value or "-" for value in line.group.values()]
        counts = (line.requests, line.errors, line.prompt_tokens, line.cached_tokens, line.completion_tokens)
        rows.add_row(*group, *map("{:,}".format, counts), _usd(line.cost) + (" + ?" if line.unpriced else ""))
        if line.conversations:
            ends.add_row(*group, f"{line.conversations:,}", f"{line.resolved:g}", _usd(line.cost_per_resolved))
    stdout().print(rows)
    if ends.row_count:
        stdout().print(ends)
    if unpriced := sum(line.unpriced for line in lines):
        stderr().print(f"+ ?: {unpriced:,} requests used tokens whose price is not known; see [models.NAME.price]",
                       markup=False)  # fmt: skip


def _usd(amount: Decimal | None) -> str:
    return "-" if amount is None else f"{amount.normalize():f}"


def _print_csv(lines: list[dict[str, Any]]) -> None:
    """Amounts as exact decimals. A value that a spreadsheet would take for a formula gets an apostrophe in front."""
    writer = csv.writer(sys.stdout)
    writer.writerow(lines[0] if lines else ())
    for line in lines:
        cells = [f"{value:f}" if hasattr(value, "as_tuple") else value for value in line.values()]
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" else cell for cell in cells])


async def _report(ctx: typer.Context, names: list[str], since: datetime) -> list[ReportRow]:
    """The ledger's rows, its key ids replaced by the keys' names."""
    from wootz.app.preflight import open_database
    from wootz.gateway import KeyStore
    from wootz.telemetry import Ledger

    async with open_database(load(ctx).config) as database:
        lines = await Ledger(database).report(names, since, conversations=True)
        key_names = {key.id: key.name for key in await KeyStore(database).list()} if "key" in names else {}
    for line in lines:
        if (key_id := line.group.get("key")) is not None:
            line.group["key"] = key_names.get(key_id, key_id)
    return lines
