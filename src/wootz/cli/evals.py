"""`wootz eval`: how much of its context a model can use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import numbers, stderr
from wootz.cli.eval_run import Run, Shared, fingerprint, with_shared_options

if TYPE_CHECKING:
    from wootz.evals.long_context import Case, Setup

app = typer.Typer(help="Measure what a model can really do.", no_args_is_help=True)

Lengths = Annotated[str, typer.Option(help="Context lengths in tokens, prompt and answer together.")]
Samples = Annotated[int, typer.Option(min=1, help="Questions per cell, each with another seed.")]
Haystack = Annotated[Path | None, typer.Option(help="A text file to hide needles in. \\[default: generated essays]")]
Squad = Annotated[Path | None, typer.Option(help="Questions and documents from a file in SQuAD's format.")]
Tasks = Annotated[str | None, typer.Option(help="Some of RULER's 13, such as niah_single_1,vt. \\[default: all]")]
QuestionAt = Annotated[str, typer.Option(help="end, start or both; several (end,start) are compared case by case.")]
Threshold = Annotated[float, typer.Option(min=0, max=1, help="The score from which on a length counts as working.")]

RULER_THRESHOLD = 0.856
"""As in `wootz.evals.long_context`; repeated so that --help need not import it."""


@app.callback()
def evals() -> None:
    """Measure what a model can really do."""


@app.command("needle")
@with_shared_options
def needle(
    shared: Shared,
    lengths: Lengths = "1024,2048,4096",
    depths: Annotated[str, typer.Option(help="Where the needle lies, in percent.")] = "0,25,50,75,100",
    samples: Samples = 3,
    question_at: QuestionAt = "end",
    haystack: Haystack = None,
    threshold: Threshold = RULER_THRESHOLD,
) -> None:
    """One fact hidden at each depth of each length: the heatmap.

    Examples:
      [bold]wootz eval needle --model ./model.gguf --lengths 256,512,1024,2048[/bold]
      [bold]wootz eval needle --model qwen-plus --url https://llm.example.com --lengths 8000,32000[/bold]
      [bold]wootz eval needle --model smollm2 --question-at end,start[/bold]  (does the question's place matter?)
    """
    from wootz.evals import long_context

    at, shares, places = numbers(lengths), _percents(depths), _places(question_at)
    run = Run("needle", shared, haystack, {"lengths": at, "depths": shares, "samples": samples, "question_at": places})
    run.show(run.ask(lambda setup: long_context.needle_cases(setup, at, shares, samples, places)), threshold)


@app.command("multi-needle")
@with_shared_options
def multi_needle(
    shared: Shared,
    lengths: Lengths = "1024,2048,4096",
    needles: Annotated[str, typer.Option(help="How many facts to ask for at once.")] = "2,5,10",
    samples: Samples = 5,
    chain: Annotated[
        bool, typer.Option("--chain", help="Also reason over three facts that lead to each other.")
    ] = False,
    question_at: QuestionAt = "end",
    haystack: Haystack = None,
    threshold: Threshold = RULER_THRESHOLD,
) -> None:
    """Many facts, all asked for at once: the share returned, and how often all of them were.

    Examples:
      [bold]wootz eval multi-needle --model ./model.gguf --needles 2,5 --lengths 1024,4096[/bold]
      [bold]wootz eval multi-needle --model smollm2 --chain[/bold]
    """
    from wootz.evals import long_context

    at, counts, places = numbers(lengths), numbers(needles), _places(question_at)

    def cases(setup: Setup) -> list[Case]:
        chains = long_context.chain_cases(setup, at, samples, places) if chain else []
        return long_context.multi_needle_cases(setup, at, counts, samples, places) + chains

    what = {"lengths": at, "needles": counts, "samples": samples, "chain": chain, "question_at": places}
    run = Run("multi-needle", shared, haystack, what)
    run.show(run.ask(cases), threshold)


@app.command("ruler")
@with_shared_options
def ruler(
    shared: Shared,
    lengths: Lengths = "1024,2048,4096",
    samples: Samples = 5,
    tasks: Tasks = None,
    squad: Squad = None,
    haystack: Haystack = None,
    threshold: Threshold = RULER_THRESHOLD,
) -> None:
    """RULER's 13 tasks by length: retrieval, tracing, counting, questions among distractors.

    Examples:
      [bold]wootz eval ruler --model ./model.gguf --lengths 512,1024,2048[/bold]
      [bold]wootz eval ruler --model smollm2 --tasks niah_single_2,vt,qa_1 --squad xquad.en.json[/bold]
    """
    at, names = numbers(lengths), _names(tasks)
    what = {"lengths": at, "tasks": names, "samples": samples, "squad": fingerprint(squad)}
    run = Run("ruler", shared, haystack, what)
    run.show(run.ask(lambda setup: _ruler_cases(setup, at, samples, names, squad)), threshold)


@app.command("lost-in-middle")
@with_shared_options
def lost_in_middle(
    shared: Shared,
    documents: Annotated[int, typer.Option(min=3, help="One of them holds the answer.")] = 20,
    positions: Annotated[str | None, typer.Option(help="Where it stands, from 1. \\[default: all]")] = None,
    lengths: Annotated[str | None, typer.Option(help="As many documents as fit, instead of --documents.")] = None,
    samples: Samples = 10,
    squad: Squad = None,
    question_at: QuestionAt = "end",
) -> None:
    """One gold document among distractors, at every position: the U-curve and how deep it dips in the middle.

    Examples:
      [bold]wootz eval lost-in-middle --model ./model.gguf --samples 20[/bold]
      [bold]wootz eval lost-in-middle --model smollm2 --positions 1,5,10,15,20 --squad xquad.en.json[/bold]
    """
    from wootz.evals import long_context

    at, places = numbers(lengths) if lengths else [], _places(question_at)
    where = numbers(positions) if positions else list(range(1, documents + 1))
    make = long_context.squad_pool(squad) if squad else None
    what = {"documents": documents, "positions": where, "lengths": at, "samples": samples, "question_at": places}
    run = Run("lost-in-middle", shared, None, {**what, "squad": fingerprint(squad)})

    def cases(setup: Setup) -> list[Case]:
        return long_context.lost_in_the_middle_cases(
            setup, positions=where, samples=samples, num_documents=documents, lengths=at, make=make, question_at=places
        )

    run.show(run.ask(cases))


@app.command("working-context")
@with_shared_options
def working_context(
    shared: Shared,
    claimed: Annotated[int, typer.Option(min=1, help="The context length that is claimed for the model.")],
    lengths: Annotated[
        str | None, typer.Option(help="Lengths to test. \\[default: claimed / 8, / 4, / 2, claimed]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Your own questions: JSON lines with prompt, answer, context.")
    ] = None,
    tasks: Tasks = None,
    samples: Samples = 5,
    require: Annotated[
        int | None, typer.Option(min=1, help="Exit with 1 unless it works up to so many tokens.")
    ] = None,
    max_gap: Annotated[float | None, typer.Option(min=1, help="Exit with 1 if claimed / working is more.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write the working length into the model's metadata; `wootz models` shows.")
    ] = False,
    haystack: Haystack = None,
    threshold: Threshold = RULER_THRESHOLD,
) -> None:
    """What a model claims against what works; a gate for CI, on RULER's tasks or on your own questions.

    A line of --data is {"prompt": question, "answer": text or list, "context": the passage that tells it}.

    Examples:
      [bold]wootz eval working-context --model ./model.gguf --claimed 2048[/bold]
      [bold]wootz eval working-context --model smollm2 --claimed 8192 --data questions.jsonl --require 4096[/bold]
      [bold]wootz eval working-context --model smollm2 --claimed 8192 --record[/bold]
    """
    from wootz.evals import long_context

    at = numbers(lengths) if lengths else sorted({max(1, claimed // part) for part in (8, 4, 2, 1)})
    names = _names(tasks)
    rows = long_context.read_rows(data) if data else []

    def cases(setup: Setup) -> list[Case]:
        own = long_context.domain_cases(setup, rows, at, (0.0, 0.5, 1.0)) if rows else []
        return own + (_ruler_cases(setup, at, samples, names, None) if names or not data else [])

    what = {"lengths": at, "tasks": names, "samples": samples, "data": fingerprint(data)}
    run = Run("working-context", shared, haystack, what)
    if record:
        run.check_can_record()
    answered = run.ask(cases)
    run.show(answered, threshold, claimed)
    measured = long_context.working_context(answered, claimed, threshold)
    if record:
        run.record(measured.as_metadata())
    missed = measured.misses(require=require, max_gap=max_gap)
    for line in missed:
        stderr().print(f"[red]✗[/red] {line}")
    if missed:
        raise typer.Exit(1)
    if require is not None or max_gap is not None:
        stderr().print("[green]✓[/green] the working context is as long as required")


@app.command("prefill")
@with_shared_options
def prefill(
    shared: Shared,
    lengths: Lengths = "256,512,1024,2048,4096",
    samples: Samples = 3,
) -> None:
    """Time to first token against prompt length, one prompt at a time, none of them cached.

    Examples:
      [bold]wootz eval prefill --model ./model.gguf --lengths 256,512,1024,2048[/bold]
    """
    from wootz.evals import long_context

    at = numbers(lengths)
    run = Run("prefill", shared, None, {"lengths": at, "samples": samples})
    run.show(run.ask(lambda setup: long_context.prefill_cases(setup, at, samples)))


def _ruler_cases(setup: Setup, lengths: list[int], samples: int, tasks: list[str], squad: Path | None) -> list[Case]:
    from wootz.evals import long_context

    if squad is None:
        return long_context.ruler_cases(setup, lengths, samples, tasks)
    return long_context.ruler_cases(setup, lengths, samples, tasks, long_context.squad_pool(squad))


def _percents(text: str) -> list[float]:
    parts = [part.strip().removesuffix("%") for part in text.split(",")]
    if not all(part.isdecimal() and int(part) <= 100 for part in parts):
        raise typer.BadParameter(f'"{text}" is not a list of percentages such as 0,50,100')
    return [int(part) / 100 for part in parts]


def _places(text: str) -> list[Any]:
    parts = [part.strip() for part in text.split(",")]
    if not set(parts) <= {"end", "start", "both"}:
        raise typer.BadParameter(f'"{text}" is not a list of end, start and both')
    return list(dict.fromkeys(parts))


def _names(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []
