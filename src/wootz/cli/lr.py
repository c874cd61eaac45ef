"""`wootz lr`: find, draw, advise on and compare learning rates and their schedules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from wootz.cli.common import AsJson, print_json, stdout, table
from wootz.cli.optim import Plot
from wootz.cli.studies import Out, Seeds, Steps, Text, Threads, given, run_studies

app = typer.Typer(
    help="Learning rates: range test, schedules, sharpness, what to change together.", no_args_is_help=True
)

Optimizer = Annotated[str, typer.Option("--optimizer", "-o", help="`wootz optim list` has the names.")]
Width = Annotated[int, typer.Option(min=8, help="Of the small model.")]
Layers = Annotated[int, typer.Option(min=1, help="Of the small model.")]
Length = Annotated[int, typer.Option(min=2, help="Bytes in a row.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Rows in a batch.")]


@app.command()
def find(
    optimizer: Optimizer = "adamw",
    text: Text = None,
    width: Width = 96,
    layers: Layers = 3,
    length: Length = 128,
    batch: BatchSize = 16,
    lowest: Annotated[float, typer.Option(help="The first rate.")] = 1e-6,
    highest: Annotated[float, typer.Option(help="The last rate, if it gets there.")] = 10.0,
    steps: Annotated[int, typer.Option(min=10, help="From the one to the other.")] = 100,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Range test on a small byte-level language model: raise the rate each step until the loss blows up.

    From Python, `wootz.training.range_test.range_test` tests any model, and leaves it as it was.

    Example:
      [bold]wootz lr find --optimizer lion --plot range.png[/bold]
    """
    import torch

    from wootz.core import progress_bar
    from wootz.training.fit import language_loss
    from wootz.training.lab.demos import draw
    from wootz.training.optimizers import OptimizerConfig, build_optimizer
    from wootz.training.range_test import range_test
    from wootz.training.studies.positions import Size, build
    from wootz.training.studies.text import corpus, training_rows

    torch.manual_seed(0)
    model = build(Size(width=width, layers=layers, length=length))
    built = build_optimizer(model, OptimizerConfig(name=optimizer, learning_rate=lowest))
    rows = training_rows(corpus(text), batch, length, 0)
    with progress_bar("range test", steps) as progress:
        found = range_test(
            model,
            built,
            language_loss,
            rows,
            lowest=lowest,
            highest=highest,
            steps=steps,
            max_grad_norm=1.0,
            progress=progress,
        )
    if plot:
        curves = {
            "smoothed": list(zip(found.rates, found.smoothed, strict=True)),
            "loss": list(zip(found.rates, found.losses, strict=True)),
        }
        marks = {} if found.edge is None else {"edge": found.edge, "0.3 of it": 0.3 * found.edge}
        draw(curves, plot, title="Learning-rate range test", x="learning rate", y="loss", log_x=True, marks=marks)
    if as_json:
        print_json({**vars(found), "suggested": found.suggested})
        return
    if found.edge is None or found.suggested is None:
        stdout().print("[yellow]![/yellow] the loss never fell: start lower, or look at the data")
        raise typer.Exit(1)
    low, high = found.suggested
    stdout().print(f"learns from    {found.starts_learning:.2e}")
    stdout().print(f"fastest at     {found.steepest:.2e}")
    stdout().print(f"edge           {found.edge:.2e}" + ("" if found.blown_up else "  (it never blew up: go higher)"))
    stdout().print(f"[bold]try a peak of {low:.1e} to {high:.1e}[/bold]")


