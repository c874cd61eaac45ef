"""Texts out of files, for whoever needs a few of them: to calibrate with, to measure on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wootz.core.errors import BadRequestError, NotFoundError


def read_texts(path: Path) -> Iterator[str]:
    """Of a ``.txt`` file the whole; of ``.jsonl`` the ``text`` of each row, the contents of its ``messages``, or its
    ``prompt`` and ``answer``; of a folder all such files in order."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".txt", ".md", ".jsonl"))
        if not files:
            raise BadRequestError(f"{path}: holds no .txt, .md or .jsonl file")
        for file in files:
            yield from read_texts(file)
        return
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    if path.suffix != ".jsonl":
        yield path.read_text(errors="replace")
        return
    with path.open(errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _text_of(line, f"{path}:{number}")


def _text_of(line: str, where: str) -> str:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise BadRequestError(f"{where}: not valid JSON ({error})") from None
    text = text_of_row(row)
    if text is None:
        raise BadRequestError(f"{where}: has no text, messages or prompt")
    return text


def text_of_row(row: Any) -> str | None:
    """What a row of any of our data sets says; None for something else."""
    if isinstance(row, dict):
        if isinstance(row.get("text"), str):
            return row["text"]
        if isinstance(messages := row.get("messages"), list):
            return "\n".join(str(message.get("content", "")) for message in messages if isinstance(message, dict))
        if "prompt" in row:
            return f"{row['prompt']}\n{row.get('answer', row.get('chosen', ''))}"
    return None
