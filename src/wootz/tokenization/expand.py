"""New tokens for a trained model: terms of a domain or a script that it spells in many pieces now.

The model's folder is copied; the tokenizer gets the tokens, and every matrix with a row for each token (embedding,
output head, its bias) gets rows for them. What the rows begin as decides how much is to be learned: random numbers are
noise in every prediction (the head's rows, too, compete in each softmax); the mean of all rows is harmless and says
nothing; the mean of the pieces that the term was spelled with until now knows what they mean (Hewitt 2021,
https://nlp.stanford.edu/~johnhew/vocab-expansion.html; Gee et al. 2022 for the pieces, arXiv 2402.09977).

Then train the new rows alone for some hundred steps (`Expansion.new_rows` is the mask), and only then everything.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tokenizers
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken

from wootz.core.errors import BadRequestError, ModelFileError
from wootz.tokenization.fingerprint import KEY, write_fingerprint
from wootz.tokenization.load import load_tokenizer
from wootz.tokenization.tokenizer import Tokenizer

RowInit = Literal["random", "mean", "subpiece-mean"]

OCCURRENCES_TO_LEARN = 100
"""How often a rare token should be seen to count as learned. A rule of thumb, used for the estimate of data only."""


@dataclass(frozen=True)
class Expansion:
    tokens: tuple[str, ...]
    """Those that are new: what was one token already is left out."""
    ids: tuple[int, ...]
    pieces: tuple[tuple[int, ...], ...]
    """How each was spelled before."""
    num_rows: int
    """Of the embedding, now."""

    def new_rows(self) -> torch.Tensor:
        """bool [V]: the rows to train in the first stage."""
        mask = torch.zeros(self.num_rows, dtype=torch.bool)
        mask[list(self.ids)] = True
        return mask


def expand_vocabulary(
    folder: Path,
    out: Path,
    terms: Iterable[str],
    *,
    init: RowInit = "subpiece-mean",
    seed: int = 0,
    pad_to_multiple_of: int = 1,
) -> Expansion:
    """Write the model of ``folder`` with ``terms`` as single tokens to the new folder ``out``.

    The tokens are matched in text wherever they occur; a term that mostly follows a space should be given with it
    (``" myocardial"``). Spare rows of a padded embedding are used before it grows. Raises `BadRequestError` when
    there is nothing to add or ``out`` exists, and `ModelFileError` when the embedding can't be found.
    """
    if out.exists() and any(out.iterdir()):
        raise BadRequestError(f"{out} exists and is not empty")
    before = load_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    spelled = {term: before.encode(term, add_special_tokens=False, control="text") for term in terms if term}
    pieces = {term: tuple(ids) for term, ids in spelled.items() if len(ids) > 1}
    if not pieces:
        raise BadRequestError("nothing to add: each of these terms is one token already")

    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([AddedToken(term, normalized=False, special=False) for term in pieces])
    id_of = backend.get_vocab(with_added_tokens=True)
    ids = [id_of[term] for term in pieces]
    old_rows: int = config["vocab_size"]
    num_rows = -(-max(old_rows, max(ids) + 1) // pad_to_multiple_of) * pad_to_multiple_of
    expansion = Expansion(tuple(pieces), tuple(ids), tuple(pieces.values()), num_rows)

    shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    generator = torch.Generator().manual_seed(seed)
    num_changed = 0
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            metadata = file.metadata()
        for name, weight in weights.items():
            if weight.shape[0] == old_rows and _has_row_per_token(name):
                weights[name] = expanded(weight, expansion, init=init, num_used=before.vocab_size, generator=generator)
                num_changed += 1
        save_file(weights, out / shard.name, metadata=metadata)
    if not num_changed:
        raise ModelFileError(f"{folder}: no matrix with {old_rows} rows, one for each token, was found")
    backend.save(str(out / "tokenizer.json"))
    config["vocab_size"] = num_rows
    had_fingerprint = config.pop(KEY, None) is not None
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if (index := out / "model.safetensors.index.json").is_file():
        _update_total_size(index, out)
    if had_fingerprint:
        write_fingerprint(out, load_tokenizer(out))
    return expansion


def expanded(
    weight: torch.Tensor, expansion: Expansion, *, init: RowInit, num_used: int, generator: torch.Generator
) -> torch.Tensor:
    """``weight`` [V_old, ...] with rows for the new tokens: [V_new, ...], same dtype, old rows bit for bit the same.

    ``num_used`` rows stood for tokens; the rest was padding and is no part of any mean.
    """
    rows = torch.zeros(expansion.num_rows, *weight.shape[1:], dtype=weight.dtype)
    rows[: len(weight)] = weight
    used = weight[:num_used].float()
    for id, pieces in zip(expansion.ids, expansion.pieces, strict=True):
        match init:
            case "random":
                noise = torch.randn(weight.shape[1:], generator=generator)
                rows[id] = (noise * used.std()).to(weight.dtype)
            case "mean":
                rows[id] = used.mean(0).to(weight.dtype)
            case "subpiece-mean":
                rows[id] = used[list(pieces)].mean(0).to(weight.dtype)
    return rows


_ROW_PER_TOKEN = (
    *("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embeddings", "lm_head", "embed_out"),
    *("embedding", "head"),  # the family `wootz`
)


def _has_row_per_token(name: str) -> bool:
    *_, module, kind = ("", *name.split("."))
    return module in _ROW_PER_TOKEN and kind in ("weight", "bias")


def _update_total_size(index: Path, folder: Path) -> None:
    content = json.loads(index.read_text(encoding="utf-8"))
    size = 0
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            size += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    content["metadata"] = {**content.get("metadata", {}), "total_size": size}
    index.write_text(json.dumps(content, indent=2), encoding="utf-8")


@dataclass(frozen=True)
class ExpansionReport:
    tokens_before: int
    tokens_after: int
    rarest: str
    rarest_count: int
    bytes_to_learn: int | None
    """Text like this that it takes until the rarest new token was seen `OCCURRENCES_TO_LEARN` times; None if it never
    occurs here."""


def report(before: Tokenizer, after: Tokenizer, expansion: Expansion, texts: Sequence[str]) -> ExpansionReport:
    """What the new tokens save on ``texts``, and how much text it takes to learn them."""
    counts = dict.fromkeys(expansion.ids, 0)
    tokens_before = tokens_after = num_bytes = 0
    for text in texts:
        tokens_before += len(before.encode(text, add_special_tokens=False))
        ids = after.encode(text, add_special_tokens=False)
        tokens_after += len(ids)
        num_bytes += len(text.encode())
        for id in ids:
            if id in counts:
                counts[id] += 1
    rarest = min(counts, key=lambda id: counts[id])
    needed = -(-num_bytes * OCCURRENCES_TO_LEARN // counts[rarest]) if counts[rarest] else None
    term = expansion.tokens[expansion.ids.index(rarest)]
    return ExpansionReport(tokens_before, tokens_after, term, counts[rarest], needed)