@app.command()
def show(
    schedule: Annotated[
        str | None,
        typer.Option(help="constant, wsd, cosine, linear, step, multistep, power, inverse-sqrt, one-cycle, cyclical"),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A published one: `wootz lr presets`.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the run.")] = 10_000,
    warmup: Annotated[str | None, typer.Option(help="2% of the run, or a number of steps.")] = None,
    cooldown: Annotated[str | None, typer.Option(help="10%, or a number of steps.")] = None,
    minimum: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the peak at the end.")] = None,
    peak: Annotated[float | None, typer.Option("--lr", help="The peak rate.")] = None,
    extend: Annotated[int | None, typer.Option(help="Also show the run extended to this many steps.")] = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """A schedule's rates at its landmarks, or as a plot.

    Examples:
      [bold]wootz lr show --schedule wsd --warmup 2% --cooldown 10% --steps 10000[/bold]
      [bold]wootz lr show --preset llama-7b --plot llama.png[/bold]
    """
    from wootz.training.lab.demos import draw
    from wootz.training.presets import preset as published
    from wootz.training.schedules import ScheduleConfig, build_schedule, cooldown_steps, extended, warmup_steps

    config = ScheduleConfig(name=schedule or "cosine")
    if preset is not None:
        chosen = published(preset)
        config = chosen.schedule_for(chosen.batch_tokens or 4e6)
        peak = peak or chosen.optimizer.learning_rate
        config = replace(config, **given(name=schedule))
    config = replace(config, **given(warmup=_length(warmup), cooldown=_length(cooldown), minimum=minimum))
    peak = 1.0 if peak is None else peak
    multiplier = build_schedule(config, steps)
    runs = {config.name: [(float(step), peak * multiplier(step)) for step in range(steps)]}
    if extend is not None:
        longer = build_schedule(extended(config, steps, extend), extend)
        runs[f"{config.name}, extended"] = [(float(step), peak * longer(step)) for step in range(extend)]
    if plot:
        draw(runs, plot, title=f"{config.name}, {steps:,} steps", x="step", y="learning rate")
    if as_json:
        print_json({name: [rate for _, rate in run] for name, run in runs.items()})
        return
    warm, cold = warmup_steps(config, steps), cooldown_steps(config, steps)
    marks = sorted({0, max(0, warm - 1), warm, steps // 4, steps // 2, 3 * steps // 4, steps - cold, steps - 1, steps})
    rows = table("step", "learning rate", "", right=("step", "learning rate"))
    for step in marks:
        rate = multiplier(step)
        rows.add_row(f"{step:,}", f"{peak * rate:.3g}", "█" * round(40 * rate))
    stdout().print(rows)
    stdout().print(
        f"{config.name}: {warm:,} steps of warmup, {cold:,} of cooldown, held from step {steps:,} on", style="dim"
    )


@app.command()
def presets(as_json: AsJson = False) -> None:
    """Published settings of known models; nothing of them was verified here."""
    from wootz.training.presets import PRESETS

    if as_json:
        print_json(
            {
                name: {"source": one.source, "optimizer": vars(one.optimizer), "schedule": vars(one.schedule)}
                for name, one in PRESETS.items()
            }
        )
        return
    rows = table("preset", "peak", "end", "schedule", "warmup", "tokens per batch", "source", right=("peak", "end"))
    for name, one in PRESETS.items():
        peak, warmup = one.optimizer.learning_rate, one.schedule.warmup
        length = (
            f"{one.warmup_tokens:.3g} tokens"
            if one.warmup_tokens
            else f"{warmup:g}" + (" of the run" if warmup and warmup < 1 else " steps")
        )
        batch = f"{one.batch_tokens:.2g}" if one.batch_tokens else ""
        rows.add_row(
            name, f"{peak:g}", f"{peak * one.schedule.minimum:g}", one.schedule.name, length, batch, one.source
        )
    stdout().print(rows)


@app.command()
def sharpness(
    optimizer: Annotated[str, typer.Option("--optimizer", "-o", help="sgd, momentum or adamw.")] = "sgd",
    rate: Annotated[float, typer.Option("--lr", min=0, help="Constant.")] = 0.3,
    steps: Annotated[int, typer.Option(min=1, help="Of full-batch training.")] = 200,
    every: Annotated[int, typer.Option(min=1, help="Steps between measurements.")] = 10,
    width: Width = 24,
    layers: Layers = 1,
    length: Length = 24,
    batch: BatchSize = 16,
    text: Text = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """lambda_max of the Hessian beside its ceiling 2 / rate, while a small model learns one batch by heart.

    Sharpness rises until it meets the ceiling, and stays there: the edge of stability. Under adamw, both are those of
    the preconditioned Hessian.

    Example:
      [bold]wootz lr sharpness --lr 0.5 --steps 400 --plot edge.png[/bold]
    """
    import torch

    from wootz.core import progress_bar
    from wootz.training.curvature import SharpnessTracker
    from wootz.training.fit import language_loss
    from wootz.training.lab.demos import draw
    from wootz.training.optimizers import OptimizerConfig, build_optimizer
    from wootz.training.studies.positions import Size, build
    from wootz.training.studies.text import corpus, training_rows

    torch.manual_seed(0)
    model = build(Size(width=width, layers=layers, length=length, heads=2))
    built = build_optimizer(model, OptimizerConfig(name=optimizer, learning_rate=rate, weight_decay=0.0))
    rows = next(training_rows(corpus(text), batch, length, 0))

    def loss_of() -> torch.Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # has a second derivative
            return language_loss(model, rows)

    tracker = SharpnessTracker(loss_of, list(model.parameters()), built)
    losses = []
    with progress_bar("training", steps) as progress:
        for step in range(steps):
            loss = loss_of()
            losses.append(loss.item())
            built.zero_grad()
            loss.backward()
            built.step()
            if step % every == 0:
                tracker(step)
            progress.advance()
    if plot:
        curves = {
            "sharpness": list(zip(map(float, tracker.steps), tracker.sharpness, strict=True)),
            "ceiling": list(zip(map(float, tracker.steps), tracker.ceilings, strict=True)),
        }
        draw(curves, plot, title=f"{optimizer} at {rate:g}", x="step", y="largest eigenvalue", log_y=True)
    if as_json:
        print_json(
            {"steps": tracker.steps, "sharpness": tracker.sharpness, "ceiling": tracker.ceilings, "losses": losses}
        )
        return
    columns = ("step", "loss", "sharpness", "ceiling", "share")
    shown = table(*columns, right=columns)
    for step, sharp, limit in zip(tracker.steps, tracker.sharpness, tracker.ceilings, strict=True):
        shown.add_row(str(step), f"{losses[step]:.3f}", f"{sharp:.3g}", f"{limit:.3g}", f"{sharp / limit:.2f}")
    stdout().print(shown)


@app.command()
def advise(
    optimizer: Annotated[str, typer.Option("--opt", "-o", help="`wootz optim list` has the names.")] = "adamw",
    batch_from: Annotated[float | None, typer.Option(min=1)] = None,
    batch_to: Annotated[float | None, typer.Option(min=1)] = None,
    rate_from: Annotated[float | None, typer.Option("--lr-from")] = None,
    rate_to: Annotated[float | None, typer.Option("--lr-to")] = None,
    momentum_from: Annotated[float | None, typer.Option()] = None,
    momentum_to: Annotated[float | None, typer.Option()] = None,
    as_json: AsJson = False,
) -> None:
    """You change one of batch, rate or momentum: what should change with it.

    Example:
      [bold]wootz lr advise --batch-from 256 --batch-to 2048 --opt adamw[/bold]
    """
    from wootz.core.errors import BadRequestError
    from wootz.training.advice import co_changes

    factors: dict[str, Any] = {}
    for name, before, after in (("batch", batch_from, batch_to), ("rate", rate_from, rate_to)):
        if (before is None) != (after is None):
            raise BadRequestError(f"say both what the {name} was and what it will be")
        if before is not None and after is not None:
            factors[name] = after / before
    if momentum_from is not None and momentum_to is not None:
        factors["momentum"] = (momentum_from, momentum_to)
    if not factors:
        raise BadRequestError("nothing changes", hint="--batch-from 256 --batch-to 2048")
    changes = co_changes(optimizer, **factors)
    if as_json:
        print_json([vars(change) for change in changes])
        return
    rows = table("multiply", "by", "because", right=("by",))
    for change in changes:
        rows.add_row(change.what, f"{change.factor:.3g}", change.why)
    stdout().print(rows)


@app.command()
def doctor(
    run: Annotated[Path, typer.Argument(help="A run's folder, or its metrics.jsonl.")], as_json: AsJson = False
) -> None:
    """What ails a run, by its logged losses, gradient norms and update ratios, and what to try, in order.

    Example:
      [bold]wootz lr doctor runs/spark[/bold]
    """
    from wootz.training.triage import diagnose, read_metrics

    findings = diagnose(read_metrics(run))
    if as_json:
        print_json([vars(finding) for finding in findings])
        return
    if not findings:
        stdout().print("[green]✓[/green] nothing to complain of")
    for finding in findings:
        stdout().print(f"[bold]{finding.symptom}[/bold]: {finding.evidence}")
        for number, remedy in enumerate(finding.remedies, 1):
            stdout().print(f"  {number}. {remedy}")


@app.command()
def warmup(
    rate: Annotated[float, typer.Option("--lr", help="The peak rate.")] = 0.01,
    share: Annotated[float, typer.Option("--warmup", min=0, max=1, help="Of the steps.")] = 0.2,
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Sharpness as AdamW sees it, with warmup, without, and with weights held still, beside what the rate bears.

    Example:
      [bold]wootz lr warmup --lr 0.03[/bold]
    """
    from wootz.training.studies.optimizers import SMALL
    from wootz.training.studies.warmup import warmup_study

    study = warmup_study(size=replace(SMALL, **given(steps=steps)), learning_rate=rate, warmup=share, text=text)
    run_studies([study], seeds, out, threads, as_json)


@app.command()
def compare(
    rate: Annotated[float, typer.Option("--lr", help="The peak rate of all of them.")] = 0.01,
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Cosine, WSD and Schedule-Free on a small language model, and what it takes to go on for as long again.

    Example:
      [bold]wootz lr compare --seeds 5[/bold]
    """
    from wootz.training.studies.optimizers import SMALL
    from wootz.training.studies.schedules import schedule_study

    study = schedule_study(size=replace(SMALL, **given(steps=steps)), learning_rate=rate, text=text)
    run_studies([study], seeds, out, threads, as_json)


@app.command()
def anneal(
    rate: Annotated[float, typer.Option("--lr", help="The peak rate of all of them.")] = 0.01,
    last: Annotated[float, typer.Option(min=0.01, max=0.9, help="Of the steps, those that anneal.")] = 0.2,
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    good_text: Annotated[
        Path | None, typer.Option(help="The source to read more of at the end. \\[default: the help of Python]")
    ] = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """The last part of a run: with a lower rate, with more of a good source, with both, with neither.

    Example:
      [bold]wootz lr anneal --last 0.1[/bold]
    """
    from wootz.training.studies.anneal import SMALL, anneal_studies

    studies = anneal_studies(
        size=replace(SMALL, **given(steps=steps)), learning_rate=rate, last=last, text=text, good_text=good_text
    )
    run_studies(list(studies), seeds, out, threads, as_json)


@app.command()
def equilibrium(seeds: Seeds = 3, out: Out = None, threads: Threads = None, as_json: AsJson = False) -> None:
    """Where decay and noise balance: the size at which weights settle, by rate and decay."""
    from wootz.training.studies.schedules import equilibrium_study

    run_studies([equilibrium_study()], seeds, out, threads, as_json)


def _length(text: str | None) -> float | None:
    """``2%`` or ``0.02`` of the run, or a number of steps."""
    if text is None:
        return None
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise typer.BadParameter(f'"{text}" is neither a share such as 2% nor a number of steps') from None
