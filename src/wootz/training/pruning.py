"""Keep the part of a corpus that a small model finds informative: documents ranked by their loss (Marion et al., arXiv
2309.04564, who did best with the middle: the lowest is boilerplate, the highest noise)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from wootz.core.errors import ConfigError
from wootz.core.progress import SILENT, Progress
from wootz.data.token_store import TokenStore, TokenStoreWriter
from wootz.models import Decoder, PackedContext

Part = Literal["low", "middle", "high"]


@torch.inference_mode()
def document_losses(
    model: Decoder, store: TokenStore, *, most_tokens: int = 2048, progress: Progress = SILENT
) -> NDArray[np.float64]:
    """Mean loss ``(documents,)`` in nats per token, of each document's first ``most_tokens``; infinite for one of a
    single token, of which nothing can be asked."""
    losses = np.full(store.num_documents, np.inf)
    progress.set_total(store.num_documents)
    model.eval()
    for number in range(store.num_documents):
        tokens_T = torch.from_numpy(store.document(number)[: most_tokens + 1].astype(np.int64))
        if (length := len(tokens_T) - 1) > 0:
            hidden_TD = model(tokens_T[:-1], torch.arange(length), PackedContext([length]))
            losses[number] = F.cross_entropy(model.unembed(hidden_TD), tokens_T[1:]).item()
        progress.advance()
    return losses


def informative(losses: NDArray[np.float64], keep: float, part: Part = "middle") -> NDArray[np.int64]:
    """The documents, in their order, whose losses are the ``keep`` lowest, middle or highest."""
    if not 0 < keep <= 1:
        raise ConfigError(f"keep = {keep} is no share", hint="0.3 keeps three tenths")
    order = np.argsort(losses, kind="stable")
    size = max(1, round(keep * len(order)))
    first = {"low": 0, "middle": (len(order) - size) // 2, "high": len(order) - size}[part]
    return np.sort(order[first : first + size])


def prune(store: TokenStore, losses: NDArray[np.float64], out: Path, keep: float, part: Part = "middle") -> TokenStore:
    """A new store of the informative part."""
    about = {**store.index.about, "pruned": {"keep": keep, "part": part}}
    with TokenStoreWriter(out, vocab_size=store.vocab_size, tokenizer=store.index.tokenizer, about=about) as writer:
        for number in informative(losses, keep, part)[writer.num_documents :]:
            writer.add(store.document(int(number)))
    return TokenStore.open(out)
