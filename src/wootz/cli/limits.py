"""`wootz limits`: what limits would fit."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import AsJson, load, print_json, stderr

if TYPE_CHECKING:
    from wootz.gateway.limits import Limits

app = typer.Typer(help="Suggest limits that fit what is used.", no_args_is_help=True)


@app.callback()
def limits() -> None:
    """Suggest limits that fit what is used."""


@app.command("suggest")
def suggest(
    ctx: typer.Context,
    days: Annotated[int, typer.Option(min=1, max=366, help="How far back to look.")] = 30,
    factor: Annotated[int, typer.Option(min=1, help="Times the 99th percentile.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Ten times the 99th percentile of what each key used, as a file for `wootz provision`.

    Examples:
      [bold]wootz limits suggest > ceilings.toml[/bold]
      [bold]wootz provision ceilings.toml --dry-run[/bold]
    """
    suggested = asyncio.run(_suggest(ctx, days, factor))
    if as_json:
        print_json({name: limits.plain for name, limits in suggested.items()})
        return
    if not suggested:
        stderr().print(f"No key was used in the last {days} days.")
    for name, limits in suggested.items():
        print(f"[keys.{json.dumps(name, ensure_ascii=False)}]")
        for field, value in limits.plain.items():
            print(f"{field} = {json.dumps(value)}")
        print()


async def _suggest(ctx: typer.Context, days: int, factor: int) -> dict[str, Limits]:
    """By key name, revoked ones left out."""
    from wootz.app.preflight import open_database
    from wootz.gateway import KeyStore
    from wootz.gateway.limits.suggest import suggest

    async with open_database(load(ctx).config) as database:
        keys = [key for key in await KeyStore(database).list() if key.revoked_at is None]
        suggested = await suggest(database, datetime.now(UTC), days, factor=factor)
    return {key.name: suggested[key.id] for key in keys if key.id in suggested}
