"""`wootz mup`: does one learning rate hold for all widths, and if not, which layer is to blame?"""

from __future__ import annotations

from typing import Annotated

import typer

from wootz.cli.common import PLAIN_HELP, AsJson, numbers, print_json, stdout, table
from wootz.cli.studies import Out, Seeds, Steps, Text, Threads, given, run_studies

app = typer.Typer(help="muP: tune a narrow model, train a wide one.", no_args_is_help=True, **PLAIN_HELP)

Widths = Annotated[str, typer.Option(help="Widths of the models; the first is the base.")]


@app.command()
def check(
    widths: Widths = "32,64,128,256",
    steps: Annotated[int, typer.Option(min=1, help="Steps before looking.")] = 4,
    rate: Annotated[float, typer.Option(min=1e-6, help="Learning rate of all widths.")] = 1e-2,
    seeds: Annotated[int, typer.Option(min=1, help="Models of each width.")] = 2,
    text: Text = None,
    as_json: AsJson = False,
) -> None:
    """The coordinate check: with which power of the width do activations grow after a few steps?

    Under muP near zero everywhere; a layer that was forgotten stands out. Without it, they grow.

    Example:
      [bold]wootz mup check --widths 32,64,128[/bold]
    """
    from wootz.core import progress_bar
    from wootz.core.errors import BadRequestError
    from wootz.training.studies.mup import GROWING, SMALL, coordinates

    sizes = tuple(numbers(widths))
    if len(set(sizes)) < 2 or any(width % SMALL.heads for width in sizes):
        raise BadRequestError(f'--widths "{widths}"', hint=f"two or more, multiples of {SMALL.heads}")
    found = {}
    with progress_bar("training each width for a few steps") as progress:
        progress.set_total(2)
        for name, mup in (("muP", True), ("standard", False)):
            found[name] = coordinates(
                sizes, mup=mup, steps=steps, learning_rate=rate, seeds=seeds, text=text,
                size=_base(sizes[0]),
            )  # fmt: skip
            progress.advance()
    if as_json:
        print_json({name: {"sizes": c.sizes, "exponents": c.exponents} for name, c in found.items()})
        return
    columns = [f"muP {width}" for width in sizes]
    rows = table("module", *columns, "power", "standard's", right=(*columns, "power", "standard's"))
    for module, power in found["muP"].exponents.items():
        values = [f"{found['muP'].sizes[width][module]:.3f}" for width in sizes]
        other = found["standard"].exponents[module]
        rows.add_row(
            module, *values, f"{power:+.2f}", f"[red]{other:+.2f}[/red]" if other > GROWING else f"{other:+.2f}"
        )
    stdout().print(rows)
    growing = found["muP"].growing
    verdict = f"grows under muP: {', '.join(growing)}" if growing else "nothing grows with the width under muP"
    stdout().print(f"Mean absolute activations after {steps} steps; {verdict}.", style="dim")


@app.command()
def sweep(
    widths: Widths = "32,64,128,256",
    steps: Steps = None,
    seeds: Seeds = 2,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Loss over the learning rate for each width, under muP and without: does the best rate stay where it is?

    Example:
      [bold]wootz mup sweep --widths 32,64,128 --seeds 1 --out runs/mup[/bold]
    """
    from dataclasses import replace

    from wootz.training.studies.mup import best_rates, transfer_study

    sizes = tuple(numbers(widths))
    study = transfer_study(widths=sizes, size=replace(_base(sizes[0]), **given(steps=steps)), text=text)
    reports = run_studies([study], seeds, out, threads, as_json)
    if not as_json:
        for variant, rate in best_rates(reports[0]["curves"]).items():
            stdout().print(f"best rate of {variant}: {rate:.4f}", style="dim")


def _base(width: int):
    from dataclasses import replace

    from wootz.training.studies.mup import SMALL

    return replace(SMALL, width=width)
