"""From the vectors of a text's tokens to one vector for the text.

What a model was trained with stands in its folder, in the files of sentence-transformers: ``modules.json``,
``1_Pooling/config.json``, ``sentence_bert_config.json``. `read_pooling` puts what they say into the words of
`PoolingConfig`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.models.blocks.sizes import check_sizes

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda hidden_TD: hidden_TD.mean(0),
    "cls": lambda hidden_TD: hidden_TD[0],
    "last": lambda hidden_TD: hidden_TD[-1],
    "max": lambda hidden_TD: hidden_TD.amax(0),
}
"""Of one text's tokens ``(T, D)``: their mean, the first ([CLS]), the last (decoders), the largest of each number."""


@dataclass(frozen=True, kw_only=True)
class PoolingConfig:
    mode: str = "mean"
    """One of `POOLINGS`, or "pooler": the first token, through the dense layer and tanh that BERT was trained with."""
    normalize: bool = False
    """To length 1, so that a dot product is the cosine."""
    max_length: int | None = None
    """The longest text in tokens, [CLS] and [SEP] included, if the model was trained for less than it can hold."""

    def __post_init__(self) -> None:
        if self.mode not in (*POOLINGS, "pooler"):
            raise ValueError(f'pooling "{self.mode}" is not supported ({", ".join(POOLINGS)} and pooler are)')
        if self.max_length is not None:
            check_sizes(self, "max_length")


def pool(hidden_TD: Tensor, lengths: Sequence[int], mode: str) -> Tensor:
    """One vector per text, ``(N, D)`` in float32 at least, from those of a flat run."""
    hidden_TD = hidden_TD.to(torch.promote_types(hidden_TD.dtype, torch.float32))
    return torch.stack([POOLINGS[mode](text_TD) for text_TD in hidden_TD.split(list(lengths))])


def shorten(embeddings_ND: Tensor, dimensions: int) -> Tensor:
    """The first numbers of each vector, at length 1 again: of a model that was trained for it (Matryoshka
    representation learning, arXiv 2205.13147), a smaller embedding of the same text."""
    if not 0 < dimensions <= embeddings_ND.shape[-1]:
        raise ValueError(f"dimensions must be between 1 and {embeddings_ND.shape[-1]}, not {dimensions}")
    return F.normalize(embeddings_ND[..., :dimensions], dim=-1)


def read_pooling(folder: Path) -> dict[str, Any] | None:
    """What the files of sentence-transformers in a model folder say, as arguments of `PoolingConfig`; None without.

    Raises ValueError for a pipeline that does more than pool and normalise.
    """
    if not (folder / "modules.json").is_file():
        return None
    pooling: dict[str, Any] = {}
    for module in json.loads((folder / "modules.json").read_bytes()):
        match module["type"].rpartition(".")[2]:
            case "Transformer":
                settings = folder / module["path"] / "sentence_bert_config.json"
                if settings.is_file() and (longest := json.loads(settings.read_bytes()).get("max_seq_length")):
                    pooling["max_length"] = longest
            case "Pooling":
                settings = folder / module["path"] / "config.json"
                if not settings.is_file():
                    raise ValueError(f"modules.json: {module['path']}/config.json is missing")
                pooling["mode"] = _mode(json.loads(settings.read_bytes()))
            case "Normalize":
                pooling["normalize"] = True
            case kind:
                raise ValueError(f'modules.json: a "{kind}" after the model is not supported')
    return pooling


def _mode(settings: dict[str, Any]) -> str:
    """Since version 6 it is one word; before, a switch for each mode."""
    words = settings.get("pooling_mode") or [
        name.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for name, is_on in settings.items()
        if name.startswith("pooling_mode_") and is_on is True
    ]
    words = [words] if isinstance(words, str) else words
    if len(words) != 1:
        raise ValueError(f"pooling by {' and '.join(words) or 'nothing'} is not supported")
    return {"lasttoken": "last"}.get(words[0], words[0])
