"""The examples of ``docs/routing.md`` run."""

from __future__ import annotations

import asyncio
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from routing_house import Turns
from typer.testing import CliRunner

from wootz.cli.main import app
from wootz.core import Config
from wootz.gateway.routing import open_routes
from wootz.gateway.routing.policies.learned import Router
from wootz.gateway.routing.training import Preference
from wootz.providers.thresholds import read_questions
from wootz.telemetry import PriceBook

PAGE = (Path(__file__).parents[2] / "docs" / "routing.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_config_of_the_page_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Router(0.0, {}).save(tmp_path / "router.json")
    tree: dict[str, Any] = tomllib.loads("\n".join(blocks("toml")))
    config = Config.model_validate({"home": tmp_path, **tree})
    models = {name: Turns(name) for name in config.models}
    routes = open_routes(config, models, PriceBook())
    assert routes.keys() == tree["routes"].keys()
    assert all(asyncio.run(_all_ready(list(routes.values()))))


async def _all_ready(routes: list[Any]) -> list[bool]:
    return [await route.ready() for route in routes]


def test_the_data_of_the_page_is_read(tmp_path: Path) -> None:
    preferences, answers = blocks("json")
    assert [Preference.model_validate_json(line).needs_dear for line in preferences.splitlines()] == [True, False]
    (tmp_path / "answers.jsonl").write_text(answers * 10)
    assert len(read_questions(tmp_path / "answers.jsonl")) == 10
    result = CliRunner().invoke(app, ["cascade", "fit", str(tmp_path / "answers.jsonl"), "--target-quality", "0.95"])
    assert result.exit_code == 0


def test_the_python_of_the_page_compiles_and_imports() -> None:
    (code,) = blocks("python")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["adds_up"]("42")
