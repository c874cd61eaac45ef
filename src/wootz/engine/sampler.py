"""Choosing the next token, for all rows of a step at once; every row by its own parameters.

Two ideas carry this file:

- *Every truncation is a threshold.* The k likeliest tokens, the smallest set with mass p, all tokens at least
  ``min_p`` times as likely as the best: each keeps exactly the logits above some value. So top-k, top-p and min-p
  become one number per row, found from a few hundred of the largest logits; the whole vocabulary is sorted only for
  a row whose ``top_p`` reaches further. A tie at the threshold is kept.
- *A random choice is a function.* A choice draws one number, a hash of (seed, choice, position), and takes the token
  at that place of the cumulative distribution. There is no generator to share and so nothing to disturb: the same
  seed gives the same token whatever else is in the batch, and a recomputed sequence repeats itself.

Order of operations: log-probabilities are taken from the model's own logits; then grammars, logit bias, penalties,
``min_tokens``, watermark; then greedy rows are done; then temperature, top-k, top-p of what top-k left, min-p.
Rows pay only for what they use.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from wootz import kernels
from wootz.engine.protocol import SamplingParams
from wootz.engine.sequence import Sequence
from wootz.engine.watermark import add_bias

NUM_CANDIDATES = 256


class Logits(NamedTuple):
    """Of a step, ``(S, V)``; and each row's largest, where that was found on the way."""

    rows_SV: Tensor
    likeliest_S: list[int] | None = None


Draw = Callable[[Tensor, Rows[Sequence]], list[int]]
"""From adjusted logits ``(S, V)`` a token for each row."""


@dataclass(frozen=True)
class Sampled:
    """The chosen token and, where asked for, its log-probability and the likeliest ``(token id, logprob)``."""

    token_id: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


def sample(
    logits_SV: Tensor,
    sequences: Rows[Sequence],
    draw: Draw | None = None,
    forbid: Callable[[Tensor], None] | None = None,
    likeliest_S: list[int] | None = None,
) -> list[Sampled]:
    """The next token of each sequence. ``logits_SV`` is changed in place. ``draw`` chooses for the rows that choose by
    chance, `draw_tokens` if None; ``forbid`` does what grammars ask for; ``likeliest`` are the rows'
    largest, if known."""
    if likeliest_S is not None and forbid is None and all(_takes_likeliest(s.request.params) for s in sequences):
        return [Sampled(token) for token in likeliest_S]
    draw = draw or draw_tokens
    logprobs = {
        row: logits_SV[row].log_softmax(-1) for row, s in enumerate(sequences) if s.request.params.logprobs is not None
    }
    if forbid is not None:
        forbid(logits_SV)
    for row, sequence in enumerate(sequences):
        adjust(logits_SV[row], sequence)
    random_rows = [row for row, s in enumerate(sequences) if s.request.params.temperature > 0]
    if len(random_rows) == len(sequences):
        tokens = draw(logits_SV, sequences)
    else:
        tokens = logits_SV.argmax(-1).tolist()
        if random_rows:
            drawn = draw(logits_SV[random_rows], [sequences[row] for row in random_rows])
            for row, token in zip(random_rows, drawn, strict=True):
                tokens[row] = token
    return [
        _with_logprobs(token, logprobs[row], sequences[row]) if row in logprobs else Sampled(token)
        for row, token in enumerate(tokens)
    ]


def _takes_likeliest(params: SamplingParams) -> bool:
    """Whether the token is that of the largest logit, and nobody asks for more."""
    return (
        params.temperature == 0
        and params.logprobs is None
        and not params.logit_bias
        and params.repetition_penalty == 1
        and not params.presence_penalty
        and not params.frequency_penalty
        and not params.min_tokens
        and params.watermark is None
    )


def draw_tokens(logits_SV: Tensor, sequences: Rows[Sequence]) -> list[int]:
    """A random token for each row, from the distribution that its parameters leave. On a CPU the kernels do in one
    pass what `probability_weights` and `pick` say."""
    params = [s.request.params for s in sequences]
    places = [uniform(s.request.seed, s.index, s.num_output_tokens) for s in sequences]
    if kernels.can_draw(logits_SV):
        how = [(p.temperature, p.top_k, p.top_p, p.min_p, place) for p, place in zip(params, places, strict=True)]
        return kernels.draw(logits_SV, how)
    return pick(probability_weights(logits_SV, params), places)


def pick(weights_SV: Tensor, places: Rows[float]) -> list[int]:
    """The token at each row's place, in [0, 1), of the cumulative distribution."""
    cumulative_SV = weights_SV.cumsum(-1, dtype=torch.float64)
    total_S1 = cumulative_SV[:, -1:]
    place_S1 = _column(places, total_S1) * total_S1
    place_S1 = torch.minimum(place_S1, torch.nextafter(total_S1, torch.zeros_like(total_S1)))  # rounded up to the end
    return torch.searchsorted(cumulative_SV, place_S1, right=True).squeeze(1).tolist()


