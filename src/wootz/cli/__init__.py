"""The `wootz` command: one file per command group; each parses, calls a room, prints."""

from wootz.cli.main import app, main

__all__ = ["app", "main"]
