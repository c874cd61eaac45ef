"""The plain cache: a rectangle of keys and values per layer, a row for each sequence, made as long as it may ever get.

It is what a paged cache is compared with. Nothing is looked up, but every row reserves ``capacity`` tokens whatever it
holds (`waste`), and one token more is an error. Two things are easy in it: to put rows into another order, which beam
search does with every step, and to take the last tokens of a row back, which speculation does with a refused draft.

    cache = ContiguousContext(model, num_rows=4, capacity=128)
    hidden_TD = model(token_ids_T, cache.next_positions([7, 7, 3, 9]), cache)  # the rows' tokens, end to end
    cache.reorder([0, 0, 2, 1])

For inference: no gradient flows into what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wootz.core.errors import BadRequestError, UnsupportedError
from wootz.models.attention.dense import attend
from wootz.models.context import Advance, LatentKV, RecurrentState, ScoreBias, State, WholeText, visible
from wootz.models.decoder import Decoder


class ContiguousContext:
    """A `Context` of ``num_rows`` sequences that grow side by side, each by as many tokens as it is given.

    ``lengths`` are the tokens that each row holds.
    """

    remembers = True

    def __init__(self, model: Decoder, num_rows: int, capacity: int) -> None:
        if any(isinstance(spec, WholeText) for spec in model.cache_specs):
            raise UnsupportedError(WholeText.REASON)
        self.capacity, self.device = capacity, model.device
        self.lengths = [0] * num_rows
        self._counts = [0] * num_rows
        self._kept: list[State] = []
        for spec in model.cache_specs:
            if isinstance(spec, RecurrentState):
                self._kept.append(spec.start(num_rows, model.dtype, model.device))
                continue
            shapes = [(spec.dim,)] if isinstance(spec, LatentKV) else [(spec.num_kv_heads, spec.head_dim)] * 2
            self._kept.append(
                tuple(
                    torch.zeros(num_rows, capacity, *shape, dtype=model.dtype, device=model.device) for shape in shapes
                )
            )
        self._specs = model.cache_specs

    def next_positions(self, counts: Sequence[int]) -> Tensor:
        """Where the next tokens stand, ``counts`` of each row, ``(T,)``. To be called once before each pass.

        Raises `BadRequestError`, and changes nothing, if a row would get longer than ``capacity``.
        """
        for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            if length + count > self.capacity:
                raise BadRequestError(
                    f"row {row} reserves {self.capacity} tokens, and {length + count} would have to be kept",
                    code="context_length_exceeded",
                )
        self._counts = list(counts)
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        ranges = [torch.arange(length - count, length) for length, count in zip(self.lengths, counts, strict=True)]
        return torch.cat(ranges).to(self.device)

    def reorder(self, rows: Sequence[int]) -> None:
        """Row i goes on where row ``rows[i]`` was; one may be continued twice, and another not at all."""
        rows_B = torch.tensor(rows, device=self.device)
        self._kept = [tuple(part[rows_B] for part in parts) for parts in self._kept]
        self.lengths = [self.lengths[row] for row in rows]

    def truncate(self, row: int, num_tokens: int) -> None:
        """Go back to the first ``num_tokens`` of a row. Raises `UnsupportedError` where a running state forbids it."""
        if not 0 <= num_tokens <= self.lengths[row]:
            raise ValueError(f"cannot go back to {num_tokens} of {self.lengths[row]} tokens")
        if num_tokens < self.lengths[row] and any(isinstance(spec, RecurrentState) for spec in self._specs):
            raise UnsupportedError("a recurrent state cannot be taken back")
        self.lengths[row] = num_tokens

    @property
    def num_bytes(self) -> int:
        """Reserved, whatever is held."""
        return sum(part.nbytes for parts in self._kept for part in parts)

    @property
    def waste(self) -> float:
        """The share of what is reserved that holds no token."""
        return 1 - sum(self.lengths) / (len(self.lengths) * self.capacity)

    # --- what a model's layers call ---------------------------------------------------------------------------

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
            raise UnsupportedError("a layer that looks ahead cannot read a text as it comes")
        keys_BLKd, values_BLKe = self._kept[slot]
        outputs = []
        for rows, piece, count in self._pieces():
            relative_BQL = self._store(rows, count, (keys_BLKd, k_TKd[piece]), (values_BLKe, v_TKe[piece]))
            longest = relative_BQL.shape[-1]
            q_BHQd = q_THd[piece].unflatten(0, (len(rows), count)).transpose(1, 2)
            k_BKLd, v_BKLe = (kept[rows, :longest].transpose(1, 2) for kept in (keys_BLKd, values_BLKe))
            out_BHQe = attend(
                q_BHQd,
                k_BKLd,
                v_BKLe,
                scale=scale,
                mask_QL=visible(relative_BQL, True, window).unsqueeze(1),
                softcap=softcap,
                sinks_H=sinks_H,
                bias_HQL=None if bias is None else bias(q_BHQd, k_BKLd, relative_BQL),
            )
            outputs.append(out_BHQe.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)

    def attend_latent(self, slot: int, q_THd: Tensor, latent_Td: Tensor, *, value_dim: int, scale: float) -> Tensor:
        (latents_BLd,) = self._kept[slot]
        outputs = []
        for rows, piece, count in self._pieces():
            relative_BQL = self._store(rows, count, (latents_BLd, latent_Td[piece]))
            k_B1Ld = latents_BLd[rows, : relative_BQL.shape[-1]].unsqueeze(1)
            q_BHQd = q_THd[piece].unflatten(0, (len(rows), count)).transpose(1, 2)
            mask_B1QL = visible(relative_BQL, True, None).unsqueeze(1)
            out_BHQe = attend(q_BHQd, k_B1Ld, k_B1Ld[..., :value_dim], scale=scale, mask_QL=mask_B1QL)
            outputs.append(out_BHQe.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)

    def recur(self, slot: int, spec: RecurrentState, advance: Advance, *inputs_T: Tensor) -> Tensor:
        outputs = []
        for rows, piece, count in self._pieces():
            state = tuple(part[rows] for part in self._kept[slot])
            inputs_BT = (x_T[piece].unflatten(0, (len(rows), count)) for x_T in inputs_T)
            out_BT, state = advance(state, *inputs_BT)
            for kept, new in zip(self._kept[slot], state, strict=True):
                kept[rows] = new.detach().to(kept.dtype)
            outputs.append(out_BT.flatten(0, 1))
        return torch.cat(outputs)

    def _pieces(self) -> Iterator[tuple[list[int], slice, int]]:
        """Rows that are computed together, where their tokens are in the flat run, and how many each has: all rows, if
        they have equally many, else one by one."""
        if len(set(self._counts)) == 1:
            yield list(range(len(self._counts))), slice(None), self._counts[0]
            return
        start = 0
        for row, count in enumerate(self._counts):
            if count:
                yield [row], slice(start, start + count), count
            start += count

    def _store(self, rows: list[int], count: int, *given: tuple[Tensor, Tensor]) -> Tensor:
        """Write these rows' new tokens into place. Returns each place minus each new token's own, ``(B, Q, L)``."""
        ends_B = torch.tensor([self.lengths[row] for row in rows], device=self.device)
        places_BQ = ends_B[:, None] - count + torch.arange(count, device=self.device)
        for kept_BL, new_T in given:
            kept_BL[torch.tensor(rows, device=self.device)[:, None], places_BQ] = (
                new_T.detach().unflatten(0, (len(rows), count)).to(kept_BL.dtype)
            )
        places_L = torch.arange(int(ends_B.max()), device=self.device)
        return places_L - places_BQ.unsqueeze(-1)