def probability_weights(logits_SV: Tensor, params: Rows[SamplingParams]) -> Tensor:
    """Probabilities after temperature and truncation, each row up to a factor. ``(S, V)``."""
    logits_SV = logits_SV - logits_SV.amax(-1, keepdim=True)
    logits_SV /= _column([p.temperature for p in params], logits_SV)
    weights_SV = logits_SV.exp()
    if any(p.top_k > 0 or p.top_p < 1 or p.min_p > 0 for p in params):
        threshold_S1 = _column([p.min_p for p in params], logits_SV).log_()
        rows = [row for row, p in enumerate(params) if p.top_k > 0 or p.top_p < 1]
        if rows:
            rows_R = torch.tensor(rows, device=logits_SV.device)
            cut_R1 = _top_k_top_p(logits_SV[rows_R], [params[row] for row in rows])
            threshold_S1[rows_R] = torch.maximum(threshold_S1[rows_R], cut_R1)
        weights_SV.masked_fill_(logits_SV < threshold_S1, 0)
    return weights_SV


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments and on nothing else."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, index, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _top_k_top_p(logits_RV: Tensor, params: Rows[SamplingParams], num_candidates: int = NUM_CANDIDATES) -> Tensor:
    """The smallest logit each row keeps, ``(R, 1)``. Rows have their largest logit at 0."""
    vocab_size = logits_RV.shape[-1]
    limit_R1 = _column([min(p.top_k, vocab_size) if p.top_k > 0 else vocab_size for p in params], logits_RV)
    num_candidates = min(max(num_candidates, *(p.top_k for p in params)), vocab_size)
    sorted_RC = logits_RV.topk(num_candidates).values
    within_RC = torch.arange(num_candidates, device=logits_RV.device) < limit_R1
    weights_RC = sorted_RC.to(torch.float64).exp() * within_RC
    mass_R1 = torch.where(
        limit_R1 <= num_candidates,
        weights_RC.sum(-1, keepdim=True),
        logits_RV.exp().sum(-1, keepdim=True, dtype=torch.float64),
    )
    top_p_R1 = _column([p.top_p for p in params], mass_R1)
    before_RC = weights_RC.cumsum(-1) - weights_RC
    keep_RC = within_RC & ((before_RC < top_p_R1 * mass_R1) | (top_p_R1 >= 1))
    cut_R1 = sorted_RC.gather(1, keep_RC.sum(-1, keepdim=True) - 1)
    unfinished = (keep_RC[:, -1] & (limit_R1[:, 0] > num_candidates)).nonzero()[:, 0]
    if len(unfinished):
        more = [params[row] for row in unfinished.tolist()]
        cut_R1[unfinished] = _top_k_top_p(logits_RV[unfinished], more, 16 * num_candidates)
    return cut_R1


def adjust(logits_V: Tensor, sequence: Sequence) -> None:
    """Logit bias, penalties, ``min_tokens`` and watermark of one row, in place."""
    request, params = sequence.request, sequence.request.params
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits_V.device)
        logits_V[ids] += torch.tensor(list(params.logit_bias.values()), dtype=logits_V.dtype, device=logits_V.device)
    if params.repetition_penalty != 1:
        seen = torch.tensor(sequence.token_ids[request.num_virtual_tokens :], device=logits_V.device)
        seen_logits = logits_V[seen]
        factor = torch.where(seen_logits > 0, 1 / params.repetition_penalty, params.repetition_penalty)
        logits_V[seen] = seen_logits * factor
    if (params.presence_penalty or params.frequency_penalty) and sequence.num_output_tokens:
        output = torch.tensor(sequence.token_ids[len(request.prompt_token_ids) :], device=logits_V.device)
        ids, counts = output.unique(return_counts=True)
        logits_V[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if sequence.num_output_tokens < params.min_tokens and request.end_token_ids:
        ids = torch.tensor(list(request.end_token_ids), device=logits_V.device)
        ends = logits_V[ids]
        logits_V[ids] = float("-inf")
        if sequence.constraint is not None and logits_V.isneginf().all():  # the grammar allows nothing else
            logits_V[ids] = ends
    if params.watermark is not None:
        add_bias(logits_V, sequence.token_ids[-1], params.watermark)


def _with_logprobs(token: int, logprobs_V: Tensor, sequence: Sequence) -> Sampled:
    num_top = sequence.request.params.logprobs or 0
    values, ids = logprobs_V.topk(min(num_top, len(logprobs_V)))
    return Sampled(token, logprobs_V[token].item(), list(zip(ids.tolist(), values.tolist(), strict=True)))


def _column(values: Rows[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
