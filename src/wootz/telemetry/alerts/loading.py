"""From the files to the rules: those that ship, over them what an operator's own file says."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wootz.core import ConfigError
from wootz.telemetry.alerts.measures import check
from wootz.telemetry.alerts.rules import Rule


def load_rules(own: Path | None = None, latency_budget: dict[str, float] | None = None) -> dict[str, Rule]:
    """By name. Raises `ConfigError` that names file, rule and field.

    ``latency_budget`` (``[telemetry]``, milliseconds by stage) makes the thresholds of the rules ``latency-…``.
    """
    tables = {table["name"]: table for table in _shipped()}
    for stage, milliseconds in (latency_budget or {}).items():
        if (name := f"latency-{stage.replace('_', '-')}") in tables:
            tables[name] = tables[name] | {"fires": milliseconds / 1000, "clears": 0.8 * milliseconds / 1000}
    if own is not None:
        for table in _read(own):
            if "name" not in table:
                raise ConfigError(f"{own}: a rule has no name")
            tables[table["name"]] = tables.get(table["name"], {}) | table
    rules = {}
    for name, table in tables.items():
        try:
            rules[name] = Rule.model_validate(table)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{own or 'rules.toml'}: rule {name}: {where}: {first['msg']}") from None
        check(rules[name])
    return rules


@cache
def _shipped() -> tuple[dict[str, Any], ...]:
    text = files("wootz.telemetry.alerts").joinpath("rules.toml").read_text()
    return tuple(tomllib.loads(text)["rule"])


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        table = tomllib.loads(file.expanduser().read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"alerts.file: {file}: {error}") from None
    rules = table.pop("rule", [])
    if table or not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise ConfigError(f"alerts.file: {file} may hold [[rule]] tables only")
    return rules
