"""`wootz data`: from raw text, or from the topics of texts to be, to a corpus that is fit to train on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import PLAIN_HELP, AsJson, human_bytes, human_count, load, print_json, stderr, stdout, table
from wootz.cli.data_studies import cleaning, collapse, pruning
from wootz.cli.synthesize import synthesize

if TYPE_CHECKING:
    from wootz.data.build import BuildReport
    from wootz.data.recipe import DataRecipe

app = typer.Typer(
    no_args_is_help=True,
    **PLAIN_HELP,
    help="Clean, deduplicate, decontaminate and tokenise text for training; have models write it.",
)

for command in (synthesize, cleaning, pruning, collapse):
    app.command()(command)

Out = Annotated[Path, typer.Option("-o", "--out", help="The new folder. A stopped run goes on there.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes. \\[default: one per core]")]
Paths = Annotated[list[str], typer.Argument(help="Files, folders or patterns; each becomes a source.")]


@app.command("build")
def build_(
    ctx: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A data recipe in TOML.")],
    out: Out,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Carry out a recipe: read, filter, deduplicate, decontaminate, tokenise. Says what each step kept.

    Kinds of step: heuristics, language, exact, lines, near, quality, decontaminate. A recipe:

      seed = 0
      held_out = 0.01
      \\[\\[source]]
      name = "web"
      path = "raw/*.jsonl.gz"
      \\[\\[step]]
      kind = "near"
      jaccard = 0.7
      \\[tokens]
      vocab_size = 8192

    Examples:
      [bold]wootz data build recipe.toml -o corpus[/bold]
    """
    from wootz.core import progress_bar
    from wootz.data.packages import with_packages
    from wootz.data.recipe import load_recipe

    with progress_bar("Fetching packages") as progress:
        local = with_packages(load_recipe(recipe), load(ctx).config.home, progress)
    _build(local, out, workers, as_json)


