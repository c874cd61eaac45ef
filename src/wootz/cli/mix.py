"""`wootz mix optimise`: in which shares a corpus's sources are best read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wootz.cli.common import PLAIN_HELP, AsJson, print_json, stdout, table

app = typer.Typer(no_args_is_help=True, **PLAIN_HELP, help="The shares of sources in training.")


@app.command()
def optimise(
    corpus: Annotated[Path, typer.Argument(help="What `wootz data build` made, with tokens.")],
    method: Annotated[str, typer.Option(help="doremi (two small models) or online (one, as a bandit).")] = "doremi",
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each small model.")] = 400,
    width: Annotated[int, typer.Option(min=8, help="Width of the small models.")] = 96,
    eta: Annotated[float, typer.Option(min=0, help="How fast DoReMi moves weights.")] = 1.0,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: AsJson = False,
) -> None:
    """Find weights by small models: what they still can learn is worth reading, what they can't or know is not.

    The recipe's weights are where the search starts. Put the result into the recipe, or train with `--set`.

    Examples:
      [bold]wootz mix optimise corpus --method doremi --steps 1000[/bold]
    """
    from dataclasses import asdict

    from wootz.core import progress_bar
    from wootz.data.tokens import open_stores, weights_of
    from wootz.training.mixing import optimise_mixture
    from wootz.training.studies.positions import Size

    if method not in ("doremi", "online"):
        raise typer.BadParameter(f'"{method}" is neither doremi nor online')
    stores = open_stores(corpus / "tokens")
    prior = weights_of(corpus, stores)
    size = Size(width=width, steps=steps)
    with progress_bar("Training small models") as progress:
        found = optimise_mixture(stores, prior, method=method, size=size, seed=seed, eta=eta, progress=progress)
    if as_json:
        print_json(asdict(found))
        return
    total = sum(prior.values())
    rows = table("source", "before", "found", "loss", right=("before", "found", "loss"))
    for name, weight in found.weights.items():
        rows.add_row(name, f"{prior[name] / total:.1%}", f"{weight:.1%}", f"{found.losses.get(name, 0):.3f}")
    stdout().print(rows)
