"""`make`: a recipe from its first stage to its last, in one run folder. What is done already is not done again.

Of many processes all pretrain together; what comes before and after is the first one's, and the others wait.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from wootz.core.progress import SILENT, Progress
from wootz.training.processes import wait_for_all
from wootz.training.recipe import Recipe
from wootz.training.recording import Watch
from wootz.training.runs import RunFolder
from wootz.training.trainer import Callback, rank

Bar = Callable[[str], AbstractContextManager[Progress]]


def make(
    recipe: Recipe,
    run: RunFolder,
    home: Path,
    *,
    bar: Bar,
    watch: Watch,
    report: Callable[[str], None],
    told: Callable[[str, dict[str, Any]], None] = lambda stage, facts: None,
    extra: Sequence[Callback] = (),
) -> dict[str, dict[str, Any]]:
    """Reports by stage. ``told`` hears each as it is finished."""
    from wootz.training.stages.benchmarks import benchmarks_of
    from wootz.training.stages.clean import clean
    from wootz.training.stages.evaluate import evaluate_model
    from wootz.training.stages.pretrain import pretrain
    from wootz.training.stages.tokenize import tokenize

    stages: dict[str, Callable[[Progress], dict[str, Any]]] = {
        "clean": lambda progress: clean(recipe, run, home, progress),
        "tokenize": lambda progress: tokenize(recipe, run, progress),
        "pretrain": lambda progress: pretrain(recipe, run, watch=watch, report=report, extra=extra),
        "evaluate": lambda progress: evaluate_model(recipe, run, progress),
    }
    reports: dict[str, dict[str, Any]] = {}
    random.seed(recipe.seed)
    benchmarks_of(recipe)  # whether they can be read, before hours of preparing text
    try:
        for stage in recipe.stages:
            done = run.finished(stage)
            if rank() > 0:
                if done is None and stage == "pretrain":
                    stages[stage](SILENT)
                wait_for_all()
                continue
            if done is None:
                run.set_status("running", stage=stage)
                started = time.monotonic()
                with bar(stage) as progress:
                    done = stages[stage](progress)
                done["wall_seconds"] = round(time.monotonic() - started, 1)
                run.finish(stage, done)
            wait_for_all()
            reports[stage] = done
            told(stage, done)
    except BaseException as error:
        if rank() == 0:
            run.set_status("stopped" if isinstance(error, KeyboardInterrupt) else "failed", why=str(error)[:300])
        raise
    if rank() == 0:
        run.set_status("done")
    return reports
