"""`PagedContext`: what a token may look at when keys and values live in blocks. Plain PyTorch, any device.

A token's key and value lie together in a layer's `KVStore`, so one gather brings both, and what was gathered is
``(…, L, 2, K, d)`` without a further copy. A layer with a window gathers the blocks of its window only. A recurrent
layer keeps a state per sequence instead. A step has two kinds of rows:

- *decodes*, one token per sequence, are attended to together, in groups of similar length;
- *prefill chunks*, one by one: a prompt's first chunk over itself, a later one over its gathered blocks. A token with
  a draft behind it is such a chunk; in a draft that branches, each token sees the way to it, not the other branches.

Kernels read the blocks of both where they lie: on a CPU in float32, if they were built (`wootz.kernels.attend`), and on
a GPU, if Triton is there (`wootz.engine.gpu`).

The G = H / K query heads that share a key/value head are laid out as G query positions of that head, so that each key
and value is read once, not G times. Who looks where is in `visible_places`.

Shape suffixes are those of `wootz.models.context`; B sequences of a group, L token places gathered for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz import kernels
from wootz.engine.gpu import paged
from wootz.engine.kv_store import CacheFormat, KVStore, allocate, bytes_per_token
from wootz.engine.scheduler import Chunk
from wootz.engine.visible_places import Decodes, Prefill, decodes_of, prefill_of
from wootz.models.attention.dense import attend
from wootz.models.context import (
    Advance,
    CacheSpec,
    LatentKV,
    PagedKV,
    RecurrentState,
    ScoreBias,
)


class PagedCache:
    """The memory behind a `BlockPool`. ``dtype`` is what the model computes in, ``format`` how blocks keep it.

    ``layers`` has for each slot what its `CacheSpec` asks for: keys and values ``(num_blocks, block_size, 2, K, d)``,
    latent vectors ``(num_blocks, block_size, d)``, or a tuple of states ``(num_states, …)``. In codes, keys and values
    are a tuple of tensors that begin with ``(num_blocks, block_size)``; `store` reads and writes either.
    """

    def __init__(
        self,
        specs: list[CacheSpec],
        num_blocks: int,
        block_size: int,
        *,
        num_states: int = 0,
        dtype: torch.dtype,
        device: torch.device,
        format: CacheFormat | None = None,
    ) -> None:
        self.specs, self.block_size, self.dtype, self.device = specs, block_size, dtype, device
        self.format: CacheFormat = format or dtype
        self.layers: list[Any] = []
        for spec in specs:
            if isinstance(spec, RecurrentState):
                self.layers.append(spec.start(num_states, dtype, device))
            else:
                self.layers.append(allocate(_shape(spec), num_blocks, block_size, self.format, device))

    def store(self, slot: int) -> KVStore:
        """The blocks of a layer that keeps something per token."""
        layer = self.layers[slot]
        return KVStore((layer,) if isinstance(layer, Tensor) else layer, self.format, self.dtype)

    def copy(self, source: int, target: int) -> None:
        """Copy one block's content in every layer."""
        for slot, spec in enumerate(self.specs):
            if not isinstance(spec, RecurrentState):
                self.store(slot).copy(source, target)

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy what is kept of single tokens, by their slots, all at once."""
        for slot, spec in enumerate(self.specs):
            if not isinstance(spec, RecurrentState):
                self.store(slot).move(sources, targets)

    def copy_state(self, source: int, target: int) -> None:
        """Copy one sequence's running state in every layer."""
        for spec, layer in zip(self.specs, self.layers, strict=True):
            if isinstance(spec, RecurrentState):
                for tensor in layer:
                    tensor[target] = tensor[source]

    def restart(self, states: list[int]) -> None:
        """Set these states to where a sequence starts."""
        for spec, layer in zip(self.specs, self.layers, strict=True):
            if isinstance(spec, RecurrentState):
                for tensor, start in zip(layer, spec.start(1, self.dtype, self.device), strict=True):
                    tensor[states] = start

    @staticmethod
    def block_bytes(specs: list[CacheSpec], block_size: int, format: CacheFormat) -> int:
        """Memory one block takes in all layers together."""
        kept = [spec for spec in specs if not isinstance(spec, RecurrentState)]
        return sum(bytes_per_token(_shape(spec), format) for spec in kept) * block_size

    @staticmethod
    def state_bytes(specs: list[CacheSpec], dtype: torch.dtype) -> int:
        """Memory one sequence takes, however long it is."""
        return sum(
            math.prod(shape) * torch.promote_types(dtype, torch.float32).itemsize
            for spec in specs
            if isinstance(spec, RecurrentState)
            for shape in spec.shapes
        )


