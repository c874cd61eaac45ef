"""A picture of a concurrency sweep: throughput and latencies against concurrency, as one PNG or SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wootz.core import MissingExtraError


def plot(levels: list[dict[str, Any]], title: str, file: Path) -> None:
    """Draw the summaries of `wootz.app.load.Level`; the file's suffix chooses the format."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("app.load_plot", "bench", "matplotlib") from None
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    throughput, *latencies = figure.subplots(1, 3)
    positions = [level["concurrency"] for level in levels]
    throughput.plot(positions, [level["output_tokens_per_second"] for level in levels], marker="o", color="black")
    throughput.set(title="Throughput", ylabel="output tokens / s")
    for axes, name, label in (
        (latencies[0], "time_to_first_token", "Time to first token"),
        (latencies[1], "inter_token_latency", "Inter-token latency"),
    ):
        for percentile, style in (("p50", "-"), ("p95", "--"), ("p99", ":")):
            milliseconds = [1000 * level[name][percentile] for level in levels]
            axes.plot(positions, milliseconds, style, marker="o", color="black", label=percentile)
        axes.set(title=label, ylabel="ms")
        axes.legend(frameon=False)
    for axes in (throughput, *latencies):
        axes.set(xlabel="concurrency", xscale="log")
        axes.set_xticks(positions, [str(position) for position in positions])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(file, dpi=150)
