"""What the tokenizer commands are given: a tokenizer by name or path, and texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import load

if TYPE_CHECKING:
    from wootz.tokenization import Tokenizer

Name = Annotated[str, typer.Argument(metavar="TOKENIZER", help="A model's name, a folder, or a file.")]
Names = Annotated[list[str], typer.Argument(metavar="TOKENIZER...", help="Names of models, folders, or files.")]
Texts = Annotated[
    list[Path] | None,
    typer.Option("--texts", help="A text file, or a folder of them; each file is a row. \\[default: human rights]"),
]


def load_named(ctx: typer.Context, name: str) -> Tokenizer:
    """The tokenizer that a user named: a path if there is one, else a model of the store."""
    from wootz.store import ModelStore
    from wootz.tokenization import load_tokenizer

    path = Path(name).expanduser()
    if not path.exists():
        path = ModelStore(load(ctx).config.models_dir).path_of(name)
    return load_tokenizer(path)


def texts_of(paths: list[Path] | None) -> dict[str, list[str]]:
    """Texts by the name of their file; those that come with Wootz if there are none."""
    if not paths:
        from wootz.tokenization.samples import sample_texts

        return sample_texts()
    return {file.stem: [read_text(file)] for file in files_in(paths)}


def files_in(paths: list[Path]) -> list[Path]:
    return [
        file
        for path in paths
        for file in (sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path])
    ]


def read_text(file: Path) -> str:
    from wootz.core import BadRequestError

    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise BadRequestError(f"{file} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadRequestError(f"{file} is not UTF-8 text") from None
