"""Fill in the middle: documents rearranged so that a left-to-right model learns to complete between two texts.

Bavarian et al. 2022 (arXiv 2207.14255). A document is cut at two random characters. PSM writes prefix, suffix, middle;
SPM writes the suffix first, so that the prefix goes straight on into the middle. Their joint form of SPM is used:
``<prefix><suffix> suffix <middle> prefix middle``, in which the model sees both orders under the same tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from wootz.core.errors import UnsupportedError
from wootz.tokenization.tokenizer import Tokenizer

_SPELLINGS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen Coder, cl100k
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek Coder: prefix, suffix, middle
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)


@dataclass(frozen=True)
class FimTokens:
    prefix: int
    suffix: int
    middle: int


def fim_tokens(tokenizer: Tokenizer) -> FimTokens:
    """Raises `UnsupportedError` for a vocabulary without them (they can be made of reserved tokens)."""
    for spelling in _SPELLINGS:
        ids = [tokenizer.token_to_id(text) for text in spelling]
        if None not in ids:
            return FimTokens(*(id for id in ids if id is not None))
    raise UnsupportedError(
        "this vocabulary has no tokens to fill in the middle with", hint="rename three reserved ones"
    )


class FimTransform:
    """Encodes documents for training; ``rate`` of them for filling in, and ``spm_rate`` of those suffix first.

    The rate costs next to nothing in ordinary prediction up to 0.9 (their figure 1). Control tokens spelled out in a
    document are text. What comes between documents (EOS) is the packing's.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens: FimTokens,
        *,
        rng: random.Random,
        rate: float = 0.5,
        spm_rate: float = 0.5,
    ) -> None:
        self.tokenizer, self.tokens = tokenizer, tokens
        self.rng, self.rate, self.spm_rate = rng, rate, spm_rate

    def __call__(self, document: str) -> list[int]:
        if self.rng.random() >= self.rate:
            return self._encode(document)
        begin, end = sorted(self.rng.randint(0, len(document)) for _ in range(2))
        prefix, middle, suffix = document[:begin], document[begin:end], document[end:]
        mark = self.tokens
        if self.rng.random() < self.spm_rate:
            after = [mark.prefix, mark.suffix, *self._encode(suffix), mark.middle]
            return after + self._encode(prefix) + self._encode(middle)
        before = [mark.prefix, *self._encode(prefix), mark.suffix, *self._encode(suffix), mark.middle]
        return before + self._encode(middle)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, control="text")
