"""`wootz secrets`: the local store's secrets and their versions, and a scan for those that got out."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import PLAIN_HELP, AsJson, load, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.store.secrets import About, LocalStore

app = typer.Typer(
    no_args_is_help=True,
    help="Keep keys encrypted, rotate them without a failed request, find those that leaked.\n\n"
    "Config names a secret as [bold]store:NAME[/bold] and always gets its current version. A value is typed at a "
    "prompt or comes through stdin; it is never an argument and never printed.\n\n"
    "The life of a version: pending, current, previous (valid for the overlap), retired (can be had back), destroyed.",
    **PLAIN_HELP,
)
Name = Annotated[str, typer.Argument(help="Of the secret, e.g. openai or team/openai.")]


@app.command("set")
def set_(
    ctx: typer.Context,
    name: Name,
    description: Annotated[str, typer.Option(help="What it opens, and who to ask.")] = "",
    overlap_days: Annotated[float, typer.Option(min=0, help="How long the version before stays valid.")] = 30,
    recovery_days: Annotated[float, typer.Option(min=0, help="How long a retired version can be had back.")] = 7,
    max_age_days: Annotated[float, typer.Option(min=0, help="Older than this, it is stale.")] = 90,
) -> None:
    """Keep a new secret. The first one makes the store and its master key.

    Examples:
      [bold]wootz secrets set openai[/bold]                         (asks for the value)
      [bold]pass show openai | wootz secrets set openai[/bold]
    then in wootz.toml: [bold]api_key = "store:openai"[/bold]
    """
    from wootz.store.secrets.local import DAY

    version = _store(ctx).set(
        name, _value(), description=description,
        overlap=overlap_days * DAY, recovery=recovery_days * DAY, max_age=max_age_days * DAY,
    )  # fmt: skip
    stderr().print(f'Version {version} of {name} is current. In wootz.toml it is "store:{name}".', markup=False)
    _tell_audit_log(ctx)


@app.command("list")
def list_(
    ctx: typer.Context,
    stale: Annotated[bool, typer.Option("--stale", help="Only those past their age limit; exit 1 if any.")] = False,
    older_than_days: Annotated[float | None, typer.Option(min=0, help="With --stale: another limit for all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Secrets, their current versions and ages. No values.

    Example, as a daily check:
      [bold]wootz secrets list --stale --older-than-days 90[/bold]
    """
    from wootz.store.secrets.local import DAY

    store = _store(ctx)
    overdue = store.stale(None if older_than_days is None else older_than_days * DAY)
    found = overdue if stale else store.list()
    if as_json:
        print_json([_plain(about) for about in found])
    else:
        late = {about.name for about in overdue}
        rows = table("Name", "Current", "Since", "Other versions", "Uses", "", right=("Current", "Uses"))
        for about in found:
            current = about.current
            others = ", ".join(f"{one.version} {one.state}" for one in about.versions if one is not current)
            uses = sum(one.uses for one in about.versions)
            rows.add_row(
                about.name,
                str(current.version) if current else "-",
                _when(current and current.current_since),
                others,
                f"{uses:,}",
                "stale" if about.name in late else "",
            )
        stdout().print(rows)
    if stale and found:
        raise typer.Exit(1)


