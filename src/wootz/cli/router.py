"""`wootz router`: a router that learns from preferences which prompts take the dear model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wootz.cli.common import AsJson, print_json, stderr, stdout, table

app = typer.Typer(help="Train a router between a cheap and a dear model, and see what it buys.", no_args_is_help=True)

Preferences = Annotated[Path, typer.Argument(help='JSON lines: {"prompt", "winner": cheap|dear|tie} or qualities.')]
SHARES = (0.8, 0.9, 0.95, 0.99)


@app.callback()
def router() -> None:
    """Train a router between a cheap and a dear model, and see what it buys."""


@app.command("train")
def train(
    preferences: Preferences,
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the router goes.")] = Path("router.json"),
) -> None:
    """Learn which prompts the dear model is better at. Name the file in a route: policy = "learned".

    Examples:
      [bold]wootz router train prefs.jsonl -o router.json[/bold]
    """
    from wootz.gateway.routing import training

    rows = training.read_preferences(preferences)
    made = training.train(rows)
    made.save(out)
    dear = sum(row.needs_dear for row in rows)
    stderr().print(f"{len(rows)} prompts, {dear} of them the dear model's; {len(made.terms)} terms. Written to {out}.")


@app.command("curve")
def curve(
    preferences: Preferences,
    cheap_price: Annotated[
        float, typer.Option(min=0, max=1, help="The cheap model's price, as a part of the dear one's.")
    ] = 0.1,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve into this file (PNG, SVG, PDF).")] = None,
    as_json: AsJson = False,
) -> None:
    """Quality against cost at every threshold, each prompt scored by a router that has not seen it.

    Examples:
      [bold]wootz router curve prefs.jsonl --cheap-price 0.05 --plot curve.png[/bold]
    """
    from wootz.gateway.routing import training

    rows = training.read_preferences(preferences)
    drawn = training.curve(rows, training.cross_scores(rows), cheap_price)
    if plot is not None:
        training.plot(drawn, plot)
    if as_json:
        print_json(asdict(drawn))
        return
    columns = ("threshold", "dear share", "quality", "cost")
    lines = table("of the dear quality", *columns, right=columns)
    for share in SHARES:
        point = drawn.cheapest(share)
        cells = (f"{point.threshold:.3f}", f"{point.dear_share:.1%}", f"{point.quality:.3f}", f"{point.cost:.1%}")
        lines.add_row(f"{share:.0%}", *cells)
    stdout().print(lines)
    stdout().print(f"Recovered of the gap between the models, on average: {drawn.recovered:.1%} (chance: 50%).")
