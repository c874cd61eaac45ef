"""`wootz teams`, `wootz users`, `wootz tags`: what keys belong to, with limits over all their keys together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, print_json, stderr, stdout, table
from wootz.cli.keys import key_store
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
    from wootz.gateway.accounts import Account, AccountKind


def commands(kind: AccountKind, description: str) -> typer.Typer:
    app = typer.Typer(help=description, no_args_is_help=True)

    def create(
        ctx: typer.Context,
        name: Annotated[str, typer.Argument(help="Shown in reports; of a tag: feature=support.")],
        rpm: RequestsPerMinute = None,
        tpm: TokensPerMinute = None,
        daily_tokens: TokensPerDay = None,
        concurrent: Concurrent = None,
        budget: Budget = None,
        steps: Steps = None,
        steps_usd: StepsUSD = None,
        reset_hour: ResetHour = 0,
        zone: TimeZone = "UTC",
    ) -> None:
        limits = limits_of(rpm, tpm, daily_tokens, concurrent, budget, reset_hour, zone, steps, steps_usd)
        _run(ctx, "create_account", kind, name, **limits)
        stderr().print(f"[green]✓[/green] {kind} [bold]{name}[/bold]")

    def limit(
        ctx: typer.Context,
        name: Annotated[str, typer.Argument(help="Its name or id.")],
        rpm: RequestsPerMinute = None,
        tpm: TokensPerMinute = None,
        daily_tokens: TokensPerDay = None,
        concurrent: Concurrent = None,
        budget: Budget = None,
        steps: Steps = None,
        steps_usd: StepsUSD = None,
        reset_hour: ResetHour = 0,
        zone: TimeZone = "UTC",
    ) -> None:
        limits = limits_of(rpm, tpm, daily_tokens, concurrent, budget, reset_hour, zone, steps, steps_usd)
        account = _run(ctx, "limit_account", kind, name, **limits)
        stderr().print(f"[green]✓[/green] limits of {kind} {name}: {shown(account.limits.plain)}")

    def list_all(ctx: typer.Context, as_json: AsJson = False) -> None:
        accounts: list[Account] = _run(ctx, "list_accounts", kind)
        if as_json:
            names = ("id", "name", "created_at")
            print_json([{n: getattr(one, n) for n in names} | one.limits.plain for one in accounts])
            return
        rows = table("name", "limits", "created")
        for one in accounts:
            rows.add_row(one.name, shown(one.limits.plain), f"{one.created_at:%Y-%m-%d}")
        stdout().print(rows)

    def delete(ctx: typer.Context, name: Annotated[str, typer.Argument(help="Its name or id.")]) -> None:
        _run(ctx, "delete_account", kind, name)
        stderr().print(f"[green]✓[/green] deleted {kind} {name}")

    app.command("create", help=f"Make a {kind}; its limits hold for all its keys together.")(create)
    app.command("limit", help="Set its limits, in the place of all that it had.")(limit)
    app.command("list", help=f"List the {kind}s and their limits.")(list_all)
    app.command("delete", help=f"Delete a {kind} that no key belongs to.")(delete)
    return app


def _run(ctx: typer.Context, method: str, *arguments: Any, **limits: Any) -> Any:
    async def run() -> Any:
        async with key_store(ctx) as store:
            return await getattr(store, method)(*arguments, **limits)

    return asyncio.run(run())
