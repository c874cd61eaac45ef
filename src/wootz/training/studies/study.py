"""What all studies share: a grid of runs that can be stopped and taken up again, and what is reported of them.

A study is a list of cells, each one variant with one seed. Every finished cell is a line of ``results.jsonl`` in the
study's folder, so a run that was killed goes on with the cells that are missing. The report gives means and standard
deviations over seeds, as measured, and a plot.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from wootz.core.errors import ConfigError
from wootz.core.progress import SILENT, Progress

Curve = dict[str, float]
"""What one cell measured: a figure for each point of the x axis (as text, since it is a JSON key)."""


@dataclass(frozen=True)
class Point:
    """One figure over all seeds."""

    mean: float
    deviation: float | None
    """None of a single seed."""
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class Study:
    name: str
    question: str
    variants: tuple[str, ...]
    x: str
    y: str
    settings: dict[str, Any]
    """What the runs depend on besides variant and seed; results of other settings are not taken up."""
    run: Callable[[str, int], Curve]
    """One cell: ``run(variant, seed)``."""
    notes: Callable[[str, int], dict[str, Any]] = lambda variant, seed: {}
    """Of a cell that was just run: what it found besides figures, in JSON's types. It stands in the report."""
    log_x: bool = True
    log_y: bool = False
    references: tuple[str, ...] = ()
    """Variants to draw dashed."""


def run_study(study: Study, folder: Path, seeds: Iterable[int], progress: Progress = SILENT) -> dict[str, Any]:
    """Run what is missing, then write ``report.json`` and ``plot.png`` into ``folder``; returns the report."""
    cells = [(variant, seed) for seed in seeds for variant in study.variants]
    settings = json.loads(json.dumps(study.settings))  # as a file has them: its lists were tuples
    done = _read(folder / "results.jsonl", settings)
    progress.set_total(len(cells))
    folder.mkdir(parents=True, exist_ok=True)
    for variant, seed in cells:
        if (variant, seed) not in done:
            curve = study.run(variant, seed)
            notes = study.notes(variant, seed)
            row = {"variant": variant, "seed": seed, "settings": settings, "curve": curve, "notes": notes}
            with (folder / "results.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            done[variant, seed] = curve, notes
        progress.advance()
    curves = {
        variant: _over_seeds([done[cell][0] for cell in cells if cell[0] == variant]) for variant in study.variants
    }
    report = {
        "study": study.name,
        "question": study.question,
        "x": study.x,
        "y": study.y,
        "settings": settings,
        "seeds": sorted({seed for _, seed in cells}),
        "curves": {variant: {x: vars(point) for x, point in curve.items()} for variant, curve in curves.items()},
        "notes": [{"variant": cell[0], "seed": cell[1], **done[cell][1]} for cell in cells if done[cell][1]],
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    plot(study, curves, folder / "plot.png")
    return report


def _read(file: Path, settings: dict[str, Any]) -> dict[tuple[str, int], tuple[Curve, dict[str, Any]]]:
    if not file.exists():
        return {}
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return {
            (row["variant"], row["seed"]): (row["curve"], row.get("notes", {}))
            for row in rows
            if row["settings"] == settings
        }
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{file}: not the results of a study ({error})", hint="choose another folder") from None


def _over_seeds(curves: list[Curve]) -> dict[str, Point]:
    points = {}
    for x in curves[0]:
        figures = [curve[x] for curve in curves]
        points[x] = Point(fmean(figures), stdev(figures) if len(figures) > 1 else None, len(figures))
    return points


def plot(study: Study, curves: dict[str, dict[str, Point]], file: Path) -> None:
    """A line per variant, its standard deviation as a band. Needs the ``bench`` extra."""
    from wootz.core.errors import MissingExtraError

    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise MissingExtraError("training.studies", "bench", "matplotlib") from None
    many = len(curves) > 10  # More than there are colours to tell apart by default, or room for their names.
    figure, axes = plt.subplots(figsize=(8.4 if many else 7, 4.2), layout="constrained")
    if many:
        axes.set_prop_cycle(color=plt.get_cmap("tab20").colors)  # pyright: ignore[reportAttributeAccessIssue]
    for variant, curve in curves.items():
        xs, means = [float(x) for x in curve], [point.mean for point in curve.values()]
        (line,) = axes.plot(xs, means, "--" if variant in study.references else "o-", label=variant, markersize=3)
        low = [point.mean - (point.deviation or 0) for point in curve.values()]
        high = [point.mean + (point.deviation or 0) for point in curve.values()]
        axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel=study.x, ylabel=study.y, title=study.question)
    if study.log_x:
        axes.set_xscale("log", base=2)
    if study.log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    if many:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    else:
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=130)
    plt.close(figure)
