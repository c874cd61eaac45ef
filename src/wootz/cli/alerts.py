"""`wootz alerts`: what is wrong, what to do about it, and what the rules would have said of the past."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import PLAIN_HELP, AsJson, load, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.core import Config
    from wootz.store import Database
    from wootz.telemetry.alerts import IncidentRow, Incidents, Rule

app = typer.Typer(
    no_args_is_help=True,
    help="Incidents and the rules that find them. Every rule names a page of docs/operations: what to do.\n\n"
    "A running platform looks at the rules by itself; these commands work on its database.",
    **PLAIN_HELP,
)
Id = Annotated[str, typer.Argument(help="Of the incident, or its beginning.")]
COLOURS = {"critical": "red", "warning": "yellow", "info": "cyan"}


@app.command("list")
def list_(
    ctx: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Open incidents, the newest first.

    Examples:
      [bold]wootz alerts list[/bold]
      [bold]wootz alerts list --all --json[/bold]
    """

    async def run() -> list[IncidentRow]:
        async with _incidents(ctx) as (incidents, _):
            return await incidents.list(("open", "resolved") if all_ else ("open",))

    rules, found = _rules(ctx), asyncio.run(run())
    if as_json:
        return print_json([_plain(incident, rules) for incident in found])
    if not found:
        stderr().print("No incidents.")
        return
    _print_incidents(found)


