"""What is done to text before training, tried on small models: `wootz data cleaning`, `pruning`, `collapse`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import AsJson, load
from wootz.cli.studies import Out, Seeds, Steps, Threads, given, run_studies

if TYPE_CHECKING:
    from wootz.data.documents import Source

Documents = Annotated[
    Path | None, typer.Option(help="Documents: .jsonl, .parquet, a folder. \\[default: what spark learns from]")
]


def cleaning(
    ctx: typer.Context,
    text: Documents = None,
    steps: Steps = None,
    seeds: Seeds = 3,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Filters and deduplication of a dirtied corpus: what is either worth, and do both add up?

    Example:
      [bold]wootz data cleaning --seeds 3[/bold]
    """
    from wootz.training.studies.cleaning import SIZE, cleaning_study

    study = cleaning_study(_source(ctx, text), size=replace(SIZE, **given(steps=steps)))
    run_studies([study], seeds, out, threads, as_json)


def pruning(
    ctx: typer.Context,
    text: Documents = None,
    keep: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the documents that is kept.")] = 0.3,
    steps: Steps = None,
    seeds: Seeds = 3,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Everything, or the part that surprised a small model least, middlingly or most: from which is more learned?

    Of a dirty corpus and of a clean one; all learn for as many steps.

    Example:
      [bold]wootz data pruning --keep 0.5[/bold]
    """
    from wootz.training.studies.pruning import SIZE, pruning_studies

    studies = pruning_studies(_source(ctx, text), size=replace(SIZE, **given(steps=steps)), keep=keep)
    run_studies(list(studies), seeds, out, threads, as_json)


def collapse(
    generations: Annotated[int, typer.Option(min=1, help="How often a model learns from the one before.")] = 8,
    human: Annotated[str, typer.Option(help="Shares of new human text in each diet.")] = "0,0.5",
    learner: Annotated[
        str, typer.Option(help="counts (exact frequencies) or model (a small language model).")
    ] = "counts",
    seeds: Seeds = 3,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Models that learn from what models wrote: what is left of rare words, with and without human text?"""
    from wootz.training.studies.collapse import collapse_study

    if learner not in ("counts", "model"):
        raise typer.BadParameter(f'"{learner}" is neither counts nor model')
    try:
        shares = tuple(float(share) for share in human.split(","))
    except ValueError:
        raise typer.BadParameter(f'"{human}" is not a list of shares such as 0,0.5') from None
    study = collapse_study(generations=generations, human=shares, learner=learner)  # type: ignore[arg-type]
    run_studies([study], seeds, out, threads, as_json)


def _source(ctx: typer.Context, text: Path | None) -> Source:
    from wootz.data.documents import Source
    from wootz.data.packages import with_packages
    from wootz.data.recipe import DataRecipe
    from wootz.training.studies.cleaning import WIKIPEDIA

    source = WIKIPEDIA if text is None else Source(name=text.name, path=str(text))
    (source,) = with_packages(DataRecipe(sources=(source,)), load(ctx).config.home).sources
    return source
