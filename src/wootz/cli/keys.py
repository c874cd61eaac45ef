"""`wootz keys`: who may call the platform. Works on the database itself, so it needs no running platform."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, load, print_json, stderr, stdout, table
from wootz.cli.limit_options import (
    Budget,
    Concurrent,
    RequestsPerMinute,
    ResetHour,
    Steps,
    StepsUSD,
    TimeZone,
    TokensPerDay,
    TokensPerMinute,
    limits_of,
    shown,
)

if TYPE_CHECKING:
    from wootz.gateway import Key, KeyStore

app = typer.Typer(help="Create, list, rotate and revoke the keys that callers show.", no_args_is_help=True)


@app.command("create")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Whom it is for; shown in reports.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="inference (default), admin or another role; repeat it.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only this model; may be repeated. \\[default: all]")] = None,
    team: Annotated[str | None, typer.Option(help="The team that it belongs to.")] = None,
    user: Annotated[str | None, typer.Option(help="The user that it belongs to.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="For example feature=support; may be repeated.")] = None,
    region: Annotated[list[str] | None, typer.Option(help="Only there may it be computed; may be repeated.")] = None,
    data_class: Annotated[str | None, typer.Option(help="Of the data that it sends, at most.")] = None,
    rpm: RequestsPerMinute = None,
    tpm: TokensPerMinute = None,
    daily_tokens: TokensPerDay = None,
    concurrent: Concurrent = None,
    budget: Budget = None,
    steps: Steps = None,
    steps_usd: StepsUSD = None,
    reset_hour: ResetHour = 0,
    zone: TimeZone = "UTC",
    expires: Annotated[str | None, typer.Option(help="Valid for this long: 12h, 30d, 8w.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once: only its hash is stored.

    Examples:
      [bold]wootz keys create alice[/bold]
      [bold]wootz keys create ci --model smollm2-135m-instruct --rpm 60 --expires 30d[/bold]
      [bold]wootz keys create agent --team research --budget 5/daily --daily-tokens 2000000[/bold]
    """
    from wootz.gateway.accounts import split_tag
    from wootz.gateway.identity.attributes import Attributes
    from wootz.telemetry import parse_period

    expires_at = datetime.now(UTC) + parse_period(expires) if expires else None
    limits = limits_of(rpm, tpm, daily_tokens, concurrent, budget, reset_hour, zone, steps, steps_usd)
    tags = dict(split_tag(text) for text in tag or ())
    attributes = Attributes(regions=region or None, data_class=data_class).plain

    async def run() -> tuple[Key, str]:
        async with key_store(ctx) as store:
            return await store.create(
                name, scopes=tuple(scope or ["inference"]), models=model, expires_at=expires_at,
                team=team, user=user, tags=tags, attributes=attributes, **limits,
            )  # fmt: skip

    _show_once(*asyncio.run(run()), as_json=as_json)


@app.command("rotate")
def rotate(
    ctx: typer.Context,
    key: Annotated[str, typer.Argument(help="A key's name or id.")],
    overlap: Annotated[str, typer.Option(help="How long the old secret holds too: 30m, 24h, 7d.")] = "24h",
    as_json: AsJson = False,
) -> None:
    """Make a new secret for a key and print it, once. The key keeps its limits and what it has used.

    Examples:
      [bold]wootz keys rotate ci --overlap 7d[/bold]
    """
    from wootz.telemetry import parse_period

    async def run() -> tuple[Key, str]:
        async with key_store(ctx) as store:
            return await store.rotate(key, parse_period(overlap))

    _show_once(*asyncio.run(run()), as_json=as_json)


def _show_once(key: Key, secret: str, *, as_json: bool) -> None:
    if as_json:
        print_json({**_as_dict(key), "key": secret})
        return
    stderr().print(f"[green]✓[/green] key [bold]{key.name}[/bold]: it is shown only this once")
    print(secret)


@app.command("list")
def list_keys(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the keys: what each may do, and whether it still holds."""

    async def run() -> list[Key]:
        async with key_store(ctx) as store:
            return await store.list()

    keys = asyncio.run(run())
    if as_json:
        print_json([_as_dict(key) for key in keys])
        return
    rows = table("name", "key", "scopes", "models", "belongs to", "limits", "created", "state")
    for key in keys:
        rows.add_row(
            key.name,
            f"{key.prefix}…",
            ", ".join(key.scopes),
            "all" if key.models is None else ", ".join(key.models),
            ", ".join(account.name for account in (key.team, key.user) if account) or "-",
            shown(key.limits.plain),
            f"{key.created_at:%Y-%m-%d}",
            _state(key),
        )
    stdout().print(rows)


@app.command("revoke")
def revoke(ctx: typer.Context, key: Annotated[str, typer.Argument(help="A key's name or id.")]) -> None:
    """Revoke a key: a running platform refuses it within a second."""

    async def run() -> None:
        async with key_store(ctx) as store:
            await store.revoke(key)

    asyncio.run(run())
    stderr().print(f"[green]✓[/green] revoked {key}")


@asynccontextmanager
async def key_store(ctx: typer.Context) -> AsyncIterator[KeyStore]:
    from wootz.app.preflight import open_database
    from wootz.gateway import KeyStore

    async with open_database(load(ctx).config) as database:
        yield KeyStore(database)


def _state(key: Key) -> str:
    if key.revoked_at:
        return "[red]revoked[/red]"
    if key.expires_at and key.expires_at <= datetime.now(UTC):
        return "[yellow]expired[/yellow]"
    return f"until {key.expires_at:%Y-%m-%d}" if key.expires_at else "[green]valid[/green]"


def _as_dict(key: Key) -> dict[str, Any]:
    from wootz.gateway.schemas import KeyInfo

    return KeyInfo.of(key).model_dump()
