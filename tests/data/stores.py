"""Small token stores for tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from wootz.data.token_store import TokenStore, TokenStoreWriter


def write_store(
    folder: Path, documents: Iterable[Sequence[int]], *, vocab_size: int = 256, tokens_per_shard: int = 50
) -> TokenStore:
    with TokenStoreWriter(folder, vocab_size=vocab_size, tokens_per_shard=tokens_per_shard) as writer:
        for document in documents:
            writer.add(document)
    return TokenStore.open(folder)


def random_documents(num: int, *, longest: int = 40, vocab_size: int = 256, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(vocab_size, size=random.integers(1, longest + 1)).tolist() for _ in range(num)]
