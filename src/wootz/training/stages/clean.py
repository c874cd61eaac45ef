"""The stage that decides what is learned: documents in, those worth keeping out, and some held out for good.

Held out is by the document's own hash, so it is the same documents however the text is ordered, and a document that
occurs twice is never on both sides.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wootz.core.errors import ConfigError
from wootz.core.progress import SILENT, Progress
from wootz.training.recipe import Recipe
from wootz.training.runs import RunFolder
from wootz.training.stages.text import documents

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"


def clean(recipe: Recipe, run: RunFolder, cache: Path, progress: Progress = SILENT) -> dict[str, Any]:
    folder = run.path / "text"
    folder.mkdir(exist_ok=True)
    seen: set[bytes] = set()
    counts: Counter[str] = Counter()
    with (folder / TRAIN).open("w") as train, (folder / HELD_OUT).open("w") as held_out:
        for text in documents(recipe.data, cache, progress):
            counts["documents"] += 1
            text = unicodedata.normalize("NFC", text).strip()
            key = hashlib.sha256(" ".join(text.lower().split()).encode()).digest()
            if len(text) < recipe.clean.min_chars:
                counts["too short"] += 1
            elif key in seen:
                counts["duplicates"] += 1
            else:
                seen.add(key)
                side = held_out if int.from_bytes(key[:8]) / 2**64 < recipe.clean.held_out else train
                counts["held out" if side is held_out else "kept"] += 1
                counts["bytes"] += len(text.encode())
                side.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    if not counts["kept"] or not counts["held out"]:
        raise ConfigError(
            f"the text has {counts['documents']} documents: too few to train on some and hold others out",
            hint="give more text, or one document per line in a .jsonl file",
        )
    return dict(counts)


def read_texts(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]
