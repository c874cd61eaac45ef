"""From text to token ids on disk: a vocabulary of the text's own, unless one is given, and a store for each source."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from wootz.core.progress import SILENT, Progress
from wootz.data import tokens
from wootz.data.shards import read_all, shard_files
from wootz.training.recipe import Recipe
from wootz.training.runs import RunFolder


def tokenize(recipe: Recipe, run: RunFolder, progress: Progress = SILENT) -> dict[str, Any]:
    given = recipe.tokenizer.path or recipe.pretrain.start_from
    wanted = tokens.Tokens(
        tokenizer=None if given is None else str(given),
        vocab_size=recipe.tokenizer.vocab_size if given is None else None,
    )
    tokenizer = tokens.tokenizer_for(run.data, wanted)
    if given is not None:
        run.tokenizer.mkdir(exist_ok=True)
        for file in Path(given).glob("*token*.json*"):
            shutil.copy(file, run.tokenizer)
    parts = {"held_out": tokens.PARTS["held_out"]} if recipe.tokenizer.on_the_fly else tokens.PARTS
    made = tokens.tokenize(run.data, tokenizer, progress, parts=parts)
    held_out_bytes = dict.fromkeys(tokens.open_stores(run.data / "held_out_tokens"), 0)
    for document in read_all(shard_files(run.data / "held_out")):
        held_out_bytes[document.source] += len(document.text.encode())
    return {
        "vocab_size": tokenizer.vocab_size,
        "tokens": sum(made.tokens.values()),
        "documents": sum(made.documents.values()),
        "bytes_per_token": made.bytes_per_token,
        "held_out_bytes": held_out_bytes,
        **made.throughput.rates(),
    }
