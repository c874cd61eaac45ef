"""`wootz users roles|grant|end|describe` and `wootz erase`: what people may do, and ending or forgetting them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, load, print_json, stderr, stdout, table
from wootz.cli.keys import key_store

if TYPE_CHECKING:
    from wootz.gateway.accounts import AccountKind
    from wootz.gateway.identity.people import People

Name = Annotated[str, typer.Argument(help="A user's name or id.")]


def add_user_commands(app: typer.Typer) -> None:
    app.command("roles")(roles)
    app.command("grant")(grant)
    app.command("end")(end)


def add_describe(app: typer.Typer, kind: AccountKind) -> None:
    @app.command("describe", help=f"Set a {kind}'s regions and data class, in the place of those it had.")
    def describe(
        ctx: typer.Context,
        name: Annotated[str, typer.Argument(help="Its name or id.")],
        region: Annotated[
            list[str] | None, typer.Option(help="Only there may requests be computed; repeat it.")
        ] = None,
        data_class: Annotated[str | None, typer.Option(help="Of the data that is handled, at most.")] = None,
    ) -> None:
        from wootz.gateway.identity.attributes import Attributes

        async def run() -> None:
            async with key_store(ctx) as store:
                attributes = Attributes(regions=region or None, data_class=data_class)
                await store.describe_account(kind, name, attributes)

        asyncio.run(run())
        where = ", ".join(region or ["anywhere"])
        stderr().print(f"[green]✓[/green] {kind} {name}: {where}, data class {data_class or 'none given'}")


def roles(ctx: typer.Context, as_json: AsJson = False) -> None:
    """People whom an identity provider vouches for, or who were granted roles: what each may do, and why."""

    async def run():
        async with _people(ctx) as people:
            return await people.list()

    found = asyncio.run(run())
    if as_json:
        names = ("id", "name", "active", "roles", "granted", "claimed_groups")
        print_json([{n: getattr(one, n) for n in names} | {"groups": list(one.groups.values())} for one in found])
        return
    rows = table("name", "roles", "groups", "granted here", "state")
    for one in found:
        groups = ", ".join(sorted({*one.groups.values(), *one.claimed_groups})) or "-"
        state = "[green]active[/green]" if one.active else "[red]deactivated[/red]"
        rows.add_row(one.name, ", ".join(one.roles) or "-", groups, ", ".join(one.granted) or "-", state)
    stdout().print(rows)


def grant(
    ctx: typer.Context,
    user: Name,
    role: Annotated[
        list[str] | None, typer.Argument(help="Roles besides those of their groups; none takes them away.")
    ] = None,
) -> None:
    """Give a person roles, in the place of those that were granted before.

    Roles: viewer, developer, billing, operator, auditor, provisioner, admin.

    Examples:
      [bold]wootz users grant ann@example.com auditor billing[/bold]
    """

    async def run():
        async with _people(ctx) as people:
            return await people.grant(user, role or [])

    person = asyncio.run(run())
    stderr().print(f"[green]✓[/green] {person.name} is {', '.join(person.roles) or 'without a role'}")


def end(ctx: typer.Context, user: Name) -> None:
    """Deactivate a person: their keys are revoked and their sessions end, at once."""

    async def run() -> str:
        async with _people(ctx) as people:
            person = next((one for one in await people.list() if user in (one.id, one.name)), None)
            person = person or await people.grant(user, [])  # Of an account that nobody vouched for so far.
            await people.change(person.id, lambda one: replace(one, active=False))
            return person.name

    stderr().print(f"[green]✓[/green] {asyncio.run(run())} is deactivated")


def erase(
    ctx: typer.Context,
    user: Annotated[str, typer.Option(help="A user's name or id, or what requests gave as their user.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget a person in every store: bodies, answers, caches, files, batches, traces. Sums and money stay right.

    Running servers forget their cached answers within a second.

    Example:
      [bold]wootz erase --user ann@example.com[/bold]
    """
    if not yes:
        shown = "".join(char if char.isprintable() else "?" for char in user)
        typer.confirm(f"Erase everything that is kept of {shown!r}? It can't be undone", abort=True)
    report = asyncio.run(_erase(ctx, user))
    if as_json:
        print_json({"user": report.user, "counts": report.counts, "out_of_reach": list(report.out_of_reach)})
        return
    rows = table("what", "how many", right=("how many",))
    for what, number in report.counts.items():
        rows.add_row(what.replace("_", " "), f"{number:,}")
    stdout().print(rows)
    stderr().print("Out of reach, and yours to look after:", markup=False)
    for place in report.out_of_reach:
        stderr().print(f"  {place}", markup=False)


async def _erase(ctx: typer.Context, user: str) -> Any:
    from wootz.app.preflight import open_database
    from wootz.gateway.caches import Caches
    from wootz.gateway.identity.erasure import Eraser

    config = load(ctx).config
    caches = Caches(config, {})
    try:
        async with open_database(config) as database:
            return await Eraser(database, config).erase(user, caches)
    finally:
        await caches.close()


@asynccontextmanager
async def _people(ctx: typer.Context) -> AsyncIterator[People]:
    from wootz.gateway.identity.people import People

    async with key_store(ctx) as store:
        yield People(store, load(ctx).config.identity)
