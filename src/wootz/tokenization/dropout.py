"""BPE-dropout (arXiv 1910.13267): while a model is trained, each merge is left out now and then.

So the model sees a word spelled in many ways, learns what its pieces mean, and minds typing errors less. It is a way to
make training text, not to serve: the same text has other ids each time. By the `tokenizers` library, whose draws cannot
be seeded; `wootz.tokenization.reference.bpe` has the same in a page, with a seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers.models import BPE

from wootz.core.errors import BadRequestError
from wootz.tokenization.tokenizer import Tokenizer


class DropoutEncoder:
    """Encodes as ``tokenizer`` does, but skips each possible merge with ``probability``, at each step. At 0 that is
    plain BPE, at 1 the smallest symbols are left; the paper takes 0.1.

    Raises `BadRequestError` for a vocabulary that has no merges, or no probability.
    """

    def __init__(self, tokenizer: Tokenizer, probability: float = 0.1) -> None:
        if not 0 <= probability <= 1:
            raise BadRequestError(f"dropout must be a probability, not {probability}")
        backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
        if not isinstance(backend.model, BPE):
            raise BadRequestError(f"dropout skips merges, and a {type(backend.model).__name__} vocabulary has none")
        backend.model.dropout = probability or None
        backend.model.ignore_merges = backend.model.ignore_merges and not probability
        self._backend = backend
        self._frame = tokenizer._frame  # taken from plain encoding: drawn anew, it would not be found

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        before, after = self._frame if add_special_tokens else ([], [])
        drawn = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[*before, *encoding.ids, *after] for encoding in drawn]
