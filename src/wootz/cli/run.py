"""`wootz run`: a model out of a recipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import human_bytes, human_count, load, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.training.estimate import Estimate
    from wootz.training.recipe import Recipe

Restarts = Annotated[
    int, typer.Option(min=0, help="Start a run that dies again, from its last checkpoint, up to so many times.")
]
RunsRoot = Annotated[Path, typer.Option("--runs", help="The folder that runs lie in.")]


def run(
    ctx: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A TOML file; recipes/ has some.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, such as depth=4.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder. \\[default: runs/NAME]")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    chaos: Annotated[str, typer.Option(help="Faults to rehearse: nan@120,spike@300,hang@400,kill@500.")] = "",
    restarts: Restarts = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to compute with.")] = None,
) -> None:
    """From text to a model that can be served: a recipe's stages, one after the other.

    The plan is printed first. Whatever ends the run (Ctrl-C, kill, a power cut), the same command goes on
    exactly where it was. With --restarts it does so by itself: after a crash, a lost or a hung process, but
    not if it dies at one step twice in a row.

    A mesh of several devices is started on this machine; for several machines, start `torchrun … -m wootz run
    RECIPE` on each.

    Examples:
      [bold]wootz run recipes/spark.toml[/bold]
      [bold]wootz run recipes/spark.toml --set data.path=my-texts/ --set depth=4 --out runs/mine[/bold]
      [bold]wootz run recipes/spark.toml --set mesh.data=2 --restarts 10[/bold]
      [bold]wootz run recipes/blast.toml --dry-run[/bold]
    """
    import torch

    from wootz.training.recipe import Recipe

    if threads is not None:
        torch.set_num_threads(threads)
    made = Recipe.load(recipe, overrides or ())
    if dry:
        show_plan(made)
        return
    carry_out(ctx, made, out or Path("runs") / made.name, chaos, restarts)


def carry_out(ctx: typer.Context, asked: Recipe, out: Path, chaos: str = "", restarts: int = 0) -> None:
    """All stages that are not done yet, with live progress, and how to talk to what came of it."""
    from wootz.core import progress_bar
    from wootz.training.guards.chaos import Chaos
    from wootz.training.making import make
    from wootz.training.processes import joined, start_all, started_by_torchrun
    from wootz.training.recipe import Recipe
    from wootz.training.restarts import keep_running
    from wootz.training.runs import RunFolder
    from wootz.training.stages.pretrain import device_of
    from wootz.training.trainer import rank

    run, live = RunFolder(out), Live(quiet=not stderr().is_terminal)
    if (asked.mesh.devices > 1 or restarts) and not started_by_torchrun():

        def start(devices: list[int], attempt: int) -> None:
            # A fault that is rehearsed happens once; of an option that is given twice the last holds.
            again = ["--chaos", ""] if chaos and attempt else []
            start_all(asked.mesh, devices, [*sys.argv[1:], *again])

        keep_running(start, run, most=restarts, sizes=list(asked.sizes), say=live.say)
        return
    if os.environ.get("RANK", "0") == "0":
        show_plan(asked)
    home = load(ctx).config.home
    extra = [Chaos.parse(chaos)] if chaos else []
    with joined(asked) as recipe, live:
        device_of(recipe)  # Whether it is here, before hours of preparing text for it.
        if rank() == 0:
            RunFolder.create(
                out, asked.model_dump(mode="json"), lambda kept: Recipe.of(kept, str(out)).model_dump(mode="json")
            )
        reports = make(
            recipe, run, home, bar=lambda stage: progress_bar(stage, quiet=stage == "pretrain"),
            watch=live.step, report=live.say, told=live.told, extra=extra,
        )  # fmt: skip
    if not reports:
        return  # this process was one of many, and not the first
    if "evaluate" in reports:
        _show_result(reports["evaluate"])
    stdout().print(
        f"\nTalk to it:  [bold]wootz serve {run.model}[/bold]   then   [bold]wootz chat[/bold]", soft_wrap=True
    )


def show_plan(recipe: Recipe) -> None:
    from wootz.data.synthetic import mix_guard
    from wootz.training.estimate import estimate
    from wootz.training.stages.context import parts

    dial, plan = recipe.dial, estimate(recipe)
    stdout().print(
        f"[bold]{recipe.name}[/bold]: {recipe.depth} layers of width {dial.hidden_size}, "
        f"{human_count(plan.num_parameters)} parameters; {', '.join(recipe.stages)}"
    )
    rows = table("stage", "what", "how much")
    data = recipe.data.recipe(recipe.seed)
    steps = ", ".join(planned.step.kind for planned in data.steps) or "as it is"
    for source in data.sources:
        rows.add_row("clean", f"{source.name}: {source.package or source.path}", source.licence or "")
    rows.add_row("", steps, f"{recipe.data.held_out:.0%} held out")
    warning = mix_guard({s.name: s.weight for s in data.sources}, (s.name for s in data.sources if s.synthetic))
    rows.add_row(
        "tokenize", f"{recipe.tokenizer.vocab_size:,} tokens", str(recipe.tokenizer.path or "trained on the text")
    )
    for part in parts(recipe):
        rows.add_row(
            "pretrain" + (f": {part.phase.name}" if recipe.pretrain.phases else ""),
            f"rows of {part.context:,}, {human_count(dial.batch_tokens)} tokens a step, "
            f"{recipe.pretrain.optimizer} at {dial.learning_rate * part.phase.rate_factor:.1e}",
            f"{part.num_steps:,} steps, {human_count(part.num_steps * dial.batch_tokens)} tokens",
        )
    rows.add_row("evaluate", "bits per byte, held out", "beside 1-gram and 5-gram")
    stdout().print(rows)
    stdout().print(_budget(recipe, plan))
    if warning:
        stdout().print(f"[yellow]{warning}[/yellow]")
    if not plan.fits:
        stdout().print(
            "[red]This does not fit the device's memory.[/red] More devices, recompute, or smaller micro-batches."
        )


def _budget(recipe: Recipe, plan: Estimate) -> str:
    mesh = recipe.mesh
    where = "this CPU" if mesh.device == "cpu" else f"{mesh.devices} x {mesh.device}"
    shape = "" if mesh.devices == 1 else f" (data {mesh.data}, tensor {mesh.tensor}, pipeline {mesh.pipeline})"
    has = f" of {human_bytes(plan.device_bytes)}" if plan.device_bytes else ""
    return (
        f"About [bold]{_duration(plan.seconds)}[/bold] of pretraining on {where}{shape}: {plan.flops:.1e} operations. "
        f"Memory{' per device' if mesh.devices > 1 else ''}: {human_bytes(plan.state_bytes)} of weights and state, "
        f"{human_bytes(plan.activation_bytes)} of activations{has}."
    )


class Live:
    """A bar with loss and speed on a terminal; a line now and then where there is none."""

    def __init__(self, *, quiet: bool, line_every: int = 20) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.quiet, self.line_every = quiet, line_every
        self.bars = Bars(
            TextColumn("[bold]pretrain"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tok/s"),
            console=stderr(), disable=quiet,
        )  # fmt: skip
        self.task: Any = None
        self.speed = 0.0

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: Any) -> None:
        self.bars.stop()

    def step(self, step: Any, trainer: Any) -> None:
        speed = step.num_tokens / step.seconds
        self.speed = speed if self.speed == 0.0 else 0.9 * self.speed + 0.1 * speed
        if self.task is None:
            self.bars.start()
            self.task = self.bars.add_task("", total=trainer.config.steps, loss=step.loss, speed=self.speed)
        self.bars.update(self.task, completed=trainer.step, loss=step.loss, speed=self.speed)
        if self.quiet and (trainer.step % self.line_every == 0 or trainer.step == trainer.config.steps):
            rate = f"{self.speed:,.0f} tok/s"
            stderr().print(f"step {trainer.step:,}/{trainer.config.steps:,}  loss {step.loss:.3f}  {rate}")

    def say(self, line: str) -> None:
        self.bars.console.print(line, style="yellow", markup=False, soft_wrap=True)

    def told(self, stage: str, facts: dict[str, Any]) -> None:
        self.bars.stop()
        shown = ", ".join(
            f"{key.replace('_', ' ')} {value:,.2f}"
            if isinstance(value, float)
            else f"{key.replace('_', ' ')} {value:,}"
            for key, value in facts.items()
            if isinstance(value, int | float)
        )
        stderr().print(f"[green]✓[/green] {stage}: {shown}", soft_wrap=True)


def _show_result(report: dict[str, Any]) -> None:
    rows = table("held-out text", "bits per byte", right=("bits per byte",))
    rows.add_row("this model", f"[bold]{report['bits_per_byte']:.3f}[/bold]")
    rows.add_row("5-gram, Kneser-Ney, same tokens", f"{report['five_gram_bits_per_byte']:.3f}")
    rows.add_row("unigram, same tokens", f"{report['unigram_bits_per_byte']:.3f}")
    stdout().print(rows)
    if report["benchmarks"]:
        rows = table("benchmark", "accuracy", "by chance", "items", right=("accuracy", "by chance", "items"))
        for name, scored in report["benchmarks"].items():
            rows.add_row(name, scored_text(scored), f"{scored['chance']:.1%}", f"{scored['items']:,}")
        stdout().print(rows)
    if before := report.get("before"):
        rows = table("source", "before", "after", "change", right=("before", "after", "change"))
        for name, bits in report["sources"].items():
            old = before["sources"][name]
            rows.add_row(name, f"{old:.3f}", f"{bits:.3f}", f"{bits - old:+.3f}")
        stdout().print(rows)
    for each in report["samples"]:
        prompt, text = each["prompt"], each["text"]
        stdout().print(f"[dim]{prompt}[/dim]" + text.removeprefix(prompt).replace("[", "\\["), soft_wrap=True)


def scored_text(scored: dict[str, Any]) -> str:
    return f"{scored['accuracy']:.1%} ± {scored['standard_error']:.1%}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} seconds"
