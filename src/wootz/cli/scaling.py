"""`wootz scaling`: laws of loss over size and text, fitted to runs, and what they say about the next one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import PLAIN_HELP, AsJson, human_count, numbers, print_json, stdout, table
from wootz.cli.studies import Out, Seeds, Steps, Text, Threads, given, run_studies

if TYPE_CHECKING:
    from wootz.training.planning.scaling_laws import Fit, Run

app = typer.Typer(
    help="Scaling laws: how large a model, on how much text, for a budget.", no_args_is_help=True, **PLAIN_HELP
)


@app.command()
def fit(
    runs: Annotated[Path, typer.Argument(help="Rows of parameters, tokens, loss (JSONL), or a folder of runs.")],
    parameters: Annotated[float | None, typer.Option(help="Forecast a model of this size …")] = None,
    tokens: Annotated[float | None, typer.Option(help="… trained on so many tokens.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit L(N, D) = E + A / N^alpha + B / D^beta to finished runs, with error bars, and forecast.

    A folder of runs is one whose subfolders have a [bold]result.json[/bold] with the same three figures.

    Example:
      [bold]wootz scaling fit runs/ --parameters 1e9 --tokens 2e10[/bold]
    """
    from wootz.training.planning.scaling_laws import fit_law

    found = fit_law(read_runs(runs))
    forecast = found.forecast(parameters, tokens) if parameters and tokens else None
    if as_json:
        print_json({"law": vars(found.law), "low": vars(found.low), "high": vars(found.high),
                    "residual": found.residual, "runs": found.num_runs, "forecast": forecast})  # fmt: skip
        return
    _print_fit(found)
    if forecast is not None:
        loss, low, high = forecast
        stdout().print(f"{parameters:.3g} parameters on {tokens:.3g} tokens: loss {loss:.3f} ({low:.3f} to {high:.3f})")


