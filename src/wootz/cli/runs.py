"""`wootz runs`: what was made, how it went, and going on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wootz.cli.common import PLAIN_HELP, AsJson, print_json, stdout, table
from wootz.cli.run import Restarts, RunsRoot, carry_out, scored_text

app = typer.Typer(no_args_is_help=True, help="Runs of recipes: list, look at, compare, go on.", **PLAIN_HELP)

ROOT = Path("runs")
Name = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its folder.")]


@app.command("list")
def list_(root: RunsRoot = ROOT, as_json: AsJson = False) -> None:
    """All runs, newest first."""
    from wootz.training.runs import list_runs

    runs = list_runs(root)
    if as_json:
        print_json([{"name": run.name, **run.status} for run in runs])
        return
    if not runs:
        stdout().print("No runs yet. Make one: [bold]wootz run recipes/spark.toml[/bold]")
        return
    rows = table("run", "state", "stage", "step", "loss", "bits per byte", right=("step", "loss", "bits per byte"))
    for run in runs:
        status, metrics, bits = run.status, run.rows("metrics"), run.bits_per_byte
        step = f"{metrics[-1]['step'] + 1:,}" if metrics else ""
        rows.add_row(
            run.name,
            status["state"],
            status.get("stage", ""),
            step + (f"/{status['steps']:,}" if "steps" in status else ""),
            f"{metrics[-1]['loss']:.3f}" if metrics else "",
            "" if bits is None else f"{bits:.3f}",
        )
    stdout().print(rows)


@app.command()
def show(name: Name, root: RunsRoot = ROOT, as_json: AsJson = False) -> None:
    """One run: what it was made with, its losses, what guards saw, what it wrote."""
    from wootz.training.runs import find_run

    run = find_run(root, name)
    kinds = ("evaluations", "samples", "events")
    facts = {"name": run.name, "status": run.status, "recipe": run.recipe, "environment": run.environment}
    facts |= {kind: run.rows(kind) for kind in kinds}
    if as_json:
        print_json(facts | {"metrics": run.rows("metrics")})
        return
    git = run.environment["git"]
    made = f"commit {git['commit'][:10]}, {git['changed_files']} files changed" if git else "outside of git"
    stdout().print(f"[bold]{run.name}[/bold]: {run.status['state']}; {run.path}; {made}")
    metrics = run.rows("metrics")
    if metrics:
        losses = [row["loss"] for row in metrics]
        stdout().print(f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {len(losses):,} steps  {_spark(losses)}")
    for row in facts["evaluations"][-5:]:
        scores = "".join(f"; {name} {scored_text(scored)}" for name, scored in row.get("benchmarks", {}).items())
        stdout().print(f"step {row['step'] + 1:,}: {row['bits_per_byte']:.3f} bits per byte, at a glance{scores}")
    if evaluated := run.finished("evaluate"):
        scores = "".join(f"; {name} {scored_text(scored)}" for name, scored in evaluated["benchmarks"].items())
        stdout().print(f"all held-out text: {evaluated['bits_per_byte']:.3f} bits per byte{scores}")
    for row in facts["events"][-10:]:
        stdout().print(f"! {row['line']}", style="yellow", markup=False)
    for row in facts["samples"][-2:]:
        stdout().print(f"step {row['step'] + 1:,}: {row['text']}", style="dim", markup=False)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN...")], root: RunsRoot = ROOT, as_json: AsJson = False
) -> None:
    """Settings in which runs differ, and what came of them.

    Example:
      [bold]wootz runs compare spark spark-deep[/bold]
    """
    from wootz.training.runs import compare as compare_runs
    from wootz.training.runs import find_run

    runs = [find_run(root, name) for name in names]
    found = compare_runs(runs)
    if as_json:
        print_json({"runs": names, "settings": found.settings, "results": found.results})
        return
    rows = table("", *(run.name for run in runs), right=tuple(run.name for run in runs))
    for key, values in {**found.settings, **found.results}.items():
        rows.add_row(key, *(_text(value) for value in values))
    stdout().print(rows)


@app.command()
def resume(ctx: typer.Context, name: Name, root: RunsRoot = ROOT, restarts: Restarts = 0) -> None:
    """Go on with a run that was stopped, exactly where it was."""
    from wootz.training.recipe import Recipe
    from wootz.training.runs import find_run

    run = find_run(root, name)
    carry_out(ctx, Recipe.of(run.recipe, str(run.path / "recipe.json")), run.path, restarts=restarts)


def _text(value: Any) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else "–" if value is None else str(value)


def _spark(values: list[float], width: int = 40) -> str:
    """A line of blocks: the curve at a glance."""
    picked = values[:: max(1, len(values) // width)]
    low, high = min(picked), max(picked)
    return "".join("▁▂▃▄▅▆▇█"[int(7 * (value - low) / ((high - low) or 1))] for value in picked)
