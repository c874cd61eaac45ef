"""What a model asks of the world around it.

A model in this room runs over a flat run of T tokens, which may belong to one document or to many:

    hidden_TD = model(token_ids_T, positions_T, context)

It never decides *what may look at what*. Each layer hands its queries, keys and values to `Context.attend`, or what it
folds into a running state to `Context.recur`, and the context knows the rest. In training that is `PackedContext`:
packed documents, causal inside each, never across. In the engine it is the paged cache. A layer also declares what it
keeps per sequence (`CacheSpec`), in its *slot*, and the engine builds its cache from that.

Shape suffixes, used in every file of this room: T tokens of the flat run, D model width, H query heads,
K key/value heads, F feed-forward width, d head dimension, e value head dimension, E experts, V vocabulary; Q queries
and L keys of one attention; B sequences side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from wootz.kernels import training
from wootz.models.attention.dense import attend


@dataclass(frozen=True)
class PagedKV:
    """A layer keeps one key and one value per token. With a ``window`` it looks at its last ``window`` tokens only
    (itself included), so older ones may be forgotten."""

    num_kv_heads: int
    head_dim: int
    window: int | None = None

    @property
    def numbers_per_token(self) -> int:
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class LatentKV:
    """A layer keeps one vector per token, for all heads; its first ``value_dim`` numbers are the value too."""

    dim: int
    value_dim: int

    @property
    def numbers_per_token(self) -> int:
        return self.dim


@dataclass(frozen=True)
class RecurrentState:
    """A layer keeps tensors of these shapes per sequence, however long it gets, in float32 at least."""

    shapes: tuple[tuple[int, ...], ...]
    initial: tuple[float, ...] = ()
    """What each tensor is filled with at the start of a sequence; all zeros if empty."""
    numbers_per_token = 0

    def start(self, num_sequences: int, dtype: torch.dtype, device: torch.device) -> State:
        """The state before the first token, ``(B, …)`` each."""
        fill = self.initial or (0.0,) * len(self.shapes)
        dtype = torch.promote_types(dtype, torch.float32)
        return tuple(
            torch.full((num_sequences, *shape), value, dtype=dtype, device=device)
            for shape, value in zip(self.shapes, fill, strict=True)
        )


@dataclass(frozen=True)
class WholeText(RecurrentState):
    """A layer keeps nothing that would let it go on with a text: it has to be given all of it, from its start."""

    shapes: tuple[tuple[int, ...], ...] = ()
    REASON: ClassVar[str] = "this model has layers that need whole texts: it can be trained and studied, but not served"


CacheSpec = PagedKV | LatentKV | RecurrentState
"""What a layer keeps per sequence."""

State = tuple[Tensor, ...]
Advance = Callable[..., tuple[Tensor, State]]
"""``advance(state, *inputs_BT) -> (output_BT, state)``: T steps of B sequences, each from its own state. ``state`` is
not to be changed in place."""

ScoreBias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``bias(q_HQd, k_KLd, relative_QL) -> HQL``, added to the scores before the softmax. ``relative`` is int64, the key's
place minus the query's, so it is never positive where a causal mask lets anyone look. All but the head dimension may
have more in front of them: ``(…, H, Q, d)`` and ``(…, Q, L)`` give ``(…, H, Q, L)``."""


class Context(Protocol):
    """The answer to "what may I look at?", for all tokens of one forward pass.

    ``slot`` is an index into the model's `cache_specs`. A context that remembers stores what it is given before it
    answers; a call with a slot happens once per forward pass.
    """

    @property
    def remembers(self) -> bool:
        """Whether what is handed over is kept for later passes. Without, nothing need be small to keep."""
        ...

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
        """Attention output ``(T, H, e)`` of this layer's tokens over everything each of them may see.

        H is a multiple of K; query head h reads key/value head ``h // (H // K)``. A token sees itself and what is
        before it in its document (with ``causal=False`` what is behind it too), at most ``window`` tokens. Scores are
        ``scale * q·k``, then capped (``softcap * tanh(scores / softcap)``), then biased; ``sinks_H`` are the logits of
        one more key per head, whose value is zero.
        """
        ...

    def attend_latent(self, slot: int, q_THd: Tensor, latent_Td: Tensor, *, value_dim: int, scale: float) -> Tensor:
        """Causal attention in which a token's one key, and its value in the first ``value_dim`` numbers of it, is the
        same for all heads: ``(T, H, value_dim)``."""
        ...

    def recur(self, slot: int, spec: RecurrentState, advance: Advance, *inputs_T: Tensor) -> Tensor:
        """Run ``advance`` over each sequence's tokens, from the state in which it was left: ``(T, …)``."""
        ...


