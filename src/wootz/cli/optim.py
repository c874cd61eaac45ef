"""`wootz optim`: optimisers. What they cost, how they behave on problems one sees through, which learns best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from wootz.cli.common import AsJson, human_bytes, print_json, stdout, table
from wootz.cli.studies import Out, Seeds, Steps, Text, Threads, given, run_studies

app = typer.Typer(
    help="Optimisers: races, memory, usual learning rates, comparisons. NAME is one of `wootz optim list`.",
    no_args_is_help=True,
)

Plot = Annotated[Path | None, typer.Option("--plot", help="Draw to this file (PNG, SVG, PDF).")]
Name = Annotated[str, typer.Option("--optimizer", "-o", help="`wootz optim list` has the names.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """All optimisers: what each was made to fix, its state per parameter, and the rates people use with it."""
    from wootz.training.optimizers import ALGORITHMS
    from wootz.training.optimizers.memory import table as state_table

    state = state_table()
    if as_json:
        print_json({name: {**vars(facts), "state_bytes": state[name]} for name, facts in ALGORITHMS.items()})
        return
    rows = table("name", "year", "bytes", "usual rates", "decay", "made because", right=("year", "bytes"))
    for name, facts in ALGORITHMS.items():
        low, high = facts.rates
        rows.add_row(name, str(facts.year), f"{state[name]:.3g}", f"{low:g} to {high:g}", facts.decay, facts.fixes)
    stdout().print(rows)


@app.command()
def race(
    kappa: Annotated[str, typer.Option(help="Conditions of the valley, as a list.")] = "10,100,1000",
    optimizers: Annotated[str, typer.Option(help="Who runs.")] = "sgd,momentum,nag,adamw,rmsprop,prodigy,schedule-free",
    noise: Annotated[float, typer.Option(min=0, help="Of the gradients, per coordinate.")] = 0.0,
    rate: Annotated[
        float | None, typer.Option(min=0, help="For all of them. \\[default: the best in theory, else 0.01]")
    ] = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Race down an ill-conditioned valley: steps until within 0.001 of its floor.

    Gradient descent takes about KAPPA steps, accelerated methods about its root; the slope says so.

    Example:
      [bold]wootz optim race --kappa 100 --plot valley.png[/bold]
    """
    import math

    from wootz.cli.common import numbers
    from wootz.training.lab.demos import draw
    from wootz.training.lab.quadratic import race as run_race

    kappas, names = numbers(kappa), optimizers.split(",")
    races = {name: [run_race(name, one, noise=noise, learning_rate=rate) for one in kappas] for name in names}
    if plot:
        draw(
            {name: runs[-1].path for name, runs in races.items()},
            plot,
            title=f"A valley of condition {kappas[-1]}",
            x="first weight",
            y="second weight",
        )
    if as_json:
        print_json(
            {name: {str(k): run.steps for k, run in zip(kappas, runs, strict=True)} for name, runs in races.items()}
        )
        return
    headings = [f"kappa {one}" for one in kappas]
    rows = table("optimiser", *headings, "slope", right=(*headings, "slope"))
    for name, runs in races.items():
        steps = [run.steps for run in runs]
        first, last = steps[0], steps[-1]
        slope = ""
        if len(kappas) > 1 and first and last:
            slope = f"{math.log(last / first) / math.log(kappas[-1] / kappas[0]):.2f}"
        rows.add_row(name, *("-" if count is None else f"{count:,}" for count in steps), slope)
    stdout().print(rows)
    stdout().print("-: not within 20,000 steps", style="dim")


@app.command()
def memory(
    params: Annotated[float, typer.Option(help="How many parameters: 7e9.")],
    optimizer: Name = "adamw",
    dtype: Annotated[str, typer.Option(help="Of weights and gradients: fp32, bf16, fp16.")] = "bf16",
    zero: Annotated[int, typer.Option(min=1, help="Devices over which state and masters are spread (ZeRO-1).")] = 1,
    master: Annotated[bool, typer.Option(help="float32 master copies of half-precision weights.")] = True,
    as_json: AsJson = False,
) -> None:
    """What training keeps on each device besides activations, and whether the optimiser's state is too heavy.

    Example:
      [bold]wootz optim memory --params 7e9 --dtype bf16 --optimizer adamw --zero 8[/bold]
    """
    from wootz.training.optimizers.memory import advice, plan_memory

    plan = plan_memory(params, optimizer, weights=dtype, master=master, shards=zero)
    if as_json:
        print_json({**vars(plan), "total": plan.total, "advice": advice(plan, optimizer)})
        return
    rows = table("what", "bytes per device", right=("bytes per device",))
    for name in ("weights", "gradients", "master", "state", "total"):
        rows.add_row("float32 masters" if name == "master" else name, human_bytes(getattr(plan, name)))
    stdout().print(rows)
    stdout().print(
        f"{optimizer}: {plan.state_per_parameter:.3g} bytes of state per parameter; activations come on top",
        style="dim",
    )
    if note := advice(plan, optimizer):
        stdout().print(f"[yellow]![/yellow] {note}")


