"""The Spend page: what was spent over time, and on what. Exact sums; a visitor's own unless they are an admin."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.charts import Chart, Series, stacked_bars
from wootz.console.sessions import Visitor
from wootz.console.site import Site
from wootz.telemetry import ReportRow

PERIODS = {"24h": timedelta(hours=24), "7d": timedelta(days=7), "30d": timedelta(days=30), "90d": timedelta(days=90)}
GROUPS = {
    "model": "Model",
    "deployment": "What answered",
    "provider": "Provider",
    "key": "Key",
    "team": "Team",
    "user": "User",
    "feature": "Feature",
    "prompt_version": "Prompt version",
    "template": "Instructions (hash)",
    "cache": "Cache",
    "lane": "Lane",
}
MAX_SERIES = 6
OTHERS = "others"


@dataclass(frozen=True)
class Spending:
    chart: Chart
    rows: list[ReportRow]
    """By the chosen group, costliest first."""
    total: ReportRow


def add_routes(router: APIRouter, site: Site) -> None:
    @router.get("/spend")
    async def show_spend(
        request: Request, since: str = "7d", by: str = "model", visitor: Visitor = Depends(site.visitor)
    ) -> Response:
        since = since if since in PERIODS else "7d"
        by = by if by in GROUPS else "model"
        return site.page(
            "spend.html",
            request,
            visitor,
            spending=await spending(site, PERIODS[since], by, visitor.pays_for),
            names=await site.names(by, visitor),
            filters={"since": since, "by": by},
            periods=PERIODS,
            groups=GROUPS,
        )


async def spending(site: Site, period: timedelta, by: str, key_id: str | None, now: datetime | None = None) -> Spending:
    now = now or datetime.now(UTC)
    unit, step = ("hour", timedelta(hours=1)) if period <= timedelta(hours=24) else ("day", timedelta(days=1))
    begin = _floor(now, unit) - period + step
    form = "%Y-%m-%dT%H:00Z" if unit == "hour" else "%Y-%m-%d"
    buckets = [f"{begin + n * step:{form}}" for n in range(int(period / step))]
    report = site.ledger.report
    rows = await report([by], begin, key_id=key_id)
    (total,) = await report([], begin, key_id=key_id, conversations=True)
    cells = await report([unit, by], begin, key_id=key_id)

    shown = [row.group[by] for row in rows if row.cost > 0][:MAX_SERIES]
    costs: dict[tuple[str | None, str], Decimal] = {}
    for cell in cells:
        name = cell.group[by] if cell.group[by] in shown else OTHERS
        place = (name, cell.group[unit] or "")
        costs[place] = costs.get(place, Decimal(0)) + cell.cost
    names = [*shown, *([OTHERS] if any(name == OTHERS for name, _ in costs) else [])]
    series = [
        Series(name or "none", tuple(costs.get((name, bucket), Decimal(0)) for bucket in buckets)) for name in names
    ]
    return Spending(stacked_bars(buckets, [one for one in series if one.total > 0]), rows, total)


def _floor(moment: datetime, unit: str) -> datetime:
    hour = moment.hour if unit == "hour" else 0
    return moment.replace(hour=hour, minute=0, second=0, microsecond=0)