@app.command()
def dedup(
    paths: Paths,
    out: Out,
    jaccard: Annotated[float, typer.Option(help="How similar near-copies are: shared shingles of all.")] = 0.7,
    permutations: Annotated[int, typer.Option(min=1, help="Numbers in a signature.")] = 128,
    ngram: Annotated[int, typer.Option(min=1, help="Words in a shingle.")] = 5,
    lines: Annotated[bool, typer.Option(help="Also drop lines that occurred before.")] = False,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Drop copies and near-copies: MinHash signatures in bands, clusters by union-find, the first of each is kept.

    Examples:
      [bold]wootz data dedup raw/ -o clean --jaccard 0.7[/bold]
    """
    from wootz.data.minhash import best_bands

    bands = best_bands(jaccard, permutations)
    chances = ", ".join(
        f"{bands.detection(s):.1%} at {s:g}" for s in (jaccard - 0.2, jaccard, jaccard + 0.1) if 0 < s < 1
    )
    stderr().print(f"{bands.num} bands of {bands.rows}: a pair is found with probability {chances}", style="dim")
    near = {"kind": "near", "jaccard": jaccard, "permutations": permutations, "ngram": ngram}
    steps = [{"kind": "exact"}, *([{"kind": "lines"}] if lines else []), near]
    _build(_recipe(paths, steps), out, workers, as_json)


@app.command()
def decontam(
    paths: Paths,
    out: Out,
    against: Annotated[list[Path], typer.Option(help="An eval set: a file, or a folder of them. May be repeated.")],
    ngram: Annotated[int, typer.Option(min=1, help="Words in a row that make a leak.")] = 13,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Drop documents that quote an eval set, and say how much of each one was found.

    Examples:
      [bold]wootz data decontam clean/documents -o safe --against evals/ --ngram 13[/bold]
    """
    step = {"kind": "decontaminate", "against": [str(path.absolute()) for path in against], "ngram": ngram}
    _build(_recipe(paths, [step]), out, workers, as_json)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="What `wootz data build` made, or a token store.")],
    examples: Annotated[bool, typer.Option(help="Show some of what was dropped, for each reason.")] = False,
    verify: Annotated[bool, typer.Option(help="Compare the checksums of all token shards.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is in a corpus: keep rates, reasons, eval sets that were quoted, tokens by source.

    Examples:
      [bold]wootz data inspect corpus --examples --verify[/bold]
    """
    from dataclasses import asdict

    from wootz.core import NotFoundError
    from wootz.data.build import BuildReport
    from wootz.data.token_store import TokenStore
    from wootz.data.tokens import open_stores

    if (folder / "index.json").exists():
        stores, report = {folder.name: TokenStore.open(folder, verify=verify)}, None
    else:
        report = BuildReport.read(folder)
        if report is None:
            raise NotFoundError(f"{folder}: is neither a corpus nor a token store")
        stores = open_stores(folder / "tokens", verify=verify)
    if as_json:
        sizes = {name: {"tokens": s.num_tokens, "documents": s.num_documents} for name, s in stores.items()}
        print_json({"report": asdict(report) if report else None, "stores": sizes})
        return
    if report:
        _show(report)
        if examples:
            _show_examples(report)
    rows = table("source", "documents", "tokens", "shards", right=("documents", "tokens", "shards"))
    for name, store in stores.items():
        rows.add_row(name, f"{store.num_documents:,}", f"{store.num_tokens:,}", str(len(store.index.shards)))
    stdout().print(rows)


def _recipe(paths: list[str], steps: list[dict[str, Any]]) -> DataRecipe:
    from wootz.data.recipe import recipe_of

    names: dict[str, str] = {}
    for path in paths:
        name = Path(path).name.split(".")[0].strip("*") or "source"
        while name in names:
            name += "_"
        names[name] = str(Path(path).absolute())
    return recipe_of({"source": [{"name": name, "path": path} for name, path in names.items()], "step": steps}, Path())


def _build(recipe: DataRecipe, out: Path, workers: int | None, as_json: bool) -> None:
    from dataclasses import asdict

    from wootz.core import progress_bar
    from wootz.data.build import build
    from wootz.data.synthetic import mix_guard
    from wootz.data.tokens import open_stores, tokenize, tokenizer_for, weights_of

    with progress_bar("Preparing text") as progress:
        report = build(recipe, out, workers=workers or os.cpu_count() or 1, progress=progress)
    tokenized = None
    if recipe.tokens:
        with progress_bar("Tokenising") as progress:
            tokenized = tokenize(out, tokenizer_for(out, recipe.tokens), progress)
    if as_json:
        print_json({"report": asdict(report), "tokens": tokenized and asdict(tokenized)})
        return
    _show(report)
    if tokenized:
        total = sum(tokenized.tokens.values())
        each = f"{tokenized.bytes_per_token:.2f} bytes each"
        stdout().print(f"{human_count(total)} tokens of {len(tokenized.tokens)} sources, {each}")
        stdout().print(_speed(tokenized.throughput.rates()))
        weights = weights_of(out, open_stores(out / "tokens"))
        by_models = {source.name for source in recipe.sources if source.synthetic}
        if warning := mix_guard(weights, (name for name in weights if {name, name.rpartition(".")[0]} & by_models)):
            stdout().print(warning, style="yellow")
    stderr().print(f"[green]✓[/green] {out}: {report.steps[-1].after.documents:,} documents")


def _show(report: BuildReport) -> None:
    figures = ("documents", "bytes", "kept", "kept of all", "seconds")
    rows = table("step", *figures, "most frequent reasons", right=figures)
    first = report.steps[0].before.bytes or 1
    for step in report.steps:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in [*step.reasons.items()][:3])
        rows.add_row(
            step.kind,
            f"{step.after.documents:,}",
            human_bytes(step.after.bytes),
            f"{step.kept:.1%}",
            f"{step.after.bytes / first:.1%}",
            f"{step.seconds:.1f}",
            reasons,
        )
    stdout().print(rows)
    for step in report.steps:
        for name, found in step.notes.get("benchmarks", {}).items():
            stdout().print(
                f"{name}: {found['leaked']} of {found['items']} items are quoted, by {found['documents']} documents"
                f" ({found['items'] - found['searchable']} too short to search)",
                markup=False,
            )
    if report.tokenizing:
        stdout().print(_speed(report.tokenizing))
    for place in report.damaged:
        stdout().print(f"left out: {place}", style="yellow", markup=False)


def _speed(rates: dict[str, float]) -> str:
    return (
        f"Tokenised at {rates['documents_per_second']:,.0f} documents/s, {rates['megabytes_per_second']:.1f} MB/s, "
        f"{human_count(rates['tokens_per_second'])} tokens/s"
    )


def _show_examples(report: BuildReport) -> None:
    for step in report.steps:
        for reason, texts in step.examples.items():
            stdout().print(f"\n{step.kind}: {reason}", style="bold", markup=False)
            for text in texts:
                stdout().print(f"  {' '.join(text.split())}", markup=False)
