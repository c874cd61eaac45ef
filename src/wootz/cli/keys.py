"""`wootz keys`: who may call the platform. Works on the database itself, so it needs no running platform."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, load, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.gateway import Key, KeyStore

app = typer.Typer(help="Create, list and revoke the keys that callers show.", no_args_is_help=True)


@app.command("create")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Whom it is for; shown in reports.")],
    scope: Annotated[list[str] | None, typer.Option(help="inference (default) or admin; may be repeated.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only this model; may be repeated. \\[default: all]")] = None,
    rpm: Annotated[int | None, typer.Option(min=1, help="Most requests a minute.")] = None,
    expires: Annotated[str | None, typer.Option(help="Valid for this long: 12h, 30d, 8w.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once: only its hash is stored.

    Examples:
      [bold]wootz keys create alice[/bold]
      [bold]wootz keys create ci --model smollm2-135m-instruct --rpm 60 --expires 30d[/bold]
    """
    from wootz.telemetry import parse_period

    expires_at = datetime.now(UTC) + parse_period(expires) if expires else None

    async def run() -> tuple[Key, str]:
        async with _key_store(ctx) as store:
            return await store.create(
                name, scopes=tuple(scope or ["inference"]), models=model, requests_per_minute=rpm, expires_at=expires_at
            )

    key, secret = asyncio.run(run())
    if as_json:
        print_json({**_as_dict(key), "key": secret})
        return
    stderr().print(f"[green]✓[/green] key [bold]{key.name}[/bold]: it is shown only this once")
    print(secret)


@app.command("list")
def list_keys(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the keys: what each may do, and whether it still holds."""

    async def run() -> list[Key]:
        async with _key_store(ctx) as store:
            return await store.list()

    keys = asyncio.run(run())
    if as_json:
        print_json([_as_dict(key) for key in keys])
        return
    rows = table("name", "key", "scopes", "models", "per minute", "created", "state", right=("per minute",))
    for key in keys:
        rows.add_row(
            key.name,
            f"{key.prefix}…",
            ", ".join(key.scopes),
            "all" if key.models is None else ", ".join(key.models),
            str(key.requests_per_minute or "no limit"),
            f"{key.created_at:%Y-%m-%d}",
            _state(key),
        )
    stdout().print(rows)


@app.command("revoke")
def revoke(ctx: typer.Context, key: Annotated[str, typer.Argument(help="A key's name or id.")]) -> None:
    """Revoke a key: the platform refuses it from the next request on."""

    async def run() -> None:
        async with _key_store(ctx) as store:
            await store.revoke(key)

    asyncio.run(run())
    stderr().print(f"[green]✓[/green] revoked {key}")


@asynccontextmanager
async def _key_store(ctx: typer.Context) -> AsyncIterator[KeyStore]:
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
    names = (
        "id",
        "name",
        "prefix",
        "scopes",
        "models",
        "requests_per_minute",
        "created_at",
        "expires_at",
        "revoked_at",
    )
    return {name: getattr(key, name) for name in names}
