"""The root of the command: global flags, the groups, and the one place where an error becomes a line.

Command modules import rooms inside their functions, so that `wootz --help` answers before a heavy library
is even looked at.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from wootz import __version__
from wootz.cli import (
    accounts,
    alerts,
    arch,
    audit,
    bench,
    cascade,
    chat,
    config,
    convert,
    cost,
    cost_plans,
    data,
    doctor,
    drift,
    evals,
    identity,
    keys,
    limits,
    lr,
    migrate,
    mix,
    models,
    mup,
    optim,
    plan,
    prompts,
    provision,
    quantize,
    rope,
    router,
    run,
    runs,
    scaling,
    secrets,
    semcache,
    serve,
    spec,
    tokenizer,
    trace,
)
from wootz.cli.common import PLAIN_HELP
from wootz.cli.lazily import Lazily


class OneLineErrors(TyperGroup):
    """Turns the house's errors into ``error: …`` and their exit code. ``WOOTZ_DEBUG=1`` shows the traceback instead."""

    def invoke(self, ctx: Any) -> Any:
        from wootz.core.errors import WootzError

        try:
            return super().invoke(ctx)
        except WootzError as error:
            if os.environ.get("WOOTZ_DEBUG"):
                raise
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None


class Root(OneLineErrors):
    """Has all that is registered with `commands`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Lazily(  # pyright: ignore[reportAttributeAccessIssue]
            commands,
            pretty_exceptions_short=app.pretty_exceptions_short,
            suggest_commands=app.suggest_commands,
            rich_markup_mode=app.rich_markup_mode,
        )


commands = typer.Typer()
app = typer.Typer(
    name="wootz",
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    **PLAIN_HELP,
    help="Make, serve, build on and prove language models. Start with: [bold]wootz up[/bold]",
    epilog="Settings come from wootz.toml, WOOTZ_* variables and flags; `wootz config show` tells which one holds.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"wootz {__version__}")
        raise typer.Exit


@app.callback()
def globals_(
    ctx: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(help="Models, database and wootz.toml. \\[default: $WOOTZ_HOME or ~/.wootz]"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    ctx.obj = home


commands.command("up")(serve.up)
commands.command("serve")(serve.serve)
commands.command("reload")(serve.reload)
commands.command("chat")(chat.chat)
commands.command("pull")(models.pull)
commands.command("run")(run.run)
commands.add_typer(runs.app, name="runs")
commands.add_typer(models.app, name="models")
commands.add_typer(keys.app, name="keys")
commands.add_typer(teams := accounts.commands("team", "Teams: limits over several keys together."), name="teams")
commands.add_typer(users := accounts.commands("user", "Users: limits over all the keys of one person."), name="users")
identity.add_describe(teams, "team")
identity.add_describe(users, "user")
identity.add_user_commands(users)
commands.command("erase")(identity.erase)
commands.add_typer(audit.app, name="audit")
commands.add_typer(accounts.commands("tag", "Tags that keys carry, with limits of their own."), name="tags")
commands.add_typer(limits.app, name="limits")
commands.add_typer(migrate.app, name="migrate")
commands.command("drift")(drift.drift)
commands.command("provision")(provision.provision)
commands.add_typer(cost.app, name="cost")
cost_plans.add_commands(cost.app)
commands.add_typer(secrets.app, name="secrets")
commands.add_typer(trace.app, name="trace")
commands.add_typer(alerts.app, name="alerts")
commands.add_typer(config.app, name="config")
commands.add_typer(arch.app, name="arch")
commands.add_typer(tokenizer.app, name="tokenizer")
commands.add_typer(data.app, name="data")
commands.add_typer(mix.app, name="mix")
commands.command("convert")(convert.convert)
commands.command("quantize")(quantize.quantize)
commands.add_typer(evals.app, name="eval")
commands.add_typer(rope.app, name="rope")
commands.add_typer(plan.app, name="plan")
commands.add_typer(mup.app, name="mup")
commands.add_typer(scaling.app, name="scaling")
commands.command("doctor")(doctor.doctor)
commands.add_typer(bench.app, name="bench")
commands.add_typer(spec.app, name="spec")
commands.add_typer(router.app, name="router")
commands.add_typer(cascade.app, name="cascade")
commands.add_typer(semcache.app, name="semcache")
commands.add_typer(prompts.app, name="prompts")
commands.add_typer(optim.app, name="optim")
commands.add_typer(lr.app, name="lr")


def main() -> None:
    app(prog_name="wootz")
