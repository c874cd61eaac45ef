"""The stage that decides what is learned: the recipe's sources and steps, carried out by the data room."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wootz.core.errors import ConfigError
from wootz.core.progress import SILENT, Progress
from wootz.data.build import build
from wootz.data.packages import with_packages
from wootz.training.recipe import Recipe
from wootz.training.runs import RunFolder


def clean(recipe: Recipe, run: RunFolder, home: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Leaves what `wootz.data.build` does in the run's ``data`` folder; `wootz data inspect` shows it."""
    local = with_packages(recipe.data.recipe(recipe.seed), home, progress)
    report = build(local, run.data, workers=os.cpu_count() or 1, progress=progress)
    read, left = report.steps[0].after, report.steps[-1].after
    if not report.held_out or report.held_out == left.documents:
        raise ConfigError(
            f"{left.documents} of {read.documents} documents are left: too few to train on some and hold others out",
            hint="give more text, one document per line in a .jsonl file, or gentler steps",
        )
    return {
        "read": read.documents,
        **{f"left by {number} {step.kind}": step.after.documents for number, step in enumerate(report.steps[1:], 1)},
        "held_out": report.held_out,
        "bytes": left.bytes,
    }
