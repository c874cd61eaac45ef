"""A console per test, and people in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from console_house import Browser, House, build_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = await build_house(tmp_path)
    yield house
    await house.close()


@pytest.fixture
async def open_house(tmp_path: Path) -> AsyncIterator[House]:
    """Without accounts."""
    house = await build_house(tmp_path, accounts=False)
    yield house
    await house.close()


@pytest.fixture
def browser(house: House) -> Callable[..., Browser]:
    return lambda **options: Browser(house.app, **options)


@pytest.fixture
async def admin(house: House) -> AsyncIterator[Browser]:
    async with Browser(house.app) as browser:
        await browser.sign_in(await house.key("boss", scopes=("admin",)))
        yield browser


@pytest.fixture
async def user(house: House) -> AsyncIterator[Browser]:
    """Signed in with a plain inference key, "worker"."""
    async with Browser(house.app) as browser:
        await browser.sign_in(await house.key("worker"))
        yield browser
