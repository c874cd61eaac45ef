"""Small models trained to see what an architecture can do: `wootz arch recall`, `memory`, `extrapolate`, `extend`,
`stream`, `balance`, `kv-heads`, `vocabulary`, `ablate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, print_json, stdout, table

if TYPE_CHECKING:
    from wootz.training.studies.study import Study

Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Folder for results, report and plot. A stopped study goes on there. \\[default: runs/NAME]"
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds; figures are their mean and standard deviation.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Training steps of each model.")]
Text = Annotated[Path | None, typer.Option(help="A text file to train on. \\[default: Python's standard library]")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with.")]


def recall(
    task: Annotated[str, typer.Option(help="recall (look pairs up) or copy (repeat a text)")] = "recall",
    models: Annotated[
        str, typer.Option(help="Which, by the start of their names: attention;gated;mamba2. \\[default: all]")
    ] = "",
    lengths: Annotated[str, typer.Option(help="Pairs to remember, or tokens to copy.")] = "2,4,8,16",
    steps: Steps = None,
    seeds: Seeds = 3,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Attention against state-space layers against hybrids: which can look something up?

    Example:
      [bold]wootz arch recall --models 'attention;gated linear' --lengths 4,16 --seeds 1[/bold]
    """
    from wootz.cli.common import numbers
    from wootz.training.studies.recall import MODELS, recall_study

    starts = tuple(models.split(";"))
    chosen = tuple(name for name in MODELS if name.startswith(starts)) or starts
    settings: dict[str, Any] = {"pairs": tuple(numbers(lengths)), "models": chosen, "task": task}
    run_studies([recall_study(**settings, **given(steps=steps))], seeds, out, threads, as_json)


