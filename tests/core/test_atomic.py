"""Folders that appear as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from wootz.core import ConfigError
from wootz.core.atomic import atomic_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with atomic_folder(target) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a").write_text("1")
        assert not target.exists()
    assert (target / "part" / "a").read_text() == "1"
    assert names(target.parent) == ["model"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "config.json").write_text("old")

    def fail_with(error: type[BaseException]) -> None:
        with atomic_folder(target, replace_if="config.json") as folder:
            (folder / "config.json").write_text("new")
            raise error

    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            fail_with(error)
    assert (target / "config.json").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_only_a_folder_of_our_own_making_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    for replace_if in (None, "config.json"):
        with pytest.raises(ConfigError, match="is not empty"), atomic_folder(target, replace_if=replace_if):
            raise AssertionError
    (target / "config.json").write_text("old")
    with atomic_folder(target, replace_if="config.json") as folder:
        (folder / "config.json").write_text("new")
    assert names(target) == ["config.json"]
    assert names(tmp_path) == ["model"]


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("x")
    with pytest.raises(ConfigError, match="not a folder"), atomic_folder(tmp_path / "model"):
        raise AssertionError
