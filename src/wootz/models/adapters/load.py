"""From PEFT's folder to tensors laid out for one model: `load_adapter`.

A checkpoint keeps queries, keys and values apart where we have one `Linear`; `checkpoint_rows` says which of its rows
each of them is, and so how an adapter's matrices come together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wootz.core.errors import ModelFileError
from wootz.models.adapters.low_rank import LowRank, Piece
from wootz.models.adapters.peft_folder import LowRankPair, PeftFolder, read_peft
from wootz.models.context import PagedKV
from wootz.models.decoder import Decoder
from wootz.models.families import family_of
from wootz.models.linear import Linear
from wootz.models.names import checkpoint_rows


@dataclass(frozen=True)
class Lora:
    low_ranks: Mapping[Linear, LowRank]
    embedding: tuple[Tensor, Tensor] | None
    """A transposed and B, scaled."""

    num_virtual_tokens = 0

    @property
    def num_bytes(self) -> int:
        embedding = sum(part.nbytes for part in self.embedding or ())
        return embedding + sum(low_rank.num_bytes for low_rank in self.low_ranks.values())


@dataclass(frozen=True)
class Prefix:
    """Keys and values of tokens that never were (Prefix-Tuning, arXiv 2101.00190), in front of every text. Keys are as
    attention reads them: nothing turns them. The text's own positions begin behind them."""

    kv_LP2Kd: Tensor
    """Layers x tokens x 2 x K x d."""

    @property
    def num_virtual_tokens(self) -> int:
        return self.kv_LP2Kd.shape[1]

    @property
    def num_bytes(self) -> int:
        return self.kv_LP2Kd.nbytes


def load_adapter(path: Path | str, model: Decoder) -> Lora | Prefix:
    """The adapter in a folder, in the model's dtype and on its device. Raises `NotFoundError` and `ModelFileError`."""
    folder = read_peft(Path(path))
    match folder.kind:
        case "LORA":
            return _lora(folder, model)
        case "PREFIX_TUNING":
            return _prefix(folder, model)
        case kind:
            raise ModelFileError(f'{path}: adapters of kind "{kind}" are not supported (LORA and PREFIX_TUNING are)')


def _lora(folder: PeftFolder, model: Decoder) -> Lora:
    family = family_of(model.config.family)
    projections, embedding = checkpoint_rows(model), None
    found: dict[Linear, list[tuple[Tensor, LowRankPair]]] = {}
    for name, pair in folder.pairs(family.prefix).items():
        if name == family.names["embedding"]:
            _check(folder, name, pair, model.config.hidden_size, model.config.vocab_size)
            embedding = (_like(model, pair.a.T), _like(model, pair.scale * pair.b.float()))
        elif name in projections:
            linear, rows = projections[name]
            _check(folder, name, pair, len(rows), linear.in_features)
            found.setdefault(linear, []).append((rows, pair))
        else:
            raise ModelFileError(f'{folder.path}: changes "{name}", which is no projection of this model')
    return Lora({linear: _low_rank(model, parts) for linear, parts in found.items()}, embedding)


def _low_rank(model: Decoder, parts: list[tuple[Tensor, LowRankPair]]) -> LowRank:
    pieces, start = [], 0
    for rows, pair in parts:
        first, last = int(rows.min()), int(rows.max())
        b = torch.zeros(last - first + 1, pair.b.shape[1])
        b[rows - first] = pair.scale * pair.b.float()
        pieces.append(Piece(slice(start, start + len(pair.a)), slice(first, last + 1), _like(model, b)))
        start += len(pair.a)
    return LowRank(_like(model, torch.cat([pair.a for _, pair in parts])), tuple(pieces))


def _prefix(folder: PeftFolder, model: Decoder) -> Prefix:
    specs = model.cache_specs
    if not all(isinstance(spec, PagedKV) for spec in specs) or len(set(specs)) != 1:
        raise ModelFileError(f"{folder.path}: a prefix needs layers that all keep the same keys and values")
    spec = specs[0]
    assert isinstance(spec, PagedKV)
    if folder.tensors.keys() != {"prompt_embeddings"}:
        raise ModelFileError(f'{folder.path}: a prefix is one tensor "prompt_embeddings", here is {[*folder.tensors]}')
    flat = folder.tensors["prompt_embeddings"]
    if flat.ndim != 2 or flat.shape[1] != len(specs) * spec.numbers_per_token or not len(flat):
        wanted = f"(tokens, {len(specs) * spec.numbers_per_token})"
        raise ModelFileError(f"{folder.path}: the prefix has shape {tuple(flat.shape)}, this model needs {wanted}")
    kv_PL2Kd = flat.view(len(flat), len(specs), 2, spec.num_kv_heads, spec.head_dim)
    return Prefix(_like(model, kv_PL2Kd.transpose(0, 1)))


def _check(folder: PeftFolder, name: str, pair: LowRankPair, num_rows: int, num_columns: int) -> None:
    found, wanted = (len(pair.b), pair.a.shape[1]), (num_rows, num_columns)
    if found != wanted:
        raise ModelFileError(f"{folder.path}: changes {name} of shape {found}, but this model's is {wanted}")


def _like(model: Decoder, tensor: Tensor) -> Tensor:
    return tensor.to(model.device, model.dtype).contiguous()
