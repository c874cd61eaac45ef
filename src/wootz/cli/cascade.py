"""`wootz cascade`: thresholds for a cascade, from labelled answers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from wootz.cli.common import AsJson, print_json, stdout, table

app = typer.Typer(help="Fit a cascade from cheap to dear models.", no_args_is_help=True)


@app.callback()
def cascade() -> None:
    """Fit a cascade from cheap to dear models."""


@app.command("fit")
def fit(
    answers: Annotated[
        Path, typer.Argument(help='JSON lines {"models": [{"confidence", "quality", "cost"}, …]}, cheap to dear.')
    ],
    target_quality: Annotated[
        float, typer.Option(min=0, help="The least quality wanted, as a part of the last model's.")
    ] = 0.95,
    held_out: Annotated[float, typer.Option(min=0, max=0.9, help="The part kept apart to check the thresholds.")] = 0.3,
    as_json: AsJson = False,
) -> None:
    """Find the thresholds of least cost that reach a quality. The cost counts rejected answers too.

    Examples:
      [bold]wootz cascade fit answers.jsonl --target-quality 0.95[/bold]
    """
    from wootz.providers import thresholds

    questions = thresholds.read_questions(answers)
    Random(0).shuffle(questions)
    kept = int(held_out * len(questions))
    checked, fitted = questions[:kept], questions[kept:]
    found = thresholds.fit(fitted, target_quality)
    sets = {"fitted": fitted, "held out": checked}
    results = {name: thresholds.operate(some, found.thresholds) for name, some in sets.items() if some}
    always = {name: thresholds.last_alone(some) for name, some in sets.items() if some}
    if as_json:
        print_json({"thresholds": found.thresholds, **{name: asdict(result) for name, result in results.items()}})
        return
    columns = ("questions", "quality", "of the last", "USD each", "of the last's", "wasted", "answered by each")
    lines = table("", *columns, right=columns)
    for name, result in results.items():
        last = always[name]
        lines.add_row(
            name,
            str(len(sets[name])),
            f"{result.quality:.3f}",
            f"{result.quality / last.quality:.1%}" if last.quality else "-",
            f"{result.cost:.6f}",
            f"{result.cost / last.cost:.1%}" if last.cost else "-",
            f"{result.wasted / result.cost:.1%}" if result.cost else "-",
            ", ".join(f"{share:.0%}" for share in result.shares),
        )
    stdout().print(lines)
    stdout().print(f"thresholds = [{', '.join(f'{threshold:.6g}' for threshold in found.thresholds)}]")
