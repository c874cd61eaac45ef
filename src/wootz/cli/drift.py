"""`wootz drift`: does a model get worse in silence?"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import typer

from wootz.cli.common import AsJson, load, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.telemetry.alerts import Rule
    from wootz.telemetry.alerts.evaluate import Finding


def drift(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Compare the models' grades with those before, as the alert rule [bold]quality-drift[/bold] does; exit with 1 when
    a model fell behind.

    Answers are graded where [bold]drift.share[/bold] is set (0.01 grades one in a hundred).
    """
    rule, found = asyncio.run(_drift(ctx))
    if as_json:
        print_json([vars(one) for one in found])
    elif not found:
        few = f"No model has {rule.least} grades of {_days(rule.window)} and as many before."
        stderr().print(few, "Set [drift] share = 0.01 in wootz.toml.", markup=False)
    else:
        lately, before = _days(rule.window), f"{_days(rule.baseline)} before"
        heads = ("model", "grader", lately, "grades", before, "grades", "drop", "")
        rows = table(*heads, right=heads[2:7])
        for one in found:
            usual = f"{one.value / one.judged:.3f}" if one.judged else ""
            rows.add_row(
                one.subject, one.detail.get("grader", ""), f"{one.value:.3f}", f"{one.detail['samples']:,}",
                usual, f"{one.detail.get('samples_before', 0):,}", f"{1 - one.judged:+.1%}",
                "[red]alarm[/red]" if one.is_firing else "",
            )  # fmt: skip
        stdout().print(rows)
    if any(one.is_firing for one in found):
        raise typer.Exit(1)


async def _drift(ctx: typer.Context) -> tuple[Rule, list[Finding]]:
    from wootz.app.preflight import open_database
    from wootz.telemetry.alerts import load_rules
    from wootz.telemetry.alerts.evaluate import Baselines, evaluate
    from wootz.telemetry.drift import RULE

    config = load(ctx).config
    rule = load_rules(config.alerts.file)[RULE]
    async with open_database(config) as database, database.session() as session:
        return rule, await evaluate(session, rule, datetime.now(UTC), Baselines())


def _days(period: timedelta) -> str:
    return f"{period / timedelta(days=1):g} d"