@app.command()
def scout(
    widths: Annotated[str, typer.Option(help="Widths of the models.")] = "16,24,32,48,64",
    counts: Annotated[str, typer.Option("--steps", help="Lengths of the runs.")] = "50,100,200,400",
    seeds: Seeds = 1,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train small models for short, fit a law to all but the largest, and compare its forecast with what that one did.

    Example:
      [bold]wootz scaling scout --widths 16,32,64 --steps 50,100,200 --out runs/scouts[/bold]
    """
    from wootz.training.studies.scouts import extrapolate, runs_of, scout_study

    study = scout_study(widths=tuple(numbers(widths)), steps=tuple(numbers(counts)), text=text)
    report = run_studies([study], seeds, out, threads, as_json)[0]
    found = extrapolate(runs_of(report))
    if not as_json:
        _print_fit(found.fit)
        target = found.target
        stdout().print(
            f"The largest, unseen: {human_count(target.parameters)} parameters, {human_count(target.tokens)} tokens: "
            f"forecast {found.forecast:.3f} ({found.low:.3f} to {found.high:.3f}), measured {target.loss:.3f}: "
            f"{found.error:+.1%}"
        )


@app.command()
def optimum(
    flops: Annotated[float | None, typer.Option(help="Operations to train with.")] = None,
    parameters: Annotated[float | None, typer.Option(help="A size whose optimal loss is to be reached.")] = None,
    used: Annotated[float, typer.Option("--inference-tokens", help="Tokens it will be used for, in all.")] = 0.0,
    gpu: Annotated[str, typer.Option(help="Device and how many: h100:64")] = "h100:64",
    utilisation: Annotated[float, typer.Option(min=0.01, max=1, help="Model FLOPs utilisation you expect.")] = 0.4,
    as_json: AsJson = False,
) -> None:
    """The best size and length for a budget; and, for a model that is going to be used, the cheapest over its life.

    Example:
      [bold]wootz scaling optimum --parameters 8e9 --inference-tokens 1e13 --gpu h100:64[/bold]
    """
    from wootz.core.errors import BadRequestError
    from wootz.models.planning.hardware import device
    from wootz.training.planning.budget import budget
    from wootz.training.planning.scaling_laws import CHINCHILLA, EPOCH, TOKENS_PER_PARAMETER, rule_of_thumb

    if (flops is None) == (parameters is None) or min(flops or 1, parameters or 1, used + 1) <= 0:
        raise BadRequestError("give a positive --flops or --parameters", hint="--flops 1e23, or --parameters 8e9")
    name, _, count = gpu.partition(":")
    if count and not count.isdecimal():
        raise BadRequestError(f'--gpu "{gpu}"', hint="such as h100:64")
    on, devices = device(name), int(count or 1)
    total = flops if flops is not None else 6 * 20 * (parameters or 0) ** 2
    choices = {f"{who}'s rule": rule_of_thumb(total, ratio)
               for who, ratio in TOKENS_PER_PARAMETER.items()}  # fmt: skip
    choices |= {"chinchilla's law": CHINCHILLA.optimum(total), "refitted law": EPOCH.optimum(total)}
    if used:
        loss = EPOCH.loss(*EPOCH.optimum(total))
        choices["cheapest in all"] = EPOCH.optimum_with_use(loss, used)
    budgets = {who: budget(n, d, on, devices, utilisation=utilisation) for who, (n, d) in choices.items()}
    if as_json:
        print_json({who: {**vars(made), "loss": EPOCH.loss(made.parameters, made.tokens),
                          "lifetime_flops": made.flops + 2 * made.parameters * used}
                    for who, made in budgets.items()})  # fmt: skip
        return
    columns = ("N", "tokens", "D/N", "FLOPs", "with use", "loss", "days", "$")
    rows = table("by", *columns, right=columns)
    for who, made in budgets.items():
        rows.add_row(
            who, human_count(made.parameters), human_count(made.tokens), f"{made.tokens_per_parameter:.1f}",
            f"{made.flops:.2g}", f"{made.flops + 2 * made.parameters * used:.2g}",
            f"{EPOCH.loss(made.parameters, made.tokens):.3f}", f"{made.days:,.1f}", f"{made.dollars:,.0f}",
        )  # fmt: skip
    stdout().print(rows)
    stdout().print(
        f"On {devices} {name} at {utilisation:.0%} of their peak. Losses are the refitted law's, on its text.",
        style="dim",
    )


@app.command()
def moe(
    experts: Annotated[str, typer.Option(help="Times as many parameters in experts as a token visits.")] = "1,2,4,8,16",
    steps: Steps = None,
    seeds: Seeds = 3,
    text: Text = None,
    out: Out = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Mixtures of experts at one cost per token: how many to choose from, and how finely cut."""
    from dataclasses import replace

    from wootz.training.studies.moe_scaling import SMALL, moe_scaling_study

    study = moe_scaling_study(experts=tuple(numbers(experts)), size=replace(SMALL, **given(steps=steps)), text=text)
    run_studies([study], seeds, out, threads, as_json)


def read_runs(path: Path) -> list[Run]:
    """Raises `BadRequestError` that names the file for anything that is not three figures."""
    from wootz.core.errors import BadRequestError
    from wootz.training.planning.scaling_laws import Run

    def run_of(row: Any, where: str) -> Run:
        try:
            return Run(float(row["parameters"]), float(row["tokens"]), float(row["loss"]))
        except (KeyError, TypeError, ValueError):
            raise BadRequestError(f"{where}: needs the figures parameters, tokens and loss") from None

    try:
        if path.is_dir():
            files = sorted(path.glob("*/result.json"))
            if not files:
                raise BadRequestError(f"{path}: none of its folders has a result.json")
            return [run_of(json.loads(file.read_text()), str(file)) for file in files]
        lines = path.read_text().splitlines()
        return [run_of(json.loads(line), f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    except OSError as error:
        raise BadRequestError(f"{path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise BadRequestError(f"{path}: not JSON ({error})") from None


def _print_fit(found: Fit) -> None:
    columns = ("figure", "10 %", "90 %")
    rows = table("of L(N, D)", *columns, right=columns)
    for name, value in vars(found.law).items():
        rows.add_row(name, f"{value:.4g}", f"{getattr(found.low, name):.4g}", f"{getattr(found.high, name):.4g}")
    stdout().print(rows)
    stdout().print(f"{found.num_runs} runs; typical error {found.residual:.2%}.", style="dim")
