"""What every command group needs: the config behind the flags, a console to print on, and human-sized numbers."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from wootz.core import Config, LoadedConfig
    from wootz.core.secrets import SecretSource

PLAIN_HELP: dict[str, Any] = {"rich_markup_mode": "rich", "context_settings": {"help_option_names": ["-h", "--help"]}}

ServerURL = Annotated[
    str | None, typer.Option("--url", help="Any OpenAI-compatible server. \\[default: the one of this setup]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]


def load(ctx: typer.Context, **flags: Any) -> LoadedConfig:
    """All config layers, with this command's flags on top: ``load(ctx, **{"server.port": port})``."""
    from wootz.core import load_config
    from wootz.core.secrets import use_stores

    loaded = load_config({"home": ctx.obj and str(ctx.obj), **flags})
    use_stores(lambda scheme: _secret_source(loaded.config, scheme))
    return loaded


def _secret_source(config: Config, scheme: str) -> SecretSource:
    from wootz.store.secrets import open_source  # Only when a reference asks: it takes a while to load.

    return open_source(config, scheme)


def server_url(ctx: typer.Context) -> str:
    """Where `wootz up` serves, or would, with these settings."""
    server = load(ctx).config.server
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)
    return f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"


@cache
def stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False)


@cache
def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Decimals come as exact strings, times in ISO 8601, paths and the like as text."""

    def plain(item: Any) -> str:
        return (
            f"{item:f}" if isinstance(item, Decimal) else item.isoformat() if isinstance(item, datetime) else str(item)
        )

    print(json.dumps(value, indent=2, default=plain))


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table in the house's look; the columns named in ``right`` hold numbers."""
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return result


def numbers(text: str) -> list[int]:
    """``1,8,32`` as a list of counts."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f'"{text}" is not a list of counts such as 1,8,32')
    return [int(part) for part in parts]


def human_bytes(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_count(count: float) -> str:
    for unit in ("", "K", "M"):
        if count < 1000:
            return f"{count:.0f}{unit}" if unit == "" or count >= 10 else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}B"
