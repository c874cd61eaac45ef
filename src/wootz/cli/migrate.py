"""`wootz migrate`: one model takes another's place, step by step. Works on the database itself, so that a way back is
there also when no server answers; running servers follow within seconds."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from wootz.cli.common import AsJson, load, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.gateway.migration import Controller, Migration, Plan, Step
    from wootz.gateway.migration.gates import Gate

app = typer.Typer(
    help="Let one model take another's place: shadow, canary, ramp, with a gate before every step.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="A migration's id, or the name that clients ask for (its newest).")]
Result = TypeVar("Result")


@app.callback()
def migrate() -> None:
    """Let one model take another's place: shadow, canary, ramp, with a gate before every step."""


@app.command("start")
def start(
    ctx: typer.Context,
    alias: Annotated[str, typer.Option("--from", help="The name that clients ask for: a model or a route.")],
    new: Annotated[str, typer.Option("--to", help="The model or route that is to answer instead.")],
    stage: Annotated[list[str] | None, typer.Option(help="Its least time: canary=12h; may be repeated.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="How much worse it may be: cost=2, errors=0.01, cost=any; may be repeated.")
    ] = None,
    min_samples: Annotated[int | None, typer.Option(min=1, help="Requests of each model before any step.")] = None,
    min_ratings: Annotated[int | None, typer.Option(min=0, help="Ratings of each model before any step.")] = None,
    shadow_share: Annotated[float | None, typer.Option(min=0, max=1, help="Part of the requests to copy.")] = None,
    manual: Annotated[bool, typer.Option("--manual", help="No step forward by itself; back, always.")] = False,
    as_json: AsJson = False,
) -> None:
    """Begin in the shadow: the new model gets copies, users nothing of it. What is not given here, [migrations] says.

    Examples:
      [bold]wootz migrate start --from chat --to qwen3-32b[/bold]
      [bold]wootz migrate start --from gpt-4o --to gpt-5 --allow cost=1.5 --stage shadow=5d --stage canary=7d[/bold]
    """
    from wootz.core import NotFoundError
    from wootz.gateway.migration import Plan
    from wootz.providers.retirements import affected

    config = load(ctx).config
    for name in (alias, new):
        if name not in config.models and name not in config.routes:
            raise NotFoundError(f'there is no model or route "{name}" in the config')
    given = {"min_samples": min_samples, "min_ratings": min_ratings, "shadow_share": shadow_share}
    plan = Plan.of(config.migrations, automatic=not manual)
    plan = replace(
        plan,
        durations=plan.durations | _durations(stage or []),
        margins=_margins(plan, allow or []),
        **{name: value for name, value in given.items() if value is not None},
    )
    for one in affected(config, datetime.now(UTC).date()):
        if one.model == new or new in one.aliases:
            stderr().print(f"[yellow]![/yellow] {one.words}", soft_wrap=True)

    async def run(controller: Controller) -> Migration:
        return await controller.store.start(alias=alias, new=new, plan=plan, actor=_actor())

    _tell(_with(ctx, run), as_json)


@app.command("status")
def status(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="A migration's id or alias. \\[default: all open ones]")] = None,
    as_json: AsJson = False,
) -> None:
    """Where a migration stands, how each gate stands, what happened so far, and what comes when."""

    async def run(controller: Controller) -> list[tuple[Migration, list[Gate], list[Step]]]:
        store = controller.store
        found = [await store.get(name)] if name else [one for one in await store.deciding() if one.is_open]
        told = []
        for one in found:
            steps = await store.steps(one.id)
            told.append((one, await controller.gates(one) if one.is_open else [*steps[-1].gates], steps))
        return told

    found = _with(ctx, run)
    if as_json:
        return print_json(
            [
                _as_dict(one) | {"gates": [asdict(gate) for gate in gates], "steps": [asdict(step) for step in steps]}
                for one, gates, steps in found
            ]
        )
    if not found:
        stderr().print("No migration is under way. Begin one with `wootz migrate start --from OLD --to NEW`.")
    for one, gates, steps in found:
        _print_status(one, gates, steps)


@app.command("advance")
def advance(
    ctx: typer.Context,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Also where a gate waits or fails.")] = False,
    as_json: AsJson = False,
) -> None:
    """Go to the next stage now, before its time. Refused where a gate does not pass, unless by [bold]--force[/bold]."""
    _tell(_with(ctx, lambda controller: controller.advance(name, actor=_actor(), force=force)), as_json)


@app.command("rollback")
def rollback(
    ctx: typer.Context,
    name: Name,
    why: Annotated[str, typer.Option(help="For the audit log.")] = "asked for",
    as_json: AsJson = False,
) -> None:
    """The old model answers everybody again, within seconds. Possible in every stage before it is decommissioned."""
    _tell(_with(ctx, lambda controller: controller.roll_back(name, actor=_actor(), why=why)), as_json)