def memory(
    lengths: Annotated[str, typer.Option(help="Pairs to remember.")] = "2,4,8,16",
    sizes: Annotated[str, typer.Option(help="Dimensions of the state.")] = "4,8,16",
    seeds: Seeds = 3,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """What a running state can hold before any learning: the bound that `recall` is to be read against."""
    from wootz.cli.common import numbers
    from wootz.training.studies.memory import memory_study

    study = memory_study(pairs=tuple(numbers(lengths)), sizes=tuple(numbers(sizes)))
    run_studies([study], seeds, out, threads, as_json)


def extrapolate(
    schemes: Annotated[str, typer.Option("--pos", help="Schemes to compare.")] = "rope,alibi,nope,sinusoidal",
    reach: Annotated[int, typer.Option(min=2, help="Read up to this many training lengths.")] = 8,
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train short, read long: perplexity and recall of each position scheme beyond its training length."""
    from wootz.training.studies.positions import Size, extrapolation_studies

    size = Size(**given(steps=steps))
    studies = extrapolation_studies(schemes=tuple(schemes.split(",")), size=size, reach=reach, text=text)
    run_studies(list(studies), seeds, out, threads, as_json)


def extend(
    factor: Annotated[int, typer.Option(min=2, help="How many times longer.")] = 4,
    tuning_steps: Annotated[int, typer.Option("--tuning-steps", help="Steps at the new length.")] = 40,
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Stretch a trained RoPE model: not at all, PI, NTK, YaRN, LongRoPE; each untuned and after a few steps."""
    from wootz.training.studies.positions import Size, extension_study

    study = extension_study(size=Size(**given(steps=steps)), factor=factor, tuning_steps=tuning_steps, text=text)
    run_studies([study], seeds, out, threads, as_json)


def stream(
    window: Annotated[int, typer.Option(min=8, help="Tokens that are kept.")] = 64,
    sinks: Annotated[int, typer.Option(min=1, help="Of them, first tokens of the text.")] = 4,
    tokens: Annotated[int, typer.Option(min=128, help="Length of the text.")] = 2048,
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """One long text through a bounded cache: a window alone, and a window with attention sinks."""
    from wootz.training.studies.parts import streaming_study
    from wootz.training.studies.positions import Size

    study = streaming_study(size=Size(**given(steps=steps)), window=window, sinks=sinks, tokens=tokens, text=text)
    run_studies([study], seeds, out, threads, as_json)


def balance(
    experts: Annotated[int, typer.Option(min=2, help="Experts in each layer.")] = 8,
    top_k: Annotated[int, typer.Option(min=1, help="Experts of each token.")] = 2,
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Experts without balancing, with an auxiliary loss, and with a bias: the load of the busiest."""
    from wootz.training.studies.parts import balancing_study
    from wootz.training.studies.positions import Size

    study = balancing_study(experts=experts, top_k=top_k, size=Size(**given(steps=steps)), text=text)
    run_studies([study], seeds, out, threads, as_json)


def kv_heads(
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """From multi-head over grouped-query to multi-query attention: bits per byte against the cache's size."""
    from wootz.training.studies.parts import kv_heads_study
    from wootz.training.studies.positions import Size

    run_studies([kv_heads_study(size=Size(heads=8, **given(steps=steps)), text=text)], seeds, out, threads, as_json)


def vocabulary(
    sizes: Annotated[str, typer.Option(help="Vocabulary sizes; 257 are the bytes alone.")] = "257,512,1024,2048,4096",
    widths: Annotated[str, typer.Option(help="Widths of the models.")] = "48,96",
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Vocabularies of several sizes, a small model with each, after equally many bytes: bits per byte.

    Example:
      [bold]wootz arch vocabulary --sizes 512,2048 --widths 64 --seeds 1[/bold]
    """
    from wootz.cli.common import numbers
    from wootz.training.studies.positions import Size
    from wootz.training.studies.vocabulary import vocabulary_study

    study = vocabulary_study(
        sizes=tuple(numbers(sizes)),
        widths=tuple(numbers(widths)),
        size=Size(length=256, **given(steps=steps)),
        text=text,
    )
    run_studies([study], seeds, out, threads, as_json)


def ablate(
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """One choice at a time: pre-norm against post-norm without warm-up, SwiGLU against GELU at equal size."""
    from wootz.training.studies.blocks import block_studies

    run_studies(list(block_studies(steps=steps, text=text)), seeds, out, threads, as_json)


def long_context(
    factor: Annotated[int, typer.Option(min=2, help="How many times longer the long rows are.")] = 4,
    share: Annotated[float, typer.Option(min=0.01, max=0.9, help="Of the steps, those on long rows.")] = 0.25,
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Long rows from the start, or a short model stretched afterwards: the same tokens, two ways to spend them."""
    from wootz.training.studies.long_context import SMALL, long_context_study

    size = replace(SMALL, **given(steps=steps))
    run_studies([long_context_study(size=size, factor=factor, share=share, text=text)], seeds, out, threads, as_json)


def experts(
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Experts at equal cost per token: few and large or many and small, with a shared one and without."""
    from wootz.training.studies.experts import SMALL, shared_expert_studies

    studies = shared_expert_studies(size=replace(SMALL, **given(steps=steps)), text=text)
    run_studies(list(studies), seeds, out, threads, as_json)


def capacity(
    factors: Annotated[
        str, typer.Option(help="Times the tokens that an expert would get on average.")
    ] = "0.5,1,1.25,2",
    num_experts: Annotated[int, typer.Option("--experts", min=2, help="Experts in each layer.")] = 8,
    top_k: Annotated[int, typer.Option(min=1, help="Experts of each token.")] = 2,
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Experts that turn tokens away when they are full: how many are dropped, and what that costs."""
    from wootz.core.errors import BadRequestError
    from wootz.training.studies.experts import SMALL, capacity_studies

    try:
        limits = tuple(float(factor) for factor in factors.split(","))
    except ValueError:
        raise BadRequestError(f'--factors "{factors}" is not a list of numbers', hint="such as 1,1.25,2") from None
    size = replace(SMALL, **given(steps=steps))
    studies = capacity_studies(factors=limits, experts=num_experts, top_k=top_k, size=size, text=text)
    run_studies(list(studies), seeds, out, threads, as_json)


def expansion(
    new_text: Annotated[
        Path | None, typer.Option(help="Text of another kind, to be learned. \\[default: the help of Python]")
    ] = None,
    terms: Annotated[int, typer.Option(min=1, help="How many new tokens.")] = 256,
    tuning_steps: Annotated[int, typer.Option("--tuning-steps", min=5, help="Steps on the new text.")] = 150,
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """New tokens for a trained model: what their rows begin as, and whether they are trained alone first."""
    from wootz.training.studies.expansion import SMALL, expansion_studies

    size = replace(SMALL, **given(steps=steps))
    studies = expansion_studies(size=size, num_terms=terms, tuning_steps=tuning_steps, text=text, new_text=new_text)
    run_studies(list(studies), seeds, out, threads, as_json)


def swap(
    schemes: Annotated[str, typer.Option("--pos", help="Schemes to read with.")] = "rope,rope-interleaved,alibi,nope",
    learned: Annotated[str, typer.Option(help="The scheme that the model learns.")] = "rope",
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """A trained model under positions that it did not learn: how much worse, and does training on help?"""
    from wootz.training.studies.swap import SMALL, swap_study

    size = replace(SMALL, **given(steps=steps))
    study = swap_study(learned=learned, schemes=tuple(schemes.split(",")), size=size, text=text)
    run_studies([study], seeds, out, threads, as_json)


COMMANDS = {
    "recall": recall,
    "memory": memory,
    "extrapolate": extrapolate,
    "extend": extend,
    "stream": stream,
    "balance": balance,
    "kv-heads": kv_heads,
    "ablate": ablate,
    "vocabulary": vocabulary,
    "long-context": long_context,
    "experts": experts,
    "capacity": capacity,
    "expansion": expansion,
    "swap": swap,
}


def given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def run_studies(
    studies: list[Study], seeds: int, out: Path | None, threads: int | None, as_json: bool
) -> list[dict[str, Any]]:
    import torch

    from wootz.core import progress_bar
    from wootz.training.studies.study import run_study

    if threads is not None:
        torch.set_num_threads(threads)
    reports = []
    for study in studies:
        folder = (out or Path("runs")) / study.name if out is None or len(studies) > 1 else out
        with progress_bar(study.question) as progress:
            report = run_study(study, folder, range(seeds), progress)
        reports.append(report)
        if not as_json:
            stdout().print(f"[bold]{study.question}[/bold]  ({study.y}; {seeds} seeds)")
            stdout().print(_table(report))
            stdout().print(f"{folder / 'plot.png'}", style="dim")
    if as_json:
        print_json(reports)
    return reports


def _table(report: dict[str, Any], most_columns: int = 8) -> Any:
    curves = report["curves"]
    xs = list(next(iter(curves.values())))
    xs = xs[:: len(xs) // -most_columns][::-1]  # with the last, which is how it ends
    if any(x not in curve for curve in curves.values() for x in xs):  # Each has points of its own.
        rows = table("", report["x"], report["y"], right=(report["x"], report["y"]))
        for variant, curve in curves.items():
            for x, point in curve.items():
                rows.add_row(variant, x, _figure(point))
        return rows
    rows = table(report["x"], *xs, right=tuple(xs))
    for variant, curve in curves.items():
        rows.add_row(variant, *(_figure(curve[x]) for x in xs))
    return rows


def _figure(point: dict[str, Any]) -> str:
    return f"{point['mean']:.3f}" + (f" ± {point['deviation']:.3f}" if point["deviation"] is not None else "")
