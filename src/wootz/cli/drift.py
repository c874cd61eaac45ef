"""`wootz drift`: does a model get worse in silence?"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from wootz.cli.common import AsJson, load, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.telemetry.drift import Drift


def drift(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Compare the grades of the last 7 days with those of the 28 before; exit with 1 when a model fell behind.

    Answers are graded where [bold]drift.share[/bold] is set (0.01 grades one in a hundred).
    """
    found = asyncio.run(_drift(ctx))
    if as_json:
        print_json([asdict(one) for one in found])
    elif not found:
        stderr().print("Nothing was graded in the last 5 weeks. Set [drift] share = 0.01 in wootz.toml.", markup=False)
    else:
        heads = ("model", "grader", "this week", "grades", "before", "grades", "drop", "")
        rows = table(*heads, right=heads[2:7])
        for one in found:
            week, history = ("" if score is None else f"{score:.3f}" for score in (one.week, one.history))
            drop = "" if one.drop is None else f"{one.drop:+.1%}"
            mark = "[red]alarm[/red]" if one.alarm else ""
            rows.add_row(
                one.model, one.grader, week, f"{one.week_count:,}", history, f"{one.history_count:,}", drop, mark
            )
        stdout().print(rows)
    if any(one.alarm for one in found):
        raise typer.Exit(1)


async def _drift(ctx: typer.Context) -> list[Drift]:
    from wootz.app.preflight import open_database
    from wootz.telemetry.drift import drift as compare

    config = load(ctx).config
    async with open_database(config) as database:
        return await compare(database, datetime.now(UTC), config.drift)
