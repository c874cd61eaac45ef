"""`wootz audit`: what was done, by whom, and whether the log of it still holds."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import AsJson, load, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.store.audit import AuditLog, Head

app = typer.Typer(help="Read, verify and export the log of what was done here.", no_args_is_help=True)


@app.command("list")
def list_(
    ctx: typer.Context,
    actor: Annotated[str | None, typer.Option(help="Only what this one did: a key's id.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this, or what begins with it: key.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only what was done to this one.")] = None,
    last: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The newest rows first.

    Examples:
      [bold]wootz audit list --action session.[/bold]      (who signed in, and who tried to)
      [bold]wootz audit list --actor master[/bold]         (what was done with the master key)
    """

    async def run():
        async with _log(ctx) as log:
            return await log.entries(actor=actor, action=action, subject=subject, limit=last)

    entries = asyncio.run(run())
    if as_json:
        print_json([json.loads(entry.to_json()) for entry in entries])
        return
    rows = table("row", "when", "who", "what", "whom", "details", right=("row",))
    for entry in entries:
        details = ", ".join(f"{name} {json.dumps(value)}" for name, value in entry.detail.items())
        rows.add_row(
            str(entry.sequence), f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.actor, entry.action, entry.subject, details
        )
    stdout().print(rows, markup=False)


@app.command("verify")
def verify(
    ctx: typer.Context,
    head: Annotated[list[str] | None, typer.Option(help="A head that was kept elsewhere: NUMBER:HASH.")] = None,
    heads: Annotated[Path | None, typer.Option(help="A file of them, one a line.")] = None,
    as_json: AsJson = False,
) -> None:
    """Walk the whole chain. Exit 1 where a row was altered, removed, inserted or swapped, or the end was cut off.

    Whoever may write to the whole database could make all hashes anew; only a head that was kept elsewhere tells.

    Examples:
      [bold]wootz audit verify[/bold]
      [bold]wootz audit head >> /mnt/worm/wootz-heads[/bold], every night, and then
      [bold]wootz audit verify --heads /mnt/worm/wootz-heads[/bold]
    """
    kept = [*(head or ()), *(heads.read_text().split() if heads else ())]

    async def run():
        async with _log(ctx) as log:
            return await log.verify([_head(text) for text in kept])

    verdict = asyncio.run(run())
    if as_json:
        print_json(
            {
                "holds": verdict.holds,
                "problem": verdict.problem,
                "rows": verdict.head.sequence,
                "hash": verdict.head.hash,
            }
        )
    elif verdict.holds:
        through = f", and lead through all {len(kept)} kept heads" if kept else ""
        stderr().print(f"[green]✓[/green] rows 1 to {verdict.head.sequence:,} follow each other{through}")
    else:
        stderr().print(f"[red]broken[/red]: {verdict.problem}. Up to row {verdict.head.sequence:,} it holds.")
    if not verdict.holds:
        raise typer.Exit(1)


@app.command("head")
def show_head(ctx: typer.Context) -> None:
    """How far the log reaches, as NUMBER:HASH. Keep it where whoever writes to the database can't."""

    async def run() -> Head:
        async with _log(ctx) as log:
            return await log.head()

    head = asyncio.run(run())
    print(f"{head.sequence}:{head.hash}")


@app.command("export")
def export(ctx: typer.Context) -> None:
    """Every row as a line of JSON, oldest first; each holds all that its hash is made of.

    Example:
      [bold]wootz audit export > audit.jsonl[/bold]
    """

    async def run() -> None:
        async with _log(ctx) as log:
            async for line in log.export():
                print(line)

    asyncio.run(run())


def _head(text: str) -> Head:
    from wootz.store.audit import Head

    if (found := re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text)) is None:
        raise typer.BadParameter(f'"{text[:80]}" is no head; it reads NUMBER:HASH, as `wootz audit head` prints it')
    return Head(int(found[1]), found[2])


@asynccontextmanager
async def _log(ctx: typer.Context) -> AsyncIterator[AuditLog]:
    from wootz.app.preflight import open_database
    from wootz.store.audit import AuditLog

    async with open_database(load(ctx).config) as database:
        yield AuditLog(database)
