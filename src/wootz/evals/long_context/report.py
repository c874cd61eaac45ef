"""A run's results as data (`report.json`), as text (`report.md`) and as pictures, all from its rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wootz.evals.long_context.case import AS_IT_IS, Row
from wootz.evals.long_context.prefill import prefill_curve
from wootz.evals.long_context.scores import (
    RULER_THRESHOLD,
    by,
    by_length,
    compare_layouts,
    effective_length,
    middle_dip,
    working_context,
)  # fmt: skip


def build_report(
    rows: Sequence[Row],
    settings: dict[str, Any],
    *,
    threshold: float | None = None,
    claimed: int | None = None,
) -> dict[str, Any]:
    """Everything the rows tell, as JSON: per task and length, per depth, over all, and what follows from them.

    ``threshold`` is the score from which on a length counts as working, by default RULER's. Where the question was put
    in several places, all but ``scores`` and ``layouts`` is about the first of them.
    """
    threshold = RULER_THRESHOLD if threshold is None else threshold
    main_place = rows[0].question_at if rows else "end"

    def label(row: Row) -> str:
        return row.task if row.question_at == main_place else f"{row.task} (question at {row.question_at})"

    scores, comparisons = by(rows, lambda row: (label(row), row.length)), compare_layouts(rows)
    refused = next((row.refused for row in rows if row.refused), None)
    rows = [row for row in rows if row.question_at == main_place]
    lengths = by_length(rows)
    report: dict[str, Any] = {
        "settings": settings,
        "threshold": threshold,
        "scores": [{"task": task, "length": length, **asdict(score)} for (task, length), score in scores.items()],
        "by_length": [{"length": length, **asdict(score)} for length, score in lengths.items()],
        "effective_length": effective_length(lengths, threshold) if lengths else None,
        "refused": refused,
    }
    depths = by((row for row in rows if row.depth is not None), lambda row: (row.length, row.depth))
    if depths:
        report["by_depth"] = [
            {"length": length, "depth": depth, **asdict(score)} for (length, depth), score in depths.items()
        ]
        if dip := middle_dip(rows):
            report["middle_dip"] = {**asdict(dip), "index": dip.index}
    if comparisons:
        report["layouts"] = [asdict(comparison) for comparison in comparisons]
    if claimed is not None:
        report["working_context"] = working_context(rows, claimed, threshold).as_metadata()
    points = [
        (row.length, row.time_to_first_token)
        for row in rows
        if row.task == "prefill" and row.time_to_first_token is not None
    ]
    if points:
        curve = prefill_curve(points)
        report["prefill"] = {**asdict(curve), "crossover": curve.crossover}
    return report


def write_report(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``report.json`` and ``report.md``; returns the files."""
    files = [folder / "report.json", folder / "report.md"]
    files[0].write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    files[1].write_text(as_markdown(report), encoding="utf-8")
    return files


def as_markdown(report: dict[str, Any]) -> str:
    """The report for people: what was found first, then the tables."""
    settings = report["settings"]
    lines = [f"# {title_of(report)}", ""]
    lines += [f"- {line}" for line in findings(report)]
    if len(report["by_length"]) > 0 and "prefill" not in report:
        tasks = list(dict.fromkeys(score["task"] for score in report["scores"]))
        lengths = [entry["length"] for entry in report["by_length"]]
        cells = {(score["task"], score["length"]): score for score in report["scores"]}
        lines += ["", "## Score by length", "", _row("task", *lengths), _row("---", *["---:"] * len(lengths))]
        lines += [_row(task, *(_percent(cells.get((task, length))) for length in lengths)) for task in tasks]
        if len(tasks) > 1 and "layouts" not in report:
            lines.append(_row("**all**", *(_percent(entry) for entry in report["by_length"])))
    if "by_depth" in report:
        depths = sorted({entry["depth"] for entry in report["by_depth"]})
        cells = {(entry["length"], entry["depth"]): entry for entry in report["by_depth"]}
        lengths = list(dict.fromkeys(entry["length"] for entry in report["by_depth"]))
        head = ["as they are" if length == AS_IT_IS else length for length in lengths]
        lines += ["", "## Score by depth", "", _row("depth", *head), _row("---", *["---:"] * len(head))]
        lines += [_row(f"{depth:.0%}", *(_percent(cells.get((at, depth))) for at in lengths)) for depth in depths]
    if "prefill" in report:
        lines += ["", "## Time to first token", "", _row("tokens", "seconds (median)"), _row("---:", "---:")]
        lines += [_row(length, f"{seconds:.3f}") for length, seconds in report["prefill"]["medians"].items()]
    lines += ["", "## Settings", "", *(f"- {name}: {value}" for name, value in settings.items()), ""]
    return "\n".join(lines)


def findings(report: dict[str, Any]) -> list[str]:
    """The report in a few sentences, one for each thing that was measured."""
    said = []
    if "prefill" in report:
        curve = report["prefill"]
        if curve["exponents"]:
            said.append(
                f"time to first token grows with exponent {curve['exponents'][0]:.2f} at first, "
                f"{curve['exponents'][-1]:.2f} at last (1 is linear, 2 quadratic)"
            )
        if curve["crossover"]:
            said.append(f"the quadratic part equals the linear one at {curve['crossover']:.0f} tokens (fit)")
        return said
    if report["effective_length"] is not None:
        longest = report["by_length"][-1]["length"]
        effective = report["effective_length"]
        what = f"{effective} tokens" if effective else "none of the tested lengths"
        more = " (the longest tested)" if effective == longest else ""
        said.append(f"effective length at {report['threshold']:.1%}: {what}{more}")
    if working := report.get("working_context"):
        gap = "no tested length works" if working["gap_ratio"] is None else f"gap {working['gap_ratio']:.2f}"
        said.append(f"claimed {working['claimed_length']} tokens, working {working['working_length']} ({gap})")
    if dip := report.get("middle_dip"):
        said.append(
            f"beginning {dip['beginning']:.0%}, middle {dip['middle']:.0%}, end {dip['end']:.0%}: "
            f"middle-dip index {100 * dip['index']:+.1f} points"
        )
    for layout in report.get("layouts", ()):
        said.append(
            f"question at {layout['first']} rather than {layout['second']}: {100 * layout['difference']:+.1f} points "
            f"(better {layout['first_better']} times, worse {layout['second_better']}, p = {layout['p_value']:.3f})"
        )
    refused = sum(score["refused"] for score in report["scores"])
    if refused:
        said.append(f"{refused} prompts were refused as too long and count as failed: {report['refused']}")
    return said


def title_of(report: dict[str, Any]) -> str:
    """What was measured of which model; of a path, its name."""
    settings = report["settings"]
    return f"{Path(str(settings.get('model', ''))).name}: {settings.get('kind', 'long context')}"


def _percent(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    return f"{score['mean']:.0%} ({score['low']:.0%}–{score['high']:.0%})"


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
