"""How good it became: bits per byte on documents that were held out, beside what counting can do, and what it writes.

Bits per byte compare models of any vocabulary: all nats of a text, its end included, over its length in bytes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wootz.core.progress import SILENT, Progress
from wootz.data.shards import read_all, shard_files
from wootz.data.token_store import TokenStore
from wootz.data.tokens import encode, open_stores
from wootz.models import Decoder, PackedContext, load
from wootz.tokenization import Tokenizer, load_tokenizer
from wootz.training.recipe import Recipe
from wootz.training.runs import RunFolder
from wootz.training.stages.baselines import NGrams
from wootz.training.stages.benchmarks import benchmarks_of, run_benchmarks
from wootz.training.trainer import evaluation


@dataclass(frozen=True)
class HeldOut:
    """Documents that were kept apart, as tokens, by source; and how many bytes of text each source's are."""

    stores: dict[str, TokenStore]
    num_bytes: dict[str, int]

    @staticmethod
    def of(run: RunFolder) -> HeldOut:
        tokenized = run.finished("tokenize")
        assert tokenized is not None
        return HeldOut(open_stores(run.data / "held_out_tokens"), tokenized["held_out_bytes"])

    def overall(self, bits: dict[str, float]) -> float:
        """Bits per byte of all sources together."""
        return sum(bits[name] * size for name, size in self.num_bytes.items()) / sum(self.num_bytes.values())

    @property
    def tokens_N(self) -> NDArray[np.int64]:
        return np.concatenate([store.span(0, store.num_tokens) for store in self.stores.values()])

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where documents begin in ``tokens_N``."""
        lengths = [len(store.document(n)) for store in self.stores.values() for n in range(store.num_documents)]
        return np.cumsum([0, *lengths[:-1]])


def evaluate_model(recipe: Recipe, run: RunFolder, progress: Progress = SILENT) -> dict[str, Any]:
    held_out = HeldOut.of(run)
    tokenizer = load_tokenizer(run.model)
    model = _decoder(run.model)
    num_bytes = sum(held_out.num_bytes.values())
    bits = bits_per_byte(model, held_out, progress=progress)
    report: dict[str, Any] = {"bits_per_byte": held_out.overall(bits), "sources": bits}
    if (before := recipe.pretrain.start_from) is not None:  # what of its text did it forget?
        bits = bits_per_byte(_decoder(before), held_out, progress=progress)
        report["before"] = {"bits_per_byte": held_out.overall(bits), "sources": bits}
    report["benchmarks"] = run_benchmarks(model, tokenizer, benchmarks_of(recipe))
    train_N = _trained_on(recipe, run, tokenizer)
    held_out_N, starts = held_out.tokens_N, held_out.starts
    for name, order in (("unigram", 1), ("five_gram", 5)):
        nats = NGrams(train_N, tokenizer.vocab_size, order).nats(held_out_N)
        nats[starts] = 0.0  # the mark before a document's first word is given, here as there
        report[f"{name}_bits_per_byte"] = float(nats.sum()) / num_bytes / math.log(2)
    report["samples"] = [
        {"prompt": prompt, "text": sample(model, tokenizer, prompt, seed=recipe.seed)}
        for prompt in recipe.pretrain.prompts
    ]
    (run.path / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def _trained_on(recipe: Recipe, run: RunFolder, tokenizer: Tokenizer) -> NDArray[np.int64]:
    if not recipe.tokenizer.on_the_fly:
        stores = open_stores(run.data / "tokens").values()
        return np.concatenate([store.span(0, store.num_tokens) for store in stores])
    texts = (document.text for document in read_all(shard_files(run.data / "documents")))
    encoded: list[NDArray[np.int64]] = []
    while batch := [*islice(texts, 512)]:
        encoded += [np.asarray(ids, np.int64) for ids in encode(tokenizer, batch)]
    return np.concatenate(encoded)


def _decoder(folder: Path) -> Decoder:
    model = load(folder)
    assert isinstance(model, Decoder)
    return model


def bits_per_byte(
    model: Decoder,
    held_out: HeldOut,
    *,
    most_documents: int | None = None,
    multiple: int = 1,
    progress: Progress = SILENT,
) -> dict[str, float]:
    """By source: of all documents, or of the first ``most_documents`` (then of their share of the bytes, by tokens)."""
    counts = {name: min(most_documents or 2**63, store.num_documents) for name, store in held_out.stores.items()}
    progress.set_total(sum(counts.values()))
    found: dict[str, float] = {}
    with evaluation(model), torch.inference_mode():
        for name, store in held_out.stores.items():
            nats, num_tokens = 0.0, 0
            for number in range(counts[name]):
                tokens_N = torch.from_numpy(store.document(number).astype(np.int64)).to(model.device)
                nats += document_nats(model, tokens_N, multiple)
                num_tokens += len(tokens_N)
                progress.advance()
            found[name] = nats / (held_out.num_bytes[name] * num_tokens / store.num_tokens) / math.log(2)
    return found


def states(model: Decoder, tokens_T: Tensor, multiple: int = 1) -> Tensor:
    """``(T, D)`` of one document, padded behind, where no token looks, to a length that sequence parallelism can share
    out."""
    padded_T = F.pad(tokens_T, (0, -len(tokens_T) % multiple))
    positions_T = torch.arange(len(padded_T), device=tokens_T.device)
    return model(padded_T, positions_T, PackedContext([len(padded_T)]))[: len(tokens_T)]


def document_nats(model: Decoder, tokens_N: Tensor, multiple: int = 1) -> float:
    """Of all tokens but the first, each given those before it, in windows that overlap by half where it is longer than
    the model's context: what was read already is context, and not counted twice."""
    longest = model.config.max_position_embeddings
    nats, start, done = 0.0, 0, 1
    while done < len(tokens_N):
        part_N = tokens_N[start : start + longest + 1]
        inputs_T, labels_T = part_N[:-1], part_N[1:]
        hidden_TD = states(model, inputs_T, multiple)
        new = start + len(part_N) - done
        nats += F.cross_entropy(model.unembed(hidden_TD[-new:]), labels_T[-new:], reduction="sum").item()
        done, start = start + len(part_N), start + longest // 2
    return nats


@torch.inference_mode()
def sample(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    length: int = 80,
    temperature: float = 0.7,
    seed: int = 0,
    multiple: int = 1,
) -> str:
    """How the model goes on, by chance, read back from its start for every token: no engine, and slow, so short."""
    generator = torch.Generator().manual_seed(seed)
    ends = set(tokenizer.eos_token_ids)
    ids = [min(ends), *tokenizer.encode(prompt, add_special_tokens=False)]
    with evaluation(model):
        for _ in range(length):
            window = torch.tensor(ids[-model.config.max_position_embeddings :], device=model.device)
            hidden_TD = states(model, window, multiple)
            odds_V = (model.unembed(hidden_TD[-1:])[0].float().cpu() / temperature).softmax(-1)
            token = int(torch.multinomial(odds_V, 1, generator=generator))
            if token in ends:
                break
            ids.append(token)
    return tokenizer.decode(ids[1:])
