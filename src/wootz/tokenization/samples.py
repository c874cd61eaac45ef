"""Texts to measure a tokenizer on when there are none of one's own.

The first three articles of the Universal Declaration of Human Rights (United Nations, free of copyright) in languages
of different scripts, which say the same in each, and a piece of Python.
"""

from __future__ import annotations

import json
from importlib.resources import files


def sample_texts() -> dict[str, list[str]]:
    """Texts by language (ISO 639 code, or ``python``)."""
    samples = json.loads(files("wootz.tokenization").joinpath("samples.json").read_text(encoding="utf-8"))
    return {language: text.split("\n") if language != "python" else [text] for language, text in samples.items()}