@app.command()
def show(ctx: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """One secret's versions: states, times, uses. Never its value."""
    about = _store(ctx).about(name)
    if as_json:
        print_json(_plain(about))
        return
    stdout().print(f"{about.name}  {about.description}", markup=False)
    days = {"overlap": about.overlap, "recovery": about.recovery, "age limit": about.max_age}
    stdout().print(", ".join(f"{what} {seconds / 86400:g} days" for what, seconds in days.items()))
    rows = table("Version", "State", "Made", "Current since", "Uses", "Last used", right=("Version", "Uses"))
    for one in about.versions:
        times = _when(one.created), _when(one.current_since)
        rows.add_row(str(one.version), one.state, *times, f"{one.uses:,}", _when(one.last_used))
    stdout().print(rows)


@app.command()
def rotate(
    ctx: typer.Context,
    name: Name,
    stage: Annotated[bool, typer.Option("--stage", help="Only keep the new value; nobody reads it yet.")] = False,
    to: Annotated[int | None, typer.Option(help="Make this staged or previous version current; asks for none.")] = None,
) -> None:
    """A new version becomes current. Running servers take it within seconds; the old one stays valid meanwhile.

    Examples:
      [bold]wootz secrets rotate openai[/bold]
      [bold]wootz secrets rotate openai --stage[/bold], then [bold]wootz secrets rotate openai --to 3[/bold]
      [bold]wootz secrets rotate openai --to 2[/bold]     (undo)
    """
    store = _store(ctx)
    if to is not None:
        store.promote(name, to)
        stderr().print(f"Version {to} of {name} is current.", markup=False)
        return _tell_audit_log(ctx)
    store.about(name)  # Said before a value is asked for.
    version = store.stage(name, _value()) if stage else store.rotate(name, _value())
    state = "pending" if stage else "current"
    stderr().print(f"Version {version} of {name} is {state}.", markup=False)
    _tell_audit_log(ctx)


@app.command()
def audit(ctx: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Who used which version, how often and until when; and everything that was done to the secret."""
    store = _store(ctx)
    store.about(name)
    uses, events = store.uses(name), store.events(name)
    if as_json:
        names = ("version", "used_by", "count", "first", "last")
        print_json({"uses": [dict(zip(names, one, strict=True)) for one in uses], "events": [vars(e) for e in events]})
        return
    rows = table("Version", "Used by", "Uses", "First", "Last", right=("Version", "Uses"))
    for version, used_by, count, first, last in uses:
        rows.add_row(str(version), used_by, f"{count:,}", _when(first), _when(last))
    stdout().print(rows)
    for event in events:
        stdout().print(f"{_when(event.at)}  version {event.version} {event.action}, by {event.who}", markup=False)


@app.command()
def retire(
    ctx: typer.Context,
    name: Name,
    version: Annotated[int, typer.Argument()],
    quiet_seconds: Annotated[float, typer.Option(min=10, help="Refuse while it was used this recently.")] = 3600,
    force: Annotated[bool, typer.Option("--force", help="Also while it is in use: it has leaked.")] = False,
    recover: Annotated[
        bool, typer.Option("--recover", help="The other way: a retired version is valid again.")
    ] = False,
) -> None:
    """End a version that nobody uses any more. Refused for the current one, and while servers still use it.

    Also destroys, for good, what was retired and is past its recovery window.

    Examples:
      [bold]wootz secrets retire openai 1[/bold]
      [bold]wootz secrets retire openai 1 --recover[/bold]
    """
    store = _store(ctx)
    if recover:
        store.recover(name, version)
    else:
        store.retire(name, version, quiet=quiet_seconds, force=force)
    stderr().print(f"Version {version} of {name} is {'previous again' if recover else 'retired'}.", markup=False)
    for gone, number in store.destroy_overdue():
        stderr().print(f"Version {number} of {gone} was destroyed: its recovery window is over.", markup=False)
    _tell_audit_log(ctx)


@app.command()
def rewrap(
    ctx: typer.Context,
    old: Annotated[str, typer.Option("--from", help="The master key of before: file:PATH, env:NAME or transit:NAME.")],
) -> None:
    """After the master key was changed: lock with it what the one before had locked, here and in the database.

    Values, bodies and what is kept for users stay as they are; only the keys that they were encrypted with are locked
    anew. Stop the servers, put the new master key in its place, run this, and start them.

    Example:
      [bold]wootz secrets rewrap --from file:secrets.key.old[/bold]
    """
    import asyncio

    from wootz.app.preflight import open_database
    from wootz.gateway.kept import keys_of_kept
    from wootz.store.secrets import key_wrapper, open_local, wrapper_of
    from wootz.telemetry.bodies import keys_of_bodies

    config = load(ctx).config
    before, present = key_wrapper(config, old), wrapper_of(config)

    async def in_database() -> list[int]:
        async with open_database(config) as database:
            return [await keys(database, present).rewrap(before) for keys in (keys_of_bodies, keys_of_kept)]

    versions = open_local(config).rewrap(before) if (config.home / "secrets.db").exists() else 0
    stderr().print(f"{versions} versions of secrets are locked with the new master key.")
    bodies, kept = asyncio.run(in_database())
    stderr().print(f"{bodies} keys of stored bodies and {kept} of what is kept for users, too.")
    if versions:
        _tell_audit_log(ctx)


@app.command("give-up")
def give_up(ctx: typer.Context, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """After a master key was lost: delete what was kept for users with it, which nobody can open any more.

    A server does not start with a master key that opens nothing of what is kept. With the lost one at hand, in a backup
    say, use rewrap instead.

    Example:
      [bold]wootz secrets give-up[/bold]
    """
    import asyncio

    from wootz.app.preflight import open_database
    from wootz.core.acting import actor
    from wootz.gateway.surfaces.kept_house import give_up
    from wootz.store.audit import AuditLog
    from wootz.store.secrets import wrapper_of

    config = load(ctx).config
    if not yes:
        typer.confirm("Delete what users kept and the present master key does not open? It can't be undone", abort=True)

    async def delete() -> dict[str, int]:
        async with open_database(config) as database:
            counts = await give_up(database, config, wrapper_of(config))
            await AuditLog(database).append(actor=actor(), action="kept.given_up", subject="", detail=counts)
            return counts

    for what, number in asyncio.run(delete()).items():
        stdout().print(f"{number} {what}")


@app.command()
def drill(ctx: typer.Context) -> None:
    """Rehearse a rotation from end to end on a scratch store, with this setup's master key. Exit 1 where a step fails.

    Touches no secret of yours. Once a quarter, also without a leak.

    Example:
      [bold]wootz secrets drill[/bold]
    """
    from wootz.store.secrets import rehearse

    for step in rehearse(load(ctx).config):
        stdout().print(f"[green]✓[/green] {step}")


@app.command()
def scan(
    ctx: typer.Context,
    paths: Annotated[list[Path] | None, typer.Argument(help="Files and folders. \\[default: .]")] = None,
    history: Annotated[bool, typer.Option("--history", help="Also every line that was ever committed.")] = False,
    known: Annotated[bool, typer.Option(help="Look for the values in the local store, too, in any guise.")] = True,
    as_json: AsJson = False,
) -> None:
    """Find secrets where they must not be: config, logs, Terraform state and plans, what git tracks. Exit 1 if any.

    In a git repository, the files that git tracks; elsewhere, all. Values of the local store are found also in
    base64, hex, URL- or JSON-escaped, hashed, or cut short; others by the shape of keys and by entropy.
    A line with [bold]wootz: no secret[/bold] in a comment is passed over, except for known values.

    Examples:
      [bold]wootz secrets scan .[/bold]
      [bold]wootz secrets scan terraform.tfstate plan.json gateway.log[/bold]
    """
    from dataclasses import asdict

    from wootz.store.secrets.scan import scan_history, scan_paths

    config = load(ctx).config
    values = dict(_store(ctx).readable_values()) if known and (config.home / "secrets.db").exists() else {}
    paths = paths or [Path()]
    found = [*scan_paths(paths, values)]
    if history:
        found += [finding for path in paths for finding in scan_history(path, values)]
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        for finding in found:
            stdout().print(str(finding), markup=False, soft_wrap=True)
        stderr().print(f"{len(found)} found." if found else "Nothing found.")
    if found:
        raise typer.Exit(1)


def _store(ctx: typer.Context) -> LocalStore:
    from wootz.store.secrets import open_local

    return open_local(load(ctx).config)


def _tell_audit_log(ctx: typer.Context) -> None:
    """Copy the store's own events, which it writes with each change, to the platform's log: those that are new there.

    They are in another database, so not in one transaction: what is missing after a crash, or while the platform's
    database was down, is copied the next time.
    """
    import asyncio

    from wootz.app.preflight import open_database
    from wootz.core.errors import WootzError
    from wootz.store.audit import AuditLog

    loaded, events = load(ctx), _store(ctx).events()

    async def copy() -> None:
        async with open_database(loaded.config) as database:
            log = AuditLog(database)
            known = await log.entries(action="secret.", limit=1)
            first = known[0].detail["event"] if known else 0
            for number, event in enumerate(events[first:], first + 1):
                detail = {"event": number, "version": event.version, "at": event.at}
                who = f"local:{event.who}"
                await log.append(actor=who, action=f"secret.{event.action}", subject=event.name, detail=detail)

    try:
        asyncio.run(copy())
    except WootzError as error:
        stderr().print(f"The audit log was not told, and will be the next time: {error}", markup=False)


def _value() -> str:
    """What is piped in, or typed twice unseen."""
    if sys.stdin.isatty():
        return typer.prompt("Value", hide_input=True, confirmation_prompt=True)
    return sys.stdin.read().strip()


def _plain(about: About) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(about)


def _when(seconds: float | None) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}" if seconds else "-"
