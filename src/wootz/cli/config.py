"""`wootz config`: what holds, and where it came from."""

from __future__ import annotations

import re
from typing import Any

import typer

from wootz.cli.common import AsJson, load, print_json, stdout, table

app = typer.Typer(help="Show the settings that hold, and which layer set each of them.", no_args_is_help=True)


@app.command("show")
def show(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Print every setting with its origin: default, a wootz.toml, a WOOTZ_* variable or a flag.

    Secrets show as their references (env:NAME, file:PATH); a password inside a database URL is masked.

    Example: [bold]WOOTZ_SERVER__PORT=9000 wootz config show[/bold]
    """
    origins = list(load(ctx).origins())
    if as_json:
        print_json([{"key": o.key, "value": _shown(o.value), "origin": o.origin} for o in origins])
        return
    from rich.markup import escape

    rows = table("setting", "value", "from")
    for origin in origins:
        value = _shown(origin.value)
        shown = "[dim]not set[/dim]" if value is None else escape(str(value))
        rows.add_row(escape(origin.key), shown, origin.origin, style="dim" if origin.origin == "default" else "")
    stdout().print(rows)


@app.command("path")
def path(ctx: typer.Context) -> None:
    """Print the path of the home's wootz.toml, whether or not it exists yet."""
    print(load(ctx).config.home / "wootz.toml")


def _shown(value: Any) -> Any:
    """JSON-ready, with the password of a URL (``scheme://user:password@host``) masked."""  # wootz: no secret
    if value is None or isinstance(value, bool | int | float):
        return value
    return re.sub(r"(\w://[^/@\s:]*):[^/\s]*@", r"\1:***@", str(value))
