"""`wootz provision FILE`: teams, users, tags and keys as a file says."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import AsJson, print_json, stderr, stdout
from wootz.cli.keys import key_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wootz.gateway.provisioning import Change


def provision(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A TOML file with teams, users, tags and keys.")],
    dry_run: Annotated[bool, typer.Option(help="Only show what would change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make teams, users, tags and keys be as a file says. What is not in the file stays; twice changes nothing.

    Examples:
      [bold]wootz provision accounts.toml --dry-run[/bold]
      [bold]wootz provision accounts.toml[/bold]
    """
    from wootz.gateway import provisioning

    async def run() -> Sequence[Change]:
        wanted = provisioning.read_file(file)
        async with key_store(ctx) as store:
            return await (provisioning.plan if dry_run else provisioning.apply)(wanted, store)

    changes = asyncio.run(run())
    if as_json:
        print_json([asdict(change) for change in changes])
        return
    for change in changes:
        stdout().print(f"{change.action} {change.kind} {change.name}", markup=False)
        for name, (old, new) in change.fields.items():
            stdout().print(f"    {name}: {_shown(old)} -> {_shown(new)}", markup=False)
    if not changes:
        stderr().print("Nothing to change.")
    else:
        stderr().print(f"{len(changes)} changes{' to make (this was a dry run)' if dry_run else ' made'}.")


def _shown(value: object) -> str:
    return "-" if value in (None, [], {}) else str(value)
