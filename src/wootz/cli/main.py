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


app = typer.Typer(
    name="wootz",
    cls=OneLineErrors,
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


app.command("up")(serve.up)
app.command("serve")(serve.serve)
app.command("reload")(serve.reload)
app.command("chat")(chat.chat)
app.command("pull")(models.pull)
app.command("run")(run.run)
app.add_typer(runs.app, name="runs")
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(teams := accounts.commands("team", "Teams: limits over several keys together."), name="teams")
app.add_typer(users := accounts.commands("user", "Users: limits over all the keys of one person."), name="users")
identity.add_describe(teams, "team")
identity.add_describe(users, "user")
identity.add_user_commands(users)
app.command("erase")(identity.erase)
app.add_typer(audit.app, name="audit")
app.add_typer(accounts.commands("tag", "Tags that keys carry, with limits of their own."), name="tags")
app.add_typer(limits.app, name="limits")
app.add_typer(migrate.app, name="migrate")
app.command("drift")(drift.drift)
app.command("provision")(provision.provision)
app.add_typer(cost.app, name="cost")
cost_plans.add_commands(cost.app)
app.add_typer(secrets.app, name="secrets")
app.add_typer(trace.app, name="trace")
app.add_typer(alerts.app, name="alerts")
app.add_typer(config.app, name="config")
app.add_typer(arch.app, name="arch")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(data.app, name="data")
app.add_typer(mix.app, name="mix")
app.command("convert")(convert.convert)
app.command("quantize")(quantize.quantize)
app.add_typer(evals.app, name="eval")
app.add_typer(rope.app, name="rope")
app.add_typer(plan.app, name="plan")
app.add_typer(mup.app, name="mup")
app.add_typer(scaling.app, name="scaling")
app.command("doctor")(doctor.doctor)
app.add_typer(bench.app, name="bench")
app.add_typer(spec.app, name="spec")
app.add_typer(router.app, name="router")
app.add_typer(cascade.app, name="cascade")
app.add_typer(semcache.app, name="semcache")
app.add_typer(prompts.app, name="prompts")
app.add_typer(optim.app, name="optim")
app.add_typer(lr.app, name="lr")


def main() -> None:
    app(prog_name="wootz")