class PagedContext:
    """The `Context` of one step. Rows of the flat run are the chunks' tokens, in the chunks' order."""

    remembers = True

    def __init__(self, cache: PagedCache, chunks: list[Chunk]) -> None:
        self.cache, self.device, self.chunks = cache, cache.device, chunks
        slots: list[int] = []
        self.decoding: list[tuple[int, Chunk]] = []
        self.prefilling: list[tuple[int, Chunk]] = []
        size = cache.block_size
        for chunk in chunks:
            row, blocks = len(slots), chunk.sequence.table.blocks
            slots += [blocks[p // size] * size + p % size for p in range(chunk.start, chunk.start + chunk.num_rows)]
            (self.decoding if chunk.num_rows == 1 else self.prefilling).append((row, chunk))
        self._slots = slots
        self.branches = any(chunk.draft is not None and not chunk.draft.is_chain for chunk in chunks)
        """Whether some chunk's tokens are not each behind the one before, so that no kernel knows who sees whom."""
        self._decodes: dict[int | None, list[Decodes]] = {}
        self._prefills: dict[int | None, list[Prefill]] = {}
        if starting := [chunk.sequence.table.state for chunk in chunks if chunk.start == 0]:
            cache.restart([state for state in starting if state is not None])

    # --- attention --------------------------------------------------------------------------------------------

    def attend(
        self,
        slot: int,
        q_THd: Tensor,
        k_TKd: Tensor,
        v_TKe: Tensor,
        *,
        scale: float,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        sinks_H: Tensor | None = None,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        if not causal:
            raise ValueError("a model that looks ahead cannot be served token by token")
        store = self.cache.store(slot)
        kv_T2Kd = store.write(self.slots_T, torch.stack((k_TKd, v_TKe), dim=1))
        scoring = _Scoring(scale, window, softcap, sinks_H, bias)
        out_THd = q_THd.new_empty(q_THd.shape)
        dense = store.dense if q_THd.dtype == torch.float32 and not self.branches else None
        if scoring.is_plain and dense is not None and kernels.can_attend(dense):
            kernels.attend(dense, q_THd, out_THd, self.kernel_chunks, scale=scale, window=window)
            return out_THd
        on_gpu = paged.readable(store, q_THd) if bias is None and not self.branches else None
        if on_gpu is not None:
            return self.paged.attend(q_THd, on_gpu, paged.scoring(scale, window, softcap, sinks_H))
        self._attend_decodes(store, q_THd, out_THd, scoring)
        for chunk in self._prefills_of(window):
            kv_L2Kd = kv_T2Kd[chunk.rows]
            if chunk.blocks is not None:
                kv_L2Kd = store.gather(chunk.blocks)[: chunk.num_keys]
            k_LKd, v_LKd = kv_L2Kd.unbind(1)
            out_THd[chunk.rows] = _attend_prefill(chunk, q_THd, k_LKd, v_LKd, scoring)
        return out_THd

    def attend_latent(self, slot: int, q_THd: Tensor, latent_Td: Tensor, *, value_dim: int, scale: float) -> Tensor:
        store = self.cache.store(slot)
        latent_Td = store.write(self.slots_T, latent_Td)
        out_THe = q_THd.new_empty((*q_THd.shape[:2], value_dim))
        for group in self._decodes_of(None):
            latent_BLd = store.gather(group.blocks).unflatten(0, (len(group.rows_B), -1))
            out_THe[group.rows_B] = F.scaled_dot_product_attention(
                q_THd[group.rows_B],  # all heads are queries of the one key, so there is no head dimension
                latent_BLd,
                latent_BLd[..., :value_dim],
                attn_mask=group.mask_B11L[:, 0],
                scale=scale,
            )
        for chunk in self._prefills_of(None):
            latent_Ld = latent_Td[chunk.rows]
            if chunk.blocks is not None:
                latent_Ld = store.gather(chunk.blocks)[: chunk.num_keys]
            latent_L1d = latent_Ld.unsqueeze(1)
            scoring = _Scoring(scale)
            out_THe[chunk.rows] = _attend_prefill(chunk, q_THd, latent_L1d, latent_L1d[..., :value_dim], scoring)
        return out_THe

    def _attend_decodes(self, store: KVStore, q_THd: Tensor, out_THd: Tensor, scoring: _Scoring) -> None:
        for group in self._decodes_of(scoring.window):
            kv_BL2Kd = store.gather(group.blocks).unflatten(0, (len(group.rows_B), -1))
            k_BKLd, v_BKLd = kv_BL2Kd[:, :, 0].transpose(1, 2), kv_BL2Kd[:, :, 1].transpose(1, 2)
            q_BHd = q_THd[group.rows_B]
            if scoring.is_plain:
                q_BKGd = q_BHd.unflatten(1, (k_BKLd.shape[1], -1))
                out = F.scaled_dot_product_attention(
                    q_BKGd, k_BKLd, v_BKLd, attn_mask=group.mask_B11L, scale=scoring.scale
                )
                out_THd[group.rows_B] = out.flatten(1, 2)
            else:
                q_BH1d = q_BHd.unsqueeze(2)
                bias = scoring.bias and scoring.bias(q_BH1d, k_BKLd, group.relative_B1L)
                out = scoring.attend(q_BH1d, k_BKLd, v_BKLd, mask_QL=group.visible_B11L, bias_HQL=bias)
                out_THd[group.rows_B] = out.squeeze(2)

    # --- recurrence -------------------------------------------------------------------------------------------

    def recur(self, slot: int, spec: RecurrentState, advance: Advance, *inputs_T: Tensor) -> Tensor:
        states = self.cache.layers[slot]
        out_T: Tensor | None = None
        for rows, owners, tokens in self._recurrences:
            state = tuple(tensor[owners] for tensor in states)
            out_BT, state = advance(state, *(x_T[rows].unflatten(0, (len(owners), tokens)) for x_T in inputs_T))
            for tensor, new in zip(states, state, strict=True):
                tensor[owners] = new.to(tensor.dtype)
            if out_T is None:
                out_T = out_BT.new_empty((len(self.slots_T), *out_BT.shape[2:]))
            out_T[rows] = out_BT.flatten(0, 1)
        assert out_T is not None, "a step without chunks"
        return out_T

    @cached_property
    def _recurrences(self) -> list[tuple[Tensor | slice, Tensor, int]]:
        """Rows, whose state they continue, and how many tokens each: all decodes at once, prefills one by one."""

        def owners(chunks: list[tuple[int, Chunk]]) -> Tensor:
            return torch.tensor([chunk.sequence.table.state for _, chunk in chunks], device=self.device)

        groups: list[tuple[Tensor | slice, Tensor, int]] = []
        if self.decoding:
            rows_B = torch.tensor([row for row, _ in self.decoding], device=self.device)
            groups.append((rows_B, owners(self.decoding), 1))
        for row, chunk in self.prefilling:
            groups.append((slice(row, row + chunk.num_rows), owners([(row, chunk)]), chunk.num_rows))
        return groups

    @cached_property
    def slots_T(self) -> Tensor:
        """Each token's place in the cache."""
        return torch.tensor(self._slots, device=self.device)

    # --- index tensors, made once per step and window ---------------------------------------------------------

    @cached_property
    def paged(self) -> paged.PagedStep:
        """The step, as the kernels for GPUs take it."""
        return paged.PagedStep(self.decoding, self.prefilling, self.device)

    @cached_property
    def kernel_chunks(self) -> kernels.Chunks:
        """The step's chunks, as `wootz.kernels` takes them."""
        chunks = sorted((*self.decoding, *self.prefilling), key=lambda pair: pair[0])
        longest = max(len(chunk.sequence.table.blocks) for _, chunk in chunks)
        tables = [(chunk.sequence.table.blocks + [0] * longest)[:longest] for _, chunk in chunks]
        rows = [(row, chunk.num_rows, chunk.start) for row, chunk in chunks]
        return kernels.Chunks.of(rows, torch.tensor(tables, dtype=torch.int32))

    def _decodes_of(self, window: int | None) -> list[Decodes]:
        if window not in self._decodes:
            self._decodes[window] = decodes_of(self.decoding, self.cache, window)
        return self._decodes[window]

    def _prefills_of(self, window: int | None) -> list[Prefill]:
        if window not in self._prefills:
            self._prefills[window] = [prefill_of(chunk, row, self.cache, window) for row, chunk in self.prefilling]
        return self._prefills[window]


@dataclass(frozen=True)
class _Scoring:
    """How one layer scores."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks_H: Tensor | None = None
    bias: ScoreBias | None = None

    @property
    def is_plain(self) -> bool:
        return self.softcap is None and self.sinks_H is None and self.bias is None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **masks: Any) -> Tensor:
        return attend(q, k, v, scale=self.scale, softcap=self.softcap, sinks_H=self.sinks_H, **masks)


def _attend_prefill(chunk: Prefill, q_THd: Tensor, k_LKd: Tensor, v_LKe: Tensor, scoring: _Scoring) -> Tensor:
    q_HQd, k_KLd, v_KLe = q_THd[chunk.rows].transpose(0, 1), k_LKd.transpose(0, 1), v_LKe.transpose(0, 1)
    bias = scoring.bias and scoring.bias(q_HQd, k_KLd, chunk.relative_QL)
    out_HQe = scoring.attend(q_HQd, k_KLd, v_KLe, mask_QL=chunk.mask_QL, is_causal=chunk.mask_QL is None, bias_HQL=bias)
    return out_HQe.transpose(0, 1)


def _shape(spec: PagedKV | LatentKV) -> tuple[int, ...]:
    """What a layer keeps per token."""
    return (spec.dim,) if isinstance(spec, LatentKV) else (2, spec.num_kv_heads, spec.head_dim)
