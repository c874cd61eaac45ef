"""The picture of `wootz plan capacity`: what was asked for, and how many places there were for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wootz.core.errors import MissingExtraError

if TYPE_CHECKING:
    from wootz.gateway.scaling import Result, Trace


def draw(load: Trace, runs: dict[str, Result], places: int, file: Path) -> None:
    """The file's suffix chooses the format."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("cli.plan_plot", "bench", "matplotlib") from None
    figure = Figure(figsize=(9, 2.2 * len(runs)), layout="constrained")
    for axes, (name, run) in zip(
        figure.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0], runs.items(), strict=True
    ):
        hours = [now / 3600 for now, _, _ in run.samples]
        axes.fill_between(hours, [busy for _, _, busy in run.samples], color="0.75", label="busy or waiting")
        axes.step(hours, [places * loaded for _, loaded, _ in run.samples], where="post", color="black", label="places")
        axes.set(
            title=f"{name}: {run.paid_hours:,.0f} replica hours, p99 wait {run.wait_quantile(0.99):.1f} s",
            ylim=(0, None),
        )
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].set(xlabel="hours")
    figure.axes[-1].legend(frameon=False)
    figure.suptitle(load.name)
    figure.savefig(file, dpi=150)