@app.command()
def check(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Look at every rule once, now, and change nothing. Exit 1 if one fires."""
    from wootz.telemetry.alerts.evaluate import Baselines, Finding, evaluate

    rules = _rules(ctx)

    async def run() -> list[tuple[Rule, Finding]]:
        async with _incidents(ctx) as (_, database), database.session() as session:
            now, baselines = datetime.now(UTC), Baselines()
            return [
                (rule, finding)
                for rule in rules.values()
                if rule.enabled
                for finding in await evaluate(session, rule, now, baselines)
            ]

    found = asyncio.run(run())
    firing = [(rule, finding) for rule, finding in found if finding.is_firing]
    if as_json:
        print_json([{"rule": rule.name, "fires": rule.fires, **vars(finding)} for rule, finding in found])
    else:
        rows = table("rule", "subject", "value", "fires at", "", right=("value", "fires at"))
        for rule, finding in found:
            sign = ">=" if rule.direction == "up" else "<="
            word = f"[{COLOURS[rule.severity]}]fires[/]" if finding.is_firing else ""
            rows.add_row(rule.name, finding.subject, f"{finding.judged:.4g}", f"{sign} {rule.fires:g}", word)
        stdout().print(rows)
        stderr().print(f"{sum(rule.enabled for rule in rules.values())} rules, {len(firing)} firing.")
    if firing:
        raise typer.Exit(1)


@app.command()
def show(ctx: typer.Context, incident: Id, as_json: AsJson = False) -> None:
    """One incident: since when, how bad, who has most of it, what was done, who was told, and what to read."""
    rules = _rules(ctx)

    async def run() -> tuple[IncidentRow, list[Any]]:
        async with _incidents(ctx) as (incidents, _):
            row = await incidents.get(incident)
            return row, await incidents.notices(row.id)

    row, notices = asyncio.run(run())
    plain = _plain(row, rules)
    if as_json:
        keep = ("receiver", "attempts", "delivered_at", "due_at", "problem")
        return print_json(plain | {"notices": [{name: getattr(one, name) for name in keep} for one in notices]})
    out, rule = stdout(), rules.get(row.rule)
    out.print(f"[{COLOURS[row.severity]}]{row.severity}[/] [bold]{row.rule}[/bold]", row.subject, row.state)
    lines = {"id": row.id, "what": rule.about if rule else None, "runbook": plain.get("runbook")}
    lines |= {"began": _time(row.began_at), "opened": _time(row.opened_at), "over": _time(row.resolved_at)}
    lines |= {name: _short(value) for name, value in row.detail.items()}
    if row.action:
        words = row.action_detail.get("what") or row.action_detail.get("problem") or row.action
        lines["action"] = f"{words} ({row.action_state})"
    lines["on it"] = row.acknowledged_by
    for notice in notices:
        how = f"heard at {_time(notice.delivered_at)}" if notice.delivered_at else f"not yet: {notice.problem}"
        lines[f"told {notice.receiver}"] = how
    for name, value in lines.items():
        if value:
            out.print(f"{name.replace('_', ' '):>16}  {value}", markup=False, soft_wrap=True)


@app.command()
def ack(ctx: typer.Context, incident: Id) -> None:
    """Say that you are on it: it is not told again."""

    async def run() -> IncidentRow:
        async with _incidents(ctx) as (incidents, _):
            return await incidents.acknowledge(incident, by=getpass.getuser())

    row = asyncio.run(run())
    stderr().print(f"{row.rule} of {row.subject}: {row.acknowledged_by} is on it.", markup=False)


@app.command()
def silence(
    ctx: typer.Context,
    rule: Annotated[str | None, typer.Option(help="Only of this rule.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only of this subject.")] = None,
    lasting: Annotated[str, typer.Option("--for", help="How long: 30m, 4h, 7d.")] = "2h",
    why: Annotated[str, typer.Option(help="For who wonders later.")] = "",
    end: Annotated[str | None, typer.Option(help="The other way: end the silence with this id.")] = None,
) -> None:
    """Tell nobody and do nothing for a while; incidents are recorded all the same. Without a rule and a subject: list.

    Examples:
      [bold]wootz alerts silence --rule provider-errors --subject qwen-max --for 4h --why "their maintenance"[/bold]
      [bold]wootz alerts silence[/bold]
    """
    from wootz.telemetry import parse_period

    async def run() -> None:
        async with _incidents(ctx) as (incidents, _):
            if end is not None:
                await incidents.end_silence(end)
            elif rule or subject:
                by = getpass.getuser()
                row = await incidents.silence(rule, subject, parse_period(lasting), why=why or "-", by=by)
                stderr().print(f"Silent until {_time(row.until)}: {row.id}", markup=False)
            else:
                rows = table("id", "rule", "subject", "until", "by", "why")
                for row in await incidents.silences():
                    rows.add_row(
                        row.id, row.rule or "any", row.subject or "any", _time(row.until), row.created_by, row.why
                    )
                stdout().print(rows)

    asyncio.run(run())


@app.command()
def replay(
    ctx: typer.Context,
    last: Annotated[str, typer.Option(help="How far back: 24h, 7d.")] = "24h",
    step: Annotated[str, typer.Option(help="Between two looks.")] = "5m",
    rule: Annotated[list[str] | None, typer.Option(help="Only this rule; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """What the rules would have said of the ledger's past. Nobody is told, nothing is done.

    For a threshold that you want to change: put it into the file of [bold]alerts.file[/bold], and replay.
    """
    from wootz.core import NotFoundError
    from wootz.telemetry import parse_period
    from wootz.telemetry.alerts import replay as replayed

    rules = _rules(ctx)
    if unknown := [name for name in rule or () if name not in rules]:
        raise NotFoundError(f'there is no rule "{unknown[0]}"', hint="wootz alerts rules lists them")
    chosen = {name: one for name, one in rules.items() if not rule or name in rule}

    async def run() -> list[IncidentRow]:
        async with _incidents(ctx) as (_, database), database.session() as session:
            now = datetime.now(UTC)
            return await replayed(session, chosen, now - parse_period(last), now, parse_period(step))

    found = asyncio.run(run())
    if as_json:
        return print_json([_plain(incident, rules) for incident in found])
    if found:
        _print_incidents(found)
    stderr().print(f"{len(chosen)} rules over {last}: {len(found)} incidents.")


@app.command("rules")
def rules_(
    ctx: typer.Context,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="As a rules file for Prometheus.")] = False,
    as_json: AsJson = False,
) -> None:
    """The rules in force: those that ship, with what [bold]alerts.file[/bold] changes.

    Example:
      [bold]wootz alerts rules --prometheus > /etc/prometheus/wootz.rules.yml[/bold]
    """
    from wootz.telemetry.alerts import rules_file

    rules = _rules(ctx)
    if prometheus:
        print(rules_file(rules, load(ctx).config.alerts.runbook_url), end="")
    elif as_json:
        print_json([rule.model_dump(mode="json") for rule in rules.values()])
    else:
        rows = table("rule", "severity", "fires when", "action")
        for rule in rules.values():
            rows.add_row(
                rule.name,
                f"[{COLOURS[rule.severity]}]{rule.severity}[/]" if rule.enabled else "[dim]off[/dim]",
                _condition(rule),
                rule.action or "-",
            )
        stdout().print(rows)


# --- parts --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _incidents(ctx: typer.Context) -> AsyncIterator[tuple[Incidents, Database]]:
    from wootz.app.preflight import open_database
    from wootz.telemetry.alerts import Incidents

    async with open_database(_config(ctx)) as database:
        yield Incidents(database), database


def _config(ctx: typer.Context) -> Config:
    return load(ctx).config


def _rules(ctx: typer.Context) -> dict[str, Rule]:
    from wootz.telemetry.alerts import load_rules

    config = _config(ctx)
    return load_rules(config.alerts.file, config.telemetry.latency_budget)


def _plain(incident: IncidentRow, rules: Mapping[str, Rule]) -> dict[str, Any]:
    from wootz.telemetry.alerts import told

    rule = rules.get(incident.rule)
    page = f"docs/operations/{rule.runbook}.md" if rule else None
    return told(incident, rule) | {"runbook": page}


def _print_incidents(found: list[IncidentRow]) -> None:
    rows = table("id", "severity", "rule", "subject", "worst", "opened", "state", "action", right=("worst",))
    for one in found:
        ended = f"over {one.resolved_at:%m-%d %H:%M}" if one.resolved_at else "open"
        rows.add_row(
            one.id[:12],
            f"[{COLOURS[one.severity]}]{one.severity}[/]",
            one.rule,
            one.subject,
            f"{one.worst:.4g}",
            f"{one.opened_at:%m-%d %H:%M}" if one.opened_at else "",
            f"{ended}, {one.acknowledged_by} is on it" if one.acknowledged_by else ended,
            f"{one.action} ({one.action_state})" if one.action else "-",
        )
    stdout().print(rows)


def _condition(rule: Rule) -> str:
    sign = ">=" if rule.direction == "up" else "<="
    measure = f"p{100 * rule.quantile:g} of {rule.measure}" if rule.quantile else rule.measure.removeprefix("signal:")
    against = {
        "level": "",
        "before": f" x the {_span_text(rule.baseline)} before",
        "ago": f" x the same {_span_text(rule.baseline)} ago",
        "peers": " x the median",
        "older": " x the older model's",
    }[rule.compare]
    by = "" if rule.by == "all" else f" by {rule.by}"
    return f"{measure}{by} {sign} {rule.fires:g}{against}, in {_span_text(rule.window)}"


def _span_text(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else ""


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items() if part is not None)
    return str(value)
