"""`load_tokenizer`: from a model folder in Hugging Face layout, tiktoken's ranks, or the vocabulary inside a GGUF file.

A folder is read as it is: ``tokenizer.json`` is the `tokenizers` library's own format. The rest tells the roles of
tokens (``tokenizer_config.json``, ``special_tokens_map.json``), which of them end an answer (those and
``generation_config.json``, ``config.json``), and the chat template.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from wootz.core.errors import ModelFileError, NotFoundError
from wootz.tokenization.chat_template import ChatTemplate
from wootz.tokenization.gguf_vocabulary import load_gguf_tokenizer
from wootz.tokenization.ranks import ENCODINGS, Encoding, byte_level_tokenizer, read_tiktoken
from wootz.tokenization.tokenizer import Tokenizer


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of a model folder, or of a ``tokenizer.json``, ``.tiktoken`` or ``.gguf`` file.

    Raises `NotFoundError` when there is none and `ModelFileError` when it cannot be used, each naming the file.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"{path}: no such model folder or GGUF file")
    if path.suffix == ".tiktoken":
        return load_tiktoken(path)
    if path.name == "tokenizer.json":
        path = path.parent
    if not path.is_dir():
        return load_gguf_tokenizer(path)
    try:
        return _load_folder(path)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error.message}") from None


def load_tiktoken(path: Path | str, encoding: Encoding | None = None) -> Tokenizer:
    """The tokenizer of a file of ranks. ``encoding`` says what such a file leaves out; without it, the file's name
    (``cl100k_base.tiktoken``) must be one of `ENCODINGS`.

    Raises `NotFoundError` or `ModelFileError`, naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    encoding = encoding or ENCODINGS.get(path.stem)
    if encoding is None:
        raise ModelFileError(
            f'{path}: the file does not say how "{path.stem}" cuts words (known by name: {", ".join(ENCODINGS)})',
            hint="load_tiktoken(path, Encoding(...)) says so",
        )
    ranks = read_tiktoken(path)
    taken = {text for text, id in encoding.special_tokens.items() if id in ranks.values()}
    if taken:
        raise ModelFileError(f"{path}: the id of {min(taken)} is taken by another token")
    backend = byte_level_tokenizer(
        ranks, pattern=encoding.pattern, special_tokens=encoding.special_tokens, nfc=encoding.nfc
    )
    eos = backend.token_to_id(encoding.eos_token)
    return Tokenizer(backend, bos_token_id=None, eos_token_ids=[] if eos is None else [eos], chat_template=None)


def _load_folder(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise NotFoundError(f"{folder}: holds no tokenizer.json")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception for whatever is wrong in the file
        raise ModelFileError(f"tokenizer.json can't be used ({error})") from None
    backend.no_truncation()
    backend.no_padding()

    config = _read_json(folder / "tokenizer_config.json")
    named = _token_roles(_read_json(folder / "special_tokens_map.json")) | _token_roles(config)
    ids = {role: backend.token_to_id(text) for role, text in named.items()}
    ends = [ids.get("eos_token")]
    for settings in ("generation_config.json", "config.json"):
        eos = _read_json(folder / settings).get("eos_token_id")
        ends += eos if isinstance(eos, list) else [eos]

    template_file = folder / "chat_template.jinja"
    template = _read_text(template_file) if template_file.is_file() else _default(config.get("chat_template"))
    return Tokenizer(
        backend,
        bos_token_id=ids.get("bos_token"),
        eos_token_ids=(id for id in ends if id is not None),
        chat_template=ChatTemplate(template, special_tokens=named) if template else None,
    )


def _token_roles(config: dict[str, Any]) -> dict[str, str]:
    """``bos_token`` and the like; a token is named by its text, or by an object that holds the text."""
    tokens = {role: config[role] for role in config if role.endswith("_token")}
    texts = {role: token.get("content") if isinstance(token, dict) else token for role, token in tokens.items()}
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def _default(templates: Any) -> str | None:
    """A model may name several templates; "default" is the one for chat."""
    if isinstance(templates, list):
        return {entry["name"]: entry["template"] for entry in templates}.get("default")
    return templates


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(_read_text(file))
    except ValueError as error:
        raise ModelFileError(f"{file.name} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{file.name} is not a JSON object")
    return content


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ModelFileError(f"{file.name} is not text") from None
    except OSError as error:
        raise ModelFileError(f"{file.name} can't be read ({error.strerror})") from None
