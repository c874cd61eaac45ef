from __future__ import annotations

from pathlib import Path

import pytest

from wootz.tokenization import Tokenizer, load_tokenizer

from .corpus import corpus


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    return load_tokenizer(smollm2_gguf)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Two megabytes of languages, code and oddities."""
    return corpus()


@pytest.fixture(scope="session")
def some_texts(texts: list[str]) -> list[str]:
    """A fifth of them, of each sort."""
    return texts[::5]
