"""Pictures of a report: the heatmap of depth and length, scores by length, the U-curve, time to first token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wootz.core import MissingExtraError
from wootz.evals.long_context.report import title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_report(report: dict[str, Any], folder: Path, suffix: str = "png") -> list[Path]:
    """Draw what the report holds; returns the files. Raises `MissingExtraError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("evals.long_context.plots", "bench", "matplotlib") from None

    depths = report.get("by_depth", [])
    drawings: dict[str, Callable[[Axes, dict[str, Any]], None]] = {}
    if len({entry["length"] for entry in depths}) > 1:
        drawings["heatmap"] = _heatmap
    if "middle_dip" in report:
        drawings["position"] = _position
    if "prefill" in report:
        drawings["prefill"] = _prefill
    elif len(report["by_length"]) > 1:
        drawings["lengths"] = _lengths

    files = []
    for name, draw in drawings.items():
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        draw(axes, report)
        figure.suptitle(title_of(report))
        files.append(folder / f"{name}.{suffix}")
        figure.savefig(files[-1], dpi=150)
    return files


def _heatmap(axes: Axes, report: dict[str, Any]) -> None:
    entries = report["by_depth"]
    lengths, depths = (sorted({entry[name] for entry in entries}) for name in ("length", "depth"))
    cells = [[float("nan")] * len(lengths) for _ in depths]
    for entry in entries:
        row, column = depths.index(entry["depth"]), lengths.index(entry["length"])
        cells[row][column] = entry["mean"]
        axes.text(
            column,
            row,
            f"{entry['mean']:.0%}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if entry["mean"] < 0.5 else "black",
        )
    image = axes.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set(xlabel="context length (tokens)", ylabel="depth of the needle")
    axes.figure.colorbar(image, ax=axes, label="score")


def _lengths(axes: Axes, report: dict[str, Any]) -> None:
    tasks = list(dict.fromkeys(entry["task"] for entry in report["scores"]))
    if len(tasks) > 1:
        for task in tasks[1:] if "layouts" in report else tasks:
            entries = [entry for entry in report["scores"] if entry["task"] == task and entry["length"]]
            axes.plot(
                [entry["length"] for entry in entries],
                [entry["mean"] for entry in entries],
                linewidth=0.8,
                alpha=0.6,
                label=task,
            )
    whole = tasks[0] if "layouts" in report or len(tasks) == 1 else "all"
    _band(axes, report["by_length"], "length", label=whole)
    axes.axhline(report["threshold"], color="black", linewidth=0.8, linestyle=":")
    ticks = [entry["length"] for entry in report["by_length"]]
    axes.set(xlabel="context length (tokens)", ylabel="score", ylim=(-0.03, 1.03), xscale="log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)


def _position(axes: Axes, report: dict[str, Any]) -> None:
    for length in dict.fromkeys(entry["length"] for entry in report["by_depth"]):
        entries = [entry for entry in report["by_depth"] if entry["length"] == length]
        _band(
            axes, sorted(entries, key=lambda entry: entry["depth"]), "depth", label=f"{length} tokens" if length else ""
        )
    axes.set(xlabel="where the answer stands (0: beginning, 1: end)", ylabel="score", ylim=(-0.03, 1.03))
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)


def _prefill(axes: Axes, report: dict[str, Any]) -> None:
    curve = report["prefill"]
    lengths, seconds = list(curve["medians"]), list(curve["medians"].values())
    axes.plot(lengths, seconds, "o", color="black", label="measured (median)")
    if curve["linear"] is not None:
        steps = [lengths[-1] * step / 100 for step in range(1, 101)]
        fitted = [curve["linear"] * n + curve["quadratic"] * n * n for n in steps]
        axes.plot(steps, fitted, color="black", linewidth=0.8, label="linear + quadratic fit")
        axes.plot(steps, [curve["linear"] * n for n in steps], color="grey", linewidth=0.8, label="its linear part")
    axes.set(xlabel="prompt tokens", ylabel="time to first token (s)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _band(axes: Axes, entries: list[dict[str, Any]], x: str, label: str) -> None:
    places = [entry[x] for entry in entries]
    (line,) = axes.plot(places, [entry["mean"] for entry in entries], marker="o", label=label or None)
    axes.fill_between(
        places,
        [entry["low"] for entry in entries],
        [entry["high"] for entry in entries],
        alpha=0.15,
        color=line.get_color(),
        linewidth=0,
    )
