"""The Runs page: curves of what is being made, several runs beside each other. For admins only.

A run is its folder (`wootz.training.runs`): nothing is sent here by training, so a page that is closed costs nothing.
Shown are the runs below ``runs/`` in the working directory, where `wootz run` puts them, and below the home.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.charts import HEIGHT, WIDTH
from wootz.console.sessions import Visitor
from wootz.console.site import Site
from wootz.training.runs import RunFolder, benchmark_names, compare, list_runs

MAX_POINTS, MAX_SHOWN = 400, 6


@dataclass(frozen=True)
class Curve:
    name: str
    points: str
    """As SVG wants them: ``x,y x,y``."""
    last: float


@dataclass(frozen=True)
class Curves:
    curves: tuple[Curve, ...]
    low: float
    high: float
    steps: int


def add_routes(router: APIRouter, site: Site) -> None:
    @router.get("/runs")
    async def show_runs(
        request: Request, run: list[str] = Query(default=[]), visitor: Visitor = Depends(site.allowed("operate"))
    ) -> Response:
        runs = _all(site.gateway.config.home)
        chosen = [each for each in runs if each.name in run][:MAX_SHOWN] or runs[:1]
        return site.page(
            "runs.html",
            request,
            visitor,
            runs=[_row(each) for each in runs],
            chosen=[each.name for each in chosen],
            charts={
                "Loss, nats per token": curves(chosen, "metrics", "loss"),
                "Bits per byte of a few held-out documents": curves(chosen, "evaluations", "bits_per_byte"),
                **{f"Accuracy, {name}": curves(chosen, "evaluations", name) for name in benchmark_names(chosen)},
                "Gradient norm": curves(chosen, "metrics", "grad_norm"),
            },
            comparison=compare(chosen) if len(chosen) > 1 else None,
            events=[(each.name, row) for each in chosen for row in each.rows("events")[-5:]],
            samples=[(each.name, row) for each in chosen for row in each.rows("samples")[-1:]],
        )


def curves(runs: list[RunFolder], kind: str, figure: str) -> Curves | None:
    """Each run's figure (or benchmark) over its steps, on common axes; None if no run has any."""
    found = {run.name: run.curve(kind, figure) for run in runs}
    found = {name: _thinned([point for point in points if point[1] == point[1]]) for name, points in found.items()}
    values = [value for points in found.values() for _, value in points]
    if not values:
        return None
    low, high = min(values), max(values)
    steps = max(step for points in found.values() for step, _ in points) or 1
    scale = HEIGHT / ((high - low) or 1)

    def place(step: int, value: float) -> str:
        return f"{WIDTH * step / steps:.1f},{HEIGHT - (value - low) * scale:.1f}"

    drawn = [
        Curve(name, " ".join(place(*point) for point in points), points[-1][1])
        for name, points in found.items()
        if points
    ]
    return Curves(tuple(drawn), low, high, steps)


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    step = max(1, len(points) // MAX_POINTS)
    return [*points[::step], *(points[-1:] if points and (len(points) - 1) % step else [])]


def _all(home: Path) -> list[RunFolder]:
    runs = [*list_runs(Path("runs")), *list_runs(home / "runs")]
    return list({run.path.resolve(): run for run in runs}.values())


def _row(run: RunFolder) -> dict[str, Any]:
    status, metrics = run.status, run.rows("metrics")
    return {
        "name": run.name,
        "state": status["state"],
        "stage": status.get("stage", ""),
        "steps": status.get("steps"),
        "last": metrics[-1] if metrics else None,
        "bits_per_byte": run.bits_per_byte,
    }
