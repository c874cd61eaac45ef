"""Read one endless text in bounded memory: `StreamingContext`.

What is kept of the past is a policy:

- *full*: everything, up to ``capacity`` tokens; one more is an error.
- *window*: the last ``window`` tokens. Simple, and models break as soon as the first tokens leave: they have learned to
  put the attention that they need nowhere on the first tokens, which every query can see.
- *window and sinks*: the last ``window`` and the first few (StreamingLLM, arXiv 2309.17453).

With sinks, distances are those inside the cache, not inside the text: however far back the first tokens are, a query
finds them right behind its window, so it never sees a distance that training did not have. Keys come here already
turned by their positions. Only the sinks' distances change, so only they are turned on, by as many places as have been
dropped, which for rotary positions is one more rotation.

Positions themselves start again near zero whenever they would pass the model's trained length (all keys are turned back
by as much), for they lose precision in float32 and no table of them is endless.

    context = StreamingContext(model, window=1024, sinks=4)
    for token_ids_T in chunks:
        hidden_TD = model(token_ids_T, context.next_positions(len(token_ids_T)), context)

This is one sequence, by itself, to read and to experiment with; the engine's paged cache serves many. For inference: no
gradient flows into what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from wootz.core.errors import BadRequestError, UnsupportedError
from wootz.models.attention.dense import attend
from wootz.models.attention.kv_quantization import KVFormat, Quantized, quantize
from wootz.models.context import Advance, RecurrentState, ScoreBias, State
from wootz.models.decoder import Decoder
from wootz.models.positions.rotary import Rotary, Rotation
from wootz.models.run import Remembering


class StreamingContext:
    """A `Context` of one sequence that is given in chunks, of any sizes: they change nothing in the results.

    With ``window``, memory is that of ``sinks + window + slack`` tokens, whatever has been read; ``slack`` is how many
    tokens `truncate` can always take back, and how many are computed at once. Without, it is that of ``capacity``
    tokens, the model's trained length if None. ``format`` keeps keys and values in fewer bits, with a scale per token
    and head.

    A layer with a window of its own, not longer than ``window``, keeps to that and has no sinks.
    """

    remembers = True

    def __init__(
        self,
        model: Decoder,
        *,
        window: int | None = None,
        sinks: int = 0,
        capacity: int | None = None,
        slack: int = 64,
        format: KVFormat | None = None,
    ) -> None:
        if sinks and window is None:
            raise ValueError("sinks are what a window keeps beside it, and there is no window")
        if sinks < 0 or slack < 1 or (window is not None and window < 1):
            raise ValueError("a window has at least one token, slack too, and sinks are not negative")
        self.window, self.sinks, self.slack = window, sinks, slack
        self.format: KVFormat | None = format
        trained = model.config.max_position_embeddings
        self.capacity = trained if capacity is None else capacity
        self.num_tokens = 0
        """How many tokens have been read, and not taken back."""
        self._longest_position = max(trained, sinks + 2 * ((window or 0) + slack))
        self._base = 0
        self._device = model.device
        self._rotaries = {
            module.slot: rotary
            for module in model.modules()
            if isinstance(module, Remembering) and (rotary := _rotary(module)) is not None
        }
        if window is not None and any(rotary.unscaled_tokens for rotary in self._rotaries.values()):
            raise UnsupportedError("with first tokens unscaled (LongRoPE), a window's keys cannot be turned back")
        self._rings: dict[int, _Ring] = {}
        self._states: dict[int, State] = {}

    def next_positions(self, num_tokens: int) -> Tensor:
        """Where the next tokens stand, ``(T,)``. To be called once before each pass of the model over that many.

        Raises `BadRequestError` if there is no window and they do not fit.
        """
        start, end = self.num_tokens, self.num_tokens + num_tokens
        if self.window is None and end > self.capacity:
            raise BadRequestError(
                f"the cache holds {self.capacity} tokens, and {end} would have to be kept",
                code="context_length_exceeded",
                hint="give it a window, or a larger capacity",
            )
        if self.window is not None and end - self._base > self._longest_position:
            self._rebase(start - self.window - self.slack - self.sinks)
        self.num_tokens = end
        return torch.arange(start - self._base, end - self._base, device=self._device)

    def truncate(self, num_tokens: int) -> None:
        """Go back to the first ``num_tokens`` of the text: what a speculative decoder does with a refused draft.

        Raises `UnsupportedError` if what the next token would look at is gone, or was never kept token by token.
        """
        if not 0 <= num_tokens <= self.num_tokens:
            raise ValueError(f"cannot go back to {num_tokens} of {self.num_tokens} tokens")
        if self._states and num_tokens < self.num_tokens:
            raise UnsupportedError("a recurrent state cannot be taken back")
        for ring in self._rings.values():
            ring.truncate(num_tokens)
        self.num_tokens = num_tokens

    @property
    def num_bytes(self) -> int:
        """Of everything that is kept."""
        states = sum(part.nbytes for state in self._states.values() for part in state)
        return states + sum(ring.num_bytes for ring in self._rings.values())

    # --- what a model's layers call

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
        ring = self._ring(slot, window, turned_from=0)
        outputs = []
        for piece in ring.pieces(len(q_THd)):
            k_LKd, v_LKe, relative_QL, mask_QL = ring.append(k_TKd[piece], v_TKe[piece])
            q_HQd, k_KLd = q_THd[piece].transpose(0, 1), k_LKd.transpose(0, 1)
            out_HQe = attend(
                q_HQd,
                k_KLd,
                v_LKe.transpose(0, 1),
                scale=scale,
                mask_QL=mask_QL,
                softcap=softcap,
                sinks_H=sinks_H,
                bias_HQL=None if bias is None else bias(q_HQd, k_KLd, relative_QL),
            )
            outputs.append(out_HQe.transpose(0, 1))
        return torch.cat(outputs)

    def attend_latent(self, slot: int, q_THd: Tensor, latent_Td: Tensor, *, value_dim: int, scale: float) -> Tensor:
        ring = self._ring(slot, None, turned_from=value_dim)
        outputs = []
        for piece in ring.pieces(len(q_THd)):
            latent_T1d = latent_Td[piece].unsqueeze(1)
            k_L1d, _, _, mask_QL = ring.append(latent_T1d, latent_T1d[..., :0])
            k_1Ld = k_L1d.transpose(0, 1)
            out_HQe = attend(q_THd[piece].transpose(0, 1), k_1Ld, k_1Ld[..., :value_dim], scale=scale, mask_QL=mask_QL)
            outputs.append(out_HQe.transpose(0, 1))
        return torch.cat(outputs)

    def recur(self, slot: int, spec: RecurrentState, advance: Advance, *inputs_T: Tensor) -> Tensor:
        if slot not in self._states:
            self._states[slot] = spec.start(1, inputs_T[0].dtype, inputs_T[0].device)
        out_1T, state = advance(self._states[slot], *(x_T.unsqueeze(0) for x_T in inputs_T))
        self._states[slot] = tuple(part.detach() for part in state)
        return out_1T[0]

    # --- the ring buffers

    def _ring(self, slot: int, window: int | None, turned_from: int) -> _Ring:
        if slot not in self._rings:
            rotary = self._rotaries.get(slot)
            if self.window is None and window is None:
                ring = _Ring(None, 0, self.capacity, self.format, rotary, turned_from, self._base)
            elif window is not None and (self.window is None or window <= self.window):
                ring = _Ring(window, 0, self.slack, self.format, rotary, turned_from, self._base)
            else:
                ring = _Ring(self.window, self.sinks, self.slack, self.format, rotary, turned_from, self._base)
            self._rings[slot] = ring
        return self._rings[slot]

    def _rebase(self, base: int) -> None:
        if base <= self._base:
            return
        for ring in self._rings.values():
            ring.rebase(base)
        self._base = base


class _Ring:
    """One layer's keys and values: the first ``sinks`` tokens, and behind them the last ``window + slack``, each token
    in the row of the one that it replaces."""

    def __init__(
        self,
        window: int | None,
        sinks: int,
        slack: int,
        format: KVFormat | None,
        rotary: Rotary | None,
        turned_from: int,
        base: int,
    ) -> None:
        self.window, self.sinks, self.slack, self.rotary, self.base = window, sinks, slack, rotary, base
        self.turned_from = turned_from
        self.num_rows = sinks + (window or 0) + slack
        self.num_tokens = self.num_used = 0
        self.oldest = sinks
        """The first token, behind the sinks, that is still kept."""
        self.keys, self.values = _Rows(self.num_rows, format), _Rows(self.num_rows, format)
        self.places_L = torch.empty(0, dtype=torch.int64)
        self.sink_keys: Tensor | None = None

    def pieces(self, num_tokens: int) -> Iterator[slice]:
        """What `append` can take, one after the other: at most ``slack`` tokens, of which none may overwrite what the
        first still sees; and with sinks, once tokens have been dropped, single ones: each finds the sinks elsewhere."""
        start = 0
        while start < num_tokens:
            most = self.slack
            if self.sinks and self.window is not None:
                most = max(1, min(most, self.sinks + self.window - self.num_tokens))
            yield slice(start, min(start + most, num_tokens))
            start += most

    def append(self, k_TKd: Tensor, v_TKe: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Store T tokens. Returns the keys and values that any of them may see, ``(L, K, …)``, how far each key is from
        each token inside the cache, and which may be seen, ``(T, L)``."""
        device = k_TKd.device
        tokens_T = torch.arange(self.num_tokens, self.num_tokens + len(k_TKd), device=device)
        rows_T = torch.where(
            tokens_T < self.sinks, tokens_T, self.sinks + (tokens_T - self.sinks) % (self.num_rows - self.sinks)
        )
        if self.num_used == 0:
            self.places_L = torch.full((self.num_rows,), -1, device=device)
        self.places_L = self.places_L.index_copy(0, rows_T, tokens_T)
        self.keys.write(rows_T, k_TKd)
        self.values.write(rows_T, v_TKe)
        if self.num_tokens < self.sinks:
            new_sinks = k_TKd[: self.sinks - self.num_tokens].detach()
            known = () if self.sink_keys is None else (self.sink_keys[: self.num_tokens],)
            self.sink_keys = torch.cat((*known, new_sinks))
        self.num_tokens += len(k_TKd)
        self.oldest = max(self.oldest, self.num_tokens - (self.num_rows - self.sinks))

        self.num_used = max(self.num_used, min(self.num_tokens, self.num_rows))
        keys, values = self.keys.read(self.num_used), self.values.read(self.num_used)
        places_L = self.places_L[: self.num_used]
        relative_QL = places_L - tokens_T[:, None]
        mask_QL = (relative_QL <= 0) & (places_L >= 0)
        if self.window is not None:
            mask_QL &= (relative_QL > -self.window) | (places_L < self.sinks)
        if self.sinks and self.window is not None and self.sink_keys is not None:
            # With dropped tokens there is only one query, or none were dropped for any of them.
            dropped = max(0, self.num_tokens - self.sinks - self.window)
            relative_QL = relative_QL + torch.where(places_L < self.sinks, dropped, 0)
            keys[: len(self.sink_keys)] = self._turned(self.sink_keys, dropped - self.base).to(keys.dtype)
        return keys, values, relative_QL, mask_QL

    def truncate(self, num_tokens: int) -> None:
        needed = num_tokens - self.window + 1 if self.window is not None else 0
        if num_tokens < self.num_tokens and max(needed, self.sinks) < self.oldest:
            raise UnsupportedError(
                f"going back to token {num_tokens} needs tokens from {max(needed, self.sinks)} on, and what is before "
                f"{self.oldest} is gone"
            )
        self.places_L = torch.where(self.places_L < num_tokens, self.places_L, -1)
        self.num_tokens = min(self.num_tokens, num_tokens)

    def rebase(self, base: int) -> None:
        """Positions are counted from ``base`` on from now on."""
        if self.num_used > self.sinks and self.rotary is not None:
            rows = torch.arange(self.sinks, self.num_used, device=self.places_L.device)
            self.keys.write(rows, self._turned(self.keys.read(self.num_used)[self.sinks :], self.base - base))
        self.base = base

    @property
    def num_bytes(self) -> int:
        sinks = 0 if self.sink_keys is None else self.sink_keys.nbytes
        return self.keys.num_bytes + self.values.num_bytes + self.places_L.nbytes + sinks

    def _turned(self, k_LKd: Tensor, places: int) -> Tensor:
        """Keys as they would be if they stood so many places further on."""
        if self.rotary is None or places == 0:
            return k_LKd
        rotation = self.rotary(torch.tensor([places], device=k_LKd.device), torch.float32)
        # Of the heads that turn unlike each other (xPos), keys are the last; and what YaRN lengthens is long already.
        cos_1Kd, sin_1Kd = (
            x[:, -k_LKd.shape[1] :] / self.rotary.attention_factor for x in (rotation.cos_T1d, rotation.sin_T1d)
        )
        rotation = Rotation(cos_1Kd, sin_1Kd, rotation.interleaved)
        still, turning = k_LKd[..., : self.turned_from], k_LKd[..., self.turned_from :]
        return torch.cat((still, rotation(turning.float()).to(k_LKd.dtype)), -1)