@app.command()
def check(
    optimizer: Name,
    rate: Annotated[float, typer.Option("--lr", help="The peak learning rate.")],
    as_json: AsJson = False,
) -> None:
    """Is this learning rate in the usual range of this optimiser? Exit code 1 if not.

    Example:
      [bold]wootz optim check --optimizer lion --lr 3e-4[/bold]
    """
    from wootz.training.advice import check_rate

    found = check_rate(optimizer, rate)
    if as_json:
        print_json(vars(found))
    else:
        mark = "[green]✓[/green]" if found.verdict == "usual" else "[yellow]![/yellow]"
        stdout().print(f"{mark} {found.message}")
    if found.verdict != "usual":
        raise typer.Exit(1)


@app.command()
def choose(
    situation: Annotated[
        str, typer.Argument(help="simple, vision, llm, memory-bound, unknown-length, wall-clock, fine-tune")
    ],
    as_json: AsJson = False,
) -> None:
    """Which optimiser and schedule people would start with, and why.

    Example:
      [bold]wootz optim choose memory-bound[/bold]
    """
    from wootz.training.advice import choose as chosen

    choice = chosen(situation)
    if as_json:
        print_json(vars(choice))
        return
    low, high = choice.learning_rate
    stdout().print(
        f"[bold]{choice.optimizer}[/bold], {choice.schedule} schedule, peak rate {low:g} to {high:g}: {choice.why}"
    )


@app.command()
def demo(
    name: Annotated[str, typer.Argument(help="nonstationary, sparse, l2-vs-wd, nesterov, half-precision")],
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """One behaviour, in figures: what an optimiser was made against.

    Example:
      [bold]wootz optim demo l2-vs-wd --plot decay.png[/bold]
    """
    from wootz.training.lab.demos import demo as run_demo
    from wootz.training.lab.demos import draw

    shown = run_demo(name)
    if plot:
        logarithmic = name == "l2-vs-wd"
        draw(shown.curves, plot, title=shown.title, x=shown.x, y=shown.y, log_x=logarithmic, log_y=shown.log_y)
    if as_json:
        print_json({"says": shown.says, "curves": shown.curves})
        return
    stdout().print(f"[bold]{shown.title}[/bold]\n{shown.says}")


@app.command()
def compare(
    optimizers: Annotated[str, typer.Option(help="Which. \\[default: all]")] = "",
    rates: Annotated[int, typer.Option(min=1, help="Learning rates for each, a factor of sqrt(10) apart.")] = 4,
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train the same small language model with each optimiser, all tuned alike: equally many rates, equally far apart.

    Example:
      [bold]wootz optim compare --optimizers adamw,lion,muon --seeds 5[/bold]
    """
    import torch

    from wootz.core import progress_bar
    from wootz.training.studies.optimizers import LOWEST_RATES, SMALL, best, optimizer_study
    from wootz.training.studies.study import run_study

    if threads is not None:
        torch.set_num_threads(threads)
    names = tuple(optimizers.split(",")) if optimizers else tuple(LOWEST_RATES)
    study = optimizer_study(names=names, num_rates=rates, size=replace(SMALL, **given(steps=steps)), text=text)
    with progress_bar(study.question) as progress:
        report = run_study(study, out or Path("runs") / study.name, range(seeds), progress)
    if as_json:
        print_json(report)
        return
    rows = table("optimiser", "best rate", "bits per byte", "", right=("best rate", "bits per byte"))
    ordered = sorted(report["curves"].items(), key=lambda item: best(item[1])[1]["mean"])
    for name, curve in ordered:
        rate, point = best(curve)
        at_edge = "at the edge of its rates" if rate in (next(iter(curve)), list(curve)[-1]) else ""
        spread = f" ± {point['deviation']:.3f}" if point["deviation"] is not None else ""
        rows.add_row(name, rate, f"{point['mean']:.3f}{spread}", at_edge)
    stdout().print(rows)
    stdout().print(f"{(out or Path('runs') / study.name) / 'plot.png'}", style="dim")


@app.command()
def momentum(
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """SGD's best rate by momentum on a small language model: they are one knob, rate / (1 - momentum)."""
    from wootz.training.studies.optimizers import SMALL, momentum_study

    size: Any = replace(SMALL, **given(steps=steps))
    run_studies([momentum_study(size=size, text=text)], seeds, out, threads, as_json)
