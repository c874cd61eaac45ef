"""What every evaluation test needs: a setup whose tokens can be counted by hand, and a way to ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from scripted_readers import count_words

from wootz.core import LanguageModel
from wootz.evals import Journal
from wootz.evals import long_context as ctx

Asking = Callable[..., Awaitable[list[ctx.Row]]]


@pytest.fixture
def setup() -> ctx.Setup:
    return ctx.Setup(count=count_words)


@pytest.fixture
def ask(tmp_path: Path) -> Asking:
    """Asks all cases in a run of its own."""
    runs = iter(range(1000))

    async def ask(model: LanguageModel, cases: list[ctx.Case], **options) -> list[ctx.Row]:
        with Journal(tmp_path / f"run{next(runs)}", {}) as journal:
            return await ctx.evaluate(model, cases, journal, **options)

    return ask
