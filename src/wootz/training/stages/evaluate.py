"""How good it became: bits per byte on documents that were held out, beside what counting can do, and what it writes.

Bits per byte compare models of any vocabulary: all nats of a text, its end included, over its length in bytes.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.core.progress import SILENT, Progress
from wootz.data.token_store import TokenStore
from wootz.models import Decoder, PackedContext, load
from wootz.tokenization import Tokenizer, load_tokenizer
from wootz.training.recipe import Recipe
from wootz.training.runs import RunFolder
from wootz.training.stages.baselines import NGrams
from wootz.training.trainer import evaluation


def evaluate_model(recipe: Recipe, run: RunFolder, progress: Progress = SILENT) -> dict[str, Any]:
    held_out = TokenStore.open(run.path / "tokens" / "held_out")
    num_bytes = (run.finished("tokenize") or {})["held_out_bytes"]
    model, tokenizer = load(run.model), load_tokenizer(run.model)
    assert isinstance(model, Decoder)
    report: dict[str, Any] = {"bits_per_byte": bits_per_byte(model, held_out, num_bytes, progress=progress)}
    tokens_N = TokenStore.open(run.path / "tokens" / "train")
    train_N, held_out_N = (store.span(0, store.num_tokens) for store in (tokens_N, held_out))
    starts = np.cumsum([0, *(len(held_out.document(n)) for n in range(held_out.num_documents - 1))])
    for name, order in (("unigram", 1), ("five_gram", 5)):
        nats = NGrams(train_N, held_out.vocab_size, order).nats(held_out_N)
        nats[starts] = 0.0  # the mark before a document's first word is given, here as there
        report[f"{name}_bits_per_byte"] = float(nats.sum()) / num_bytes / math.log(2)
    report["samples"] = [
        {"prompt": prompt, "text": sample(model, tokenizer, prompt, seed=recipe.seed)}
        for prompt in recipe.pretrain.prompts
    ]
    (run.path / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def bits_per_byte(
    model: Decoder,
    store: TokenStore,
    num_bytes: int,
    *,
    most_documents: int | None = None,
    progress: Progress = SILENT,
) -> float:
    """Of all documents, or of the first ``most_documents`` (then of their share of the bytes, by tokens)."""
    count = min(most_documents or store.num_documents, store.num_documents)
    nats, num_tokens = 0.0, 0
    progress.set_total(count)
    with evaluation(model), torch.inference_mode():
        for number in range(count):
            tokens_N = torch.from_numpy(store.document(number).astype(np.int64)).to(model.device)
            nats += document_nats(model, tokens_N)
            num_tokens += len(tokens_N)
            progress.advance()
    return nats / (num_bytes * num_tokens / store.num_tokens) / math.log(2)


def document_nats(model: Decoder, tokens_N: Tensor) -> float:
    """Of all tokens but the first, each given those before it, in windows that overlap by half where it is longer than
    the model's context: what was read already is context, and not counted twice."""
    longest = model.config.max_position_embeddings
    nats, start, done = 0.0, 0, 1
    while done < len(tokens_N):
        part_N = tokens_N[start : start + longest + 1]
        inputs_T, labels_T = part_N[:-1], part_N[1:]
        hidden_TD = model(inputs_T, torch.arange(len(inputs_T), device=part_N.device), PackedContext([len(inputs_T)]))
        new = start + len(part_N) - done
        nats += F.cross_entropy(model.unembed(hidden_TD[-new:]), labels_T[-new:], reduction="sum").item()
        done, start = start + len(part_N), start + longest // 2
    return nats


@torch.inference_mode()
def sample(
    model: Decoder, tokenizer: Tokenizer, prompt: str, *, length: int = 80, temperature: float = 0.7, seed: int = 0
) -> str:
    """How the model goes on, by chance, read back from its start for every token: no engine, and slow, so short."""
    generator = torch.Generator().manual_seed(seed)
    ends = set(tokenizer.eos_token_ids)
    ids = [min(ends), *tokenizer.encode(prompt, add_special_tokens=False)]
    with evaluation(model):
        for _ in range(length):
            window = torch.tensor(ids[-model.config.max_position_embeddings :], device=model.device)
            positions_T = torch.arange(len(window), device=model.device)
            hidden_TD = model(window, positions_T, PackedContext([len(window)]))
            odds_V = (model.unembed(hidden_TD[-1:])[0].float().cpu() / temperature).softmax(-1)
            token = int(torch.multinomial(odds_V, 1, generator=generator))
            if token in ends:
                break
            ids.append(token)
    return tokenizer.decode(ids[1:])