class PackedContext:
    """Documents laid end to end: causal inside each, never across. Remembers nothing.

    ``lengths`` are the documents' token counts, in order; they must add up to T. Documents of one length are computed
    side by side.
    """

    remembers = False

    def __init__(self, lengths: list[int]) -> None:
        if any(length < 1 for length in lengths):
            raise ValueError("every document needs at least one token")
        self.lengths = lengths

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
        is_plain = causal and window is None and softcap is None and sinks_H is None and bias is None
        if is_plain and training.can_attend(q_THd, k_TKd, v_TKe):
            return training.packed_attention(q_THd, k_TKd, v_TKe, self.lengths, scale)
        pieces = []
        for q_BHQd, k_BKLd, v_BKLe in zip(*map(self._heads_first, (q_THd, k_TKd, v_TKe)), strict=True):
            length = q_BHQd.shape[-2]
            relative_QL = relative_places(length, length, q_THd.device) if bias or window or not causal else None
            out_BHQe = attend(
                q_BHQd,
                k_BKLd,
                v_BKLe,
                scale=scale,
                is_causal=causal and window is None,
                mask_QL=None if window is None or relative_QL is None else visible(relative_QL, causal, window),
                softcap=softcap,
                sinks_H=sinks_H,
                bias_HQL=None if bias is None or relative_QL is None else bias(q_BHQd, k_BKLd, relative_QL),
            )
            pieces.append(out_BHQe.transpose(1, 2).flatten(0, 1))
        return torch.cat(pieces)

    def attend_latent(self, slot: int, q_THd: Tensor, latent_Td: Tensor, *, value_dim: int, scale: float) -> Tensor:
        latent_T1d = latent_Td.unsqueeze(1)
        return self.attend(slot, q_THd, latent_T1d, latent_T1d[..., :value_dim], scale=scale)

    def recur(self, slot: int, spec: RecurrentState, advance: Advance, *inputs_T: Tensor) -> Tensor:
        outputs = []
        for inputs_BT in zip(*map(self._side_by_side, inputs_T), strict=True):
            start = spec.start(len(inputs_BT[0]), inputs_BT[0].dtype, inputs_BT[0].device)
            outputs.append(advance(start, *inputs_BT)[0].flatten(0, 1))
        return torch.cat(outputs)

    def _heads_first(self, x_THd: Tensor) -> list[Tensor]:
        return [x_BTHd.transpose(1, 2) for x_BTHd in self._side_by_side(x_THd)]

    def _side_by_side(self, x_T: Tensor) -> list[Tensor]:
        """``(B, T, …)`` of documents of one length; else one by one, with B = 1."""
        if len(set(self.lengths)) == 1:
            return [x_T.unflatten(0, (len(self.lengths), self.lengths[0]))]
        return [piece.unsqueeze(0) for piece in x_T.split(self.lengths)]


def relative_places(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """Key place minus query place ``(Q, L)``, where the last query and the last key are the same token."""
    keys_L = torch.arange(num_keys, device=device)
    queries_Q = torch.arange(num_keys - num_queries, num_keys, device=device)
    return keys_L - queries_Q[:, None]


def visible(relative_QL: Tensor, causal: bool, window: int | None) -> Tensor:
    """Which keys a query may look at, as booleans. A window without ``causal`` reaches as far to both sides."""
    mask_QL = relative_QL <= 0 if causal else torch.ones_like(relative_QL, dtype=torch.bool)
    return mask_QL if window is None else mask_QL & (relative_QL.abs() < window)
