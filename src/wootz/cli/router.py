"""`wootz router`: a router that learns from preferences which prompts take the dear model."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import AsJson, ServerURL, print_json, server_url, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.gateway.routing.training import Preference, Vectors

app = typer.Typer(help="Train a router between a cheap and a dear model, and see what it buys.", no_args_is_help=True)

Preferences = Annotated[Path, typer.Argument(help='JSON lines: {"prompt", "winner": cheap|dear|tie} or qualities.')]
Embedder = Annotated[
    str | None, typer.Option(help="Learn from embeddings by this model of the server. \\[default: from words]")
]
ApiKey = Annotated[str | None, typer.Option("--key", envvar="WOOTZ_API_KEY", help="A key of that server.")]
SHARES = (0.8, 0.9, 0.95, 0.99)


@app.callback()
def router() -> None:
    """Train a router between a cheap and a dear model, and see what it buys."""


@app.command("train")
def train(
    ctx: typer.Context,
    preferences: Preferences,
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the router goes.")] = Path("router.json"),
    embedder: Embedder = None,
    url: ServerURL = None,
    key: ApiKey = None,
) -> None:
    """Learn which prompts the dear model is better at. Name the file in a route: policy = "learned".

    Examples:
      [bold]wootz router train prefs.jsonl -o router.json[/bold]
      [bold]wootz router train prefs.jsonl --embedder minilm[/bold]
    """
    from wootz.gateway.routing import training

    rows = training.read_preferences(preferences)
    made = training.train(rows, _vectors(ctx, rows, embedder, url, key), embedder)
    made.save(out)
    dear = sum(row.needs_dear for row in rows)
    stderr().print(
        f"{len(rows)} prompts, {dear} of them the dear model's; {len(made.weights)} terms. Written to {out}."
    )


@app.command("curve")
def curve(
    ctx: typer.Context,
    preferences: Preferences,
    cheap_price: Annotated[
        float, typer.Option(min=0, max=1, help="The cheap model's price, as a part of the dear one's.")
    ] = 0.1,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve into this file (PNG, SVG, PDF).")] = None,
    embedder: Embedder = None,
    url: ServerURL = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Quality against cost at every threshold, each prompt scored by a router that has not seen it.

    Examples:
      [bold]wootz router curve prefs.jsonl --cheap-price 0.05 --plot curve.png[/bold]
    """
    from wootz.gateway.routing import training

    rows = training.read_preferences(preferences)
    scores = training.cross_scores(rows, _vectors(ctx, rows, embedder, url, key))
    drawn = training.curve(rows, scores, cheap_price)
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


def _vectors(
    ctx: typer.Context, rows: list[Preference], embedder: str | None, url: str | None, key: str | None
) -> Vectors | None:
    if embedder is None:
        return None
    from wootz.app.connect import models_of_server
    from wootz.core import NotFoundError
    from wootz.gateway.routing.training import vectors_of

    async def ask() -> Vectors:
        address = url or server_url(ctx)
        async with models_of_server(address, key) as models:
            if embedder not in models:
                raise NotFoundError(f'{address} has no model "{embedder}"', hint=f"there is {', '.join(models)}")
            return await vectors_of(rows, models[embedder])

    return asyncio.run(ask())
