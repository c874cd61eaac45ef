"""Commands that are made when they are asked for.

Typer makes all of an application's commands before it runs one. We have more than a hundred and fifty; looking at the
annotations of all of them takes longer than most commands take to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from functools import partial
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command_from_info, get_command_name, get_group_from_info
from typer.models import TyperInfo


class Lazily(Mapping[str, Any]):
    """The commands and groups that were registered with an application, by name."""

    def __init__(self, app: typer.Typer, **options: Any) -> None:
        """``options``: those of Typer's `get_group_from_info`."""
        own = {name: value for name, value in options.items() if name != "suggest_commands"}
        self._makers: dict[str, Callable[[], Any]] = {}
        for info in app.registered_commands:
            assert info.callback is not None
            name = info.name or get_command_name(info.callback.__name__)
            self._makers[name] = partial(get_command_from_info, info, **own)
        for group in app.registered_groups:
            assert group.name is not None
            self._makers[str(group.name)] = partial(_group, group, **options)
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _group(info: TyperInfo, **options: Any) -> TyperGroup:
    app = info.typer_instance
    assert app is not None
    hollow, described = copy(app), copy(info)
    hollow.registered_commands, hollow.registered_groups = [], []
    described.typer_instance = hollow
    group = get_group_from_info(described, **options)
    group.commands = Lazily(app, **options)  # pyright: ignore[reportAttributeAccessIssue]
    return group
