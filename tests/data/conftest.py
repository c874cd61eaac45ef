"""Real text where the project's shared folder is beside it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    for parent in Path(__file__).resolve().parents:
        if (folder := parent / "shared" / "data").is_dir():
            return folder
    pytest.skip("needs ../shared/data")
