"""From text to token ids on disk: a vocabulary of the text's own, and every document between two ends of text."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

from wootz.core.progress import SILENT, Progress
from wootz.data.token_store import TokenStore, TokenStoreWriter
from wootz.data.tokens import END_OF_TEXT, encode, end_of_text
from wootz.tokenization import Tokenizer, load_tokenizer
from wootz.tokenization.fingerprint import fingerprint
from wootz.tokenization.train import train_tokenizer, write_tokenizer
from wootz.training.recipe import Recipe
from wootz.training.runs import RunFolder
from wootz.training.stages.clean import HELD_OUT, TRAIN, read_texts

CONTINUE = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""The chat template of a base model, which has never seen a chat: whatever is said is text to go on with."""


def tokenize(recipe: Recipe, run: RunFolder, progress: Progress = SILENT) -> dict[str, Any]:
    text, folder = run.path / "text", run.path / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    given = recipe.tokenizer.path or recipe.pretrain.start_from
    if given is None:
        made = train_tokenizer(
            read_texts(text / TRAIN), vocab_size=recipe.tokenizer.vocab_size, special_tokens=[END_OF_TEXT]
        )
        write_tokenizer(made, folder, roles={"eos_token": END_OF_TEXT}, chat_template=CONTINUE)
    else:
        folder.mkdir()
        for file in Path(given).glob("*token*.json*"):
            shutil.copy(file, folder)
    tokenizer = load_tokenizer(folder)
    report: dict[str, Any] = {"vocab_size": tokenizer.vocab_size}
    for name, source in (("train", TRAIN), ("held_out", HELD_OUT)):
        shutil.rmtree(run.path / "tokens" / name, ignore_errors=True)
        num_bytes = _write(tokenizer, text / source, run.path / "tokens" / name, progress)
        store = TokenStore.open(run.path / "tokens" / name)
        report |= {f"{name}_tokens": store.num_tokens, f"{name}_documents": store.num_documents}
        report[f"{name}_bytes"] = num_bytes
    report["bytes_per_token"] = report["train_bytes"] / report["train_tokens"]
    return report


def _write(tokenizer: Tokenizer, source: Path, folder: Path, progress: Progress) -> int:
    """Returns how many bytes of text were written. Each document begins and ends with the end of text, so that its
    first word is learned as what follows one, and its end as something to be said."""
    end, num_bytes, texts = end_of_text(tokenizer), 0, read_texts(source)
    with TokenStoreWriter(folder, vocab_size=tokenizer.vocab_size, tokenizer=fingerprint(tokenizer)) as writer:
        while some := list(islice(texts, 1000)):
            num_bytes += sum(len(text.encode()) for text in some)
            for ids in encode(tokenizer, some):
                writer.add([end, *ids])
            progress.advance(len(some))
    return num_bytes
