from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wootz.cli.main import app
from wootz.core import Config, ConfigError
from wootz.core.secrets import use_stores
from wootz.store.secrets import LocalStore, open_local, rehearse


@pytest.fixture(autouse=True)
def _other_tests_have_no_stores() -> Iterator[None]:
    yield
    use_stores(None)


def test_the_drill_goes_through_a_keys_life_and_leaves_the_store_alone(tmp_path: Path) -> None:
    config = Config.model_validate({"home": tmp_path, "models": {}})
    open_local(config).set("openai", "a-real-key")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    result = CliRunner().invoke(app, ["--home", str(tmp_path), "secrets", "drill"])
    assert result.exit_code == 0, result.output
    assert "the master key of this setup" in result.output
    assert result.output.count("✓") == 8
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_without_a_store_none_is_made(tmp_path: Path) -> None:
    assert "made for the drill" in next(rehearse(Config.model_validate({"home": tmp_path, "models": {}})))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "instead", "failure"),
    [
        ("stale", lambda *_: [], "an old key is not called stale"),
        ("retire", lambda *_, **__: None, "a version in use was retired"),
        ("destroy_overdue", lambda *_: [], "nothing is destroyed"),
    ],
)
def test_a_step_that_does_not_hold_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, instead: Any, failure: str
) -> None:
    monkeypatch.setattr(LocalStore, method, instead)
    with pytest.raises(ConfigError, match=f"the drill failed: {failure}"):
        list(rehearse(Config.model_validate({"home": tmp_path, "models": {}})))


def test_a_master_key_that_is_gone_is_found_out(tmp_path: Path) -> None:
    gone = {"master_key": f"file:{tmp_path / 'gone'}"}
    with pytest.raises(ConfigError, match="gone"):
        list(rehearse(Config.model_validate({"home": tmp_path, "models": {}, "secrets": gone})))
