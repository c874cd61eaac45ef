"""How large a vocabulary should be: what more tokens save in length, and what they cost in the model.

The merges of a byte-level BPE are the first merges of any larger one from the same text, so one training gives every
smaller vocabulary exactly (`first_merges`). Models with different vocabularies are compared in bits per
byte (`bits_per_byte`): loss per token falls by making tokens smaller, which proves nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import tokenizers

from wootz.core.errors import BadRequestError
from wootz.tokenization.fertility import measure
from wootz.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class VocabularyPoint:
    vocab_size: int
    num_tokens: int
    """Of the texts that were measured."""
    bytes_per_token: float
    embedding_parameters: int
    """Both matrices if the output head has its own."""
    head_flops: int
    """Of the logits of all these tokens: 2 V D each, once per token and not per layer."""
    layer_flops: int
    """Of the layers for all these tokens, 2 for each of their parameters; what a shorter text saves."""

    @property
    def flops(self) -> int:
        return self.head_flops + self.layer_flops


def study(
    tokenizer: Tokenizer, texts: Iterable[str], sizes: Sequence[int], *, width: int, layer_parameters: int, tied: bool
) -> list[VocabularyPoint]:
    """``texts`` with the first ``sizes`` tokens of a byte-level BPE, for a model of ``width`` channels whose layers
    have ``layer_parameters``. Texts that the tokenizer was not trained on show what they will really take."""
    texts = list(texts)
    points = []
    for size in sizes:
        small = Tokenizer(
            first_merges(tokenizer.to_json(), size), bos_token_id=None, eos_token_ids=(), chat_template=None
        )
        seen = measure(small, texts)
        points.append(
            VocabularyPoint(
                vocab_size=size,
                num_tokens=seen.num_tokens,
                bytes_per_token=seen.bytes_per_token,
                embedding_parameters=size * width * (1 if tied else 2),
                head_flops=2 * size * width * seen.num_tokens,
                layer_flops=2 * layer_parameters * seen.num_tokens,
            )
        )
    return points


def first_merges(tokenizer_json: str, vocab_size: int) -> tokenizers.Tokenizer:
    """The byte-level BPE with ``vocab_size`` tokens that the same training would have given: the added tokens and the
    alphabet, then the first merges. Ids are numbered anew. Raises `BadRequestError` if there are not so many."""
    state = json.loads(tokenizer_json)
    model = state["model"]
    if model["type"] != "BPE":
        raise BadRequestError(f"a {model['type']} vocabulary is not a list of merges")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    made = {"".join(pair) for pair in merges}
    added = [token["content"] for token in state["added_tokens"]]
    by_id = sorted(model["vocab"], key=model["vocab"].__getitem__)
    base = list(dict.fromkeys([*added, *(text for text in by_id if text not in made)]))
    if not len(base) <= vocab_size <= len(base) + len(merges):
        raise BadRequestError(f"{vocab_size} tokens: there are from {len(base)} to {len(base) + len(merges)}")
    kept: list[list[str]] = []
    vocabulary = dict.fromkeys(base)
    for pair in merges:  # two merges may make the same token
        vocabulary["".join(pair)] = None
        if len(vocabulary) > vocab_size:
            vocabulary.popitem()
            break
        kept.append(pair)
    model["vocab"], model["merges"] = {text: id for id, text in enumerate(vocabulary)}, kept
    for token in state["added_tokens"]:
        token["id"] = model["vocab"][token["content"]]
    state["post_processor"] = None  # it would add tokens by their former ids
    return tokenizers.Tokenizer.from_str(json.dumps(state))


def bits_per_byte(total_loss: float, num_bytes: int) -> float:
    """``total_loss``: the sum, not the mean, of the negative log-likelihoods in nats of all tokens of the text."""
    return total_loss / (math.log(2) * num_bytes)


def fit_power_law(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """``(coefficient, exponent)`` of ``y = coefficient * x ** exponent``, by least squares of the logarithms: how the
    best vocabulary grows with the model (Tao et al. 2024, arXiv 2407.13623). Two points give the curve through them."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    if not spread:
        raise BadRequestError("a power law needs points at two sizes at least")
    exponent = sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread
    return math.exp(mean_y - exponent * mean_x), exponent