class _Rows:
    """A row per token, made when the first is written, in full precision or in codes."""

    def __init__(self, num_rows: int, format: KVFormat | None) -> None:
        self.num_rows = num_rows
        self.format: KVFormat | None = format
        self.dtype = torch.float32
        self.parts: tuple[Tensor, ...] = ()

    def write(self, rows_T: Tensor, x_TKd: Tensor) -> None:
        x_TKd = x_TKd.detach()
        parts = (x_TKd,)
        if self.format is not None and x_TKd.shape[-1]:
            quantized = quantize(x_TKd, self.format)
            parts = tuple(part for part in (quantized.codes, quantized.scale, quantized.zero) if part is not None)
        if not self.parts:
            self.dtype = x_TKd.dtype
            with torch.inference_mode(False):  # written to by passes in and out of it
                self.parts = tuple(
                    torch.zeros(self.num_rows, *part.shape[1:], dtype=part.dtype, device=part.device) for part in parts
                )
        for held, part in zip(self.parts, parts, strict=True):
            held[rows_T] = part

    def read(self, num_rows: int) -> Tensor:
        parts = [part[:num_rows] for part in self.parts]
        if self.format is None or len(parts) == 1:
            return parts[0]
        codes, scale, *zero = parts
        return Quantized(self.format, codes, scale, zero[0] if zero else None).dequantize(self.dtype)

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def _rotary(module: nn.Module) -> Rotary | None:
    return next((child for child in module.children() if isinstance(child, Rotary)), None)


@torch.inference_mode()
def stream_losses(model: Decoder, token_ids_T: Tensor, context: StreamingContext, *, chunk: int = 64) -> Tensor:
    """How surprising each token is after all before it, in nats: ``(T - 1,)``, the first token being given."""
    losses = []
    for start in range(0, len(token_ids_T) - 1, chunk):
        inputs_T, targets_T = token_ids_T[:-1][start : start + chunk], token_ids_T[1:][start : start + chunk]
        logits_TV = model.unembed(model(inputs_T, context.next_positions(len(inputs_T)), context))
        losses.append(nn.functional.cross_entropy(logits_TV, targets_T, reduction="none"))
    return torch.cat(losses)
