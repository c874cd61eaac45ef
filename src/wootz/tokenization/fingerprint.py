"""A model knows its tokenizer: a fingerprint in ``config.json``, compared when the model is loaded.

Ids mean nothing without the tokenizer they were learned with, and with another one a model runs and talks nonsense.
So training writes what it used under ``tokenizer_fingerprint`` (other libraries ignore the key), and whoever serves
the folder compares. A folder without it is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from wootz.core.errors import ModelFileError
from wootz.tokenization.tokenizer import Tokenizer

KEY = "tokenizer_fingerprint"


def fingerprint(tokenizer: Tokenizer) -> dict[str, str]:
    """One hash for each part that gives ids their meaning: ``vocabulary`` (the bytes of every id), ``merges`` (or
    scores), ``splitting`` (normalizer and word cut), ``special_tokens``, ``chat_template``. Equal for equal tokenizers;
    of a GGUF file and a folder, vocabulary and merges can be compared, the description of the splitting can't."""
    state = json.loads(tokenizer.to_json())
    model = state["model"]
    spelled = b"".join(
        len(data := tokenizer.token_bytes(id)).to_bytes(4, "little") + data for id in range(tokenizer.vocab_size)
    )
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", [])]
    scores = model["vocab"] if isinstance(model["vocab"], list) else []
    template = tokenizer.chat_template
    parts: dict[str, Any] = {
        "vocabulary": spelled.hex(),
        "merges": [model["type"], merges, scores],
        "splitting": [state["normalizer"], state["pre_tokenizer"]],
        "special_tokens": [tokenizer.bos_token_id, sorted(tokenizer.special_ids)],
        "chat_template": template.source if template else None,
    }
    return {name: hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16] for name, part in parts.items()}


def write_fingerprint(folder: Path, tokenizer: Tokenizer) -> None:
    """Say in the model's ``config.json`` that it belongs to ``tokenizer``."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config[KEY] = fingerprint(tokenizer)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, file)


def check_fingerprint(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises `ModelFileError`, naming what differs, when the model in ``folder`` was made with another tokenizer."""
    file = folder / "config.json"
    stored = json.loads(file.read_text(encoding="utf-8")).get(KEY) if file.is_file() else None
    if not isinstance(stored, dict):
        return
    differs = [part for part, value in fingerprint(tokenizer).items() if stored.get(part, value) != value]
    if differs:
        raise ModelFileError(
            f"{folder}: this is not the tokenizer that the model was made with ({', '.join(differs)} differ)",
            hint=f'bring the right one back, or remove "{KEY}" from config.json if the change is meant',
        )
