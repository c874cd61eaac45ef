"""A watermark in what is written (Kirchenbauer et al., arXiv 2301.10226): likelier words from a list that changes.

The token before says, through a key, which part of the vocabulary is *green* at this place; green logits get a small
bias. A text is as good as before, and has more green tokens than chance would give it: who knows the key counts them,
and `detect` says how surprising that is.

Lists are those of transformers' ``WatermarkLogitsProcessor`` ("lefthash", one token of context) on a CPU, bit for bit;
ours are made on the CPU whatever the model runs on, so that a text from a GPU is recognised anywhere. The bias is added
to the logits before the temperature divides them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from wootz.core import BadRequestError
from wootz.engine.protocol import Watermark


@lru_cache(maxsize=256)
def green_tokens(vocab_size: int, previous: int, watermark: Watermark) -> Tensor:
    """The ids that are green behind the token ``previous``; not to be changed."""
    generator = torch.Generator().manual_seed(watermark.hashing_key * previous % (2**64 - 1))
    return torch.randperm(vocab_size, generator=generator)[: int(vocab_size * watermark.greenlist_ratio)]


def add_bias(logits_V: Tensor, previous: int, watermark: Watermark) -> None:
    """To the green logits, in place."""
    logits_V[green_tokens(len(logits_V), previous, watermark).to(logits_V.device)] += watermark.bias


@dataclass(frozen=True)
class Detection:
    """``z_score`` is how many standard deviations more green tokens there are than by chance; ``p_value`` how often
    chance would do as well. A z-score above 4 is a false alarm once in 30,000 texts."""

    num_tokens: int
    num_green: int
    z_score: float
    p_value: float


def detect(
    token_ids: Sequence[int], vocab_size: int, watermark: Watermark, *, ignore_repeated: bool = False
) -> Detection:
    """How watermarked a text is. Best given without its prompt; needs the tokens as they were generated.

    With ``ignore_repeated``, a pair of tokens counts once, however often it comes: a text that says the same again is
    no new evidence. Raises `BadRequestError` for fewer than two tokens.
    """
    if len(token_ids) < 2:
        raise BadRequestError("a watermark shows from the second token on; give a longer text")
    pairs = list(pairwise(token_ids))
    if ignore_repeated:
        pairs = list(dict.fromkeys(pairs))
    num_green = sum(bool((green_tokens(vocab_size, previous, watermark) == token).any()) for previous, token in pairs)
    ratio, number = watermark.greenlist_ratio, len(pairs)
    z_score = (num_green - ratio * number) / math.sqrt(number * ratio * (1 - ratio))
    return Detection(number, num_green, z_score, 0.5 * math.erfc(z_score / math.sqrt(2)))