@app.command("list")
def list_migrations(ctx: typer.Context, as_json: AsJson = False) -> None:
    """All migrations, the newest first."""
    found = _with(ctx, lambda controller: controller.store.list())
    if as_json:
        return print_json([_as_dict(one) for one in found])
    rows = table("id", "alias", "old", "new", "stage", "new answers", "since", "started", right=("new answers",))
    for one in found:
        share = f"{one.share:.0%}"
        since, started = (f"{moment:%Y-%m-%d %H:%M}" for moment in (one.stage_at, one.started_at))
        rows.add_row(one.id, one.alias, one.old, one.new, one.stage, share, since, started)
    if not found:
        stderr().print("No migrations yet.")
        return
    stdout().print(rows)


def _with(ctx: typer.Context, work: Callable[[Controller], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with _controller(ctx) as controller:
            return await work(controller)

    return asyncio.run(run())


@asynccontextmanager
async def _controller(ctx: typer.Context) -> AsyncIterator[Controller]:
    from wootz.app.preflight import open_database
    from wootz.gateway.migration import Controller, MigrationStore

    async with open_database(load(ctx).config) as database:
        yield Controller(MigrationStore(database))


def _print_status(one: Migration, gates: list[Gate], steps: list[Step]) -> None:
    from wootz.gateway.migration.plan import STAGES, after
    from wootz.gateway.migration.words import figure, margin, worse

    out = stdout()
    out.print(f"[bold]{_title(one)}[/bold]   [dim]{one.id}[/dim]", soft_wrap=True)
    colour = "red" if one.stage == "rolled-back" else "green"
    answered = f"{one.new} answers {one.share:.0%}" if one.stage != "shadow" else f"{one.new} gets copies"
    out.print(f"  stage [{colour}]{one.stage}[/{colour}] since {one.stage_at:%Y-%m-%d %H:%M} UTC; {answered}")
    if one.is_open:
        due = one.stage_at + timedelta(seconds=one.plan.durations[one.stage])
        by = "by itself, when every gate passes" if one.plan.automatic else "only by `wootz migrate advance`"
        out.print(f"  next  {after(one.stage)}, not before {due:%Y-%m-%d %H:%M} UTC, {by}")
    if gates:
        heads = ("gate", "old", "new", "worse", "allowed", "n old", "n new", "verdict")
        rows = table(*heads, right=heads[1:7])
        for gate in gates:
            mark = {"pass": "[green]pass[/green]", "fail": "[red]fail[/red]", "wait": "[yellow]wait[/yellow]"}
            why = f", {gate.why}" if gate.why else ""
            figures = (figure(gate, gate.old), figure(gate, gate.new), worse(gate), margin(gate))
            rows.add_row(gate.name, *figures, f"{gate.old_count:,}", f"{gate.new_count:,}", mark[gate.verdict] + why)
        out.print(rows)
    rows = table("step", "entered", "at (UTC)", "by", "why", right=("step",))
    for step in steps:
        rows.add_row(str(step.number), step.stage, f"{step.at:%Y-%m-%d %H:%M:%S}", step.actor, step.why)
    out.print(rows)
    if one.stage == STAGES[-1]:
        out.print(f"  {one.old} is not asked any more: take it out of the config when no other route needs it.")


def _durations(texts: list[str]) -> dict[str, float]:
    from wootz.core.sections.migrations import DURATIONS, seconds_of

    durations = {}
    for text in texts:
        stage, _, period = text.partition("=")
        if stage not in DURATIONS:
            raise typer.BadParameter(f'there is no stage "{stage}"; there are {", ".join(DURATIONS)}')
        try:
            durations[stage] = float(seconds_of(period))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return durations


def _margins(plan: Plan, texts: list[str]) -> dict[str, float]:
    margins = dict(plan.margins)
    from wootz.core.sections.migrations import GatesConfig

    for text in texts:
        gate, _, margin = text.partition("=")
        if gate not in GatesConfig.model_fields:
            raise typer.BadParameter(f'there is no gate "{gate}"; there are {", ".join(GatesConfig.model_fields)}')
        if margin == "any":
            margins.pop(gate, None)
            continue
        try:
            margins[gate] = float(margin)
        except ValueError:
            raise typer.BadParameter(f'"{text}" says no margin such as cost=1.5') from None
    return margins


def _actor() -> str:
    return f"{getpass.getuser()} (command line)"


def _tell(one: Migration, as_json: bool) -> None:
    if as_json:
        return print_json(_as_dict(one))
    stderr().print(f"[green]✓[/green] {_title(one)} is in the stage [bold]{one.stage}[/bold]")
    print(one.id)


def _title(one: Migration) -> str:
    return f"{one.alias + ': ' if one.alias != one.old else ''}{one.old} → {one.new}"


def _as_dict(one: Migration) -> dict[str, Any]:
    return asdict(one) | {"share": one.share}
