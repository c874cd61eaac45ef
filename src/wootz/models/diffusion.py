"""Masked discrete diffusion (MDLM, arXiv 2406.07524): a text is written by uncovering it, many tokens at a time.

Forward, each token is replaced by a mask with a probability that grows from 0 to 1 with time t; a mask stays a mask.
The model looks at what is left, in both directions, and says what stood under each mask. Two facts are built in, not
learned: under a mask there is never a mask, and what is not masked stays as it is.

    config = read_config({"model_type": "wootz", "causal": False, "vocab_size": 257, …})   # 256 bytes and the mask
    model = MaskedDiffusion(config.build())
    loss = diffusion_loss(model, rows_BT)                                  # nats per token, an upper bound on the truth
    text_BT = sample(model, model.masks(1, 64), steps=16)                  # 64 tokens, 16 passes

B rows of T tokens; N masked tokens of all rows; V tokens, of which the last one is the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.context import PackedContext
from wootz.models.decoder import Decoder


class MaskedDiffusion(nn.Module):
    """A `Decoder` that looks both ways, read as a denoiser. The last token of its vocabulary is the mask.

    It is not told the time: how much is masked can be seen. Raises ValueError for a model that only looks back.
    """

    def __init__(self, denoiser: Decoder) -> None:
        super().__init__()
        if any(not _looks_both_ways(layer.mixer) for layer in denoiser.config.layers):
            raise ValueError('a masked diffusion model looks both ways: give its config "causal": false')
        self.denoiser = denoiser
        self.mask_id = denoiser.config.vocab_size - 1

    def masks(self, num_rows: int, length: int) -> Tensor:
        """``(B, T)`` of nothing known."""
        return torch.full((num_rows, length), self.mask_id, device=self.denoiser.device)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Log-probabilities ``(N, V)`` of what is under each mask, in the order of ``tokens_BT == mask_id``."""
        logits_NV = self.logits(tokens_BT).clone()
        logits_NV[:, self.mask_id] = -torch.inf
        return logits_NV.log_softmax(-1)

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """The same before they are made probabilities, the mask's among them."""
        num_rows, length = tokens_BT.shape
        positions_T = torch.arange(length, device=tokens_BT.device).repeat(num_rows)
        hidden_TD = self.denoiser(tokens_BT.flatten(), positions_T, PackedContext([length] * num_rows))
        return self.denoiser.unembed(hidden_TD[(tokens_BT == self.mask_id).flatten()])


def _looks_both_ways(mixer: object) -> bool:
    return isinstance(mixer, AttentionConfig) and not mixer.causal


@dataclass(frozen=True)
class Schedule:
    """How much is masked when. The bound does not depend on it in expectation; how noisy its estimate is does."""

    kept: Callable[[Tensor], Tensor]
    """alpha(t): a token's chance to be still there, from 1 at t = 0 down to 0 at t = 1."""
    weight: Callable[[Tensor], Tensor]
    """``-alpha'(t) / (1 - alpha(t))``: what a masked token's cross-entropy counts at time t."""


LINEAR = Schedule(kept=lambda t: 1 - t, weight=lambda t: 1 / t)
COSINE = Schedule(
    kept=lambda t: 1 - torch.cos(torch.pi / 2 * (1 - t)),
    weight=lambda t: torch.pi / 2 * torch.tan(torch.pi / 2 * (1 - t)),
)
EARLIEST = 1e-3
"""Times start here: earlier, next to nothing is masked and counts next to infinitely much."""


def diffusion_loss(
    model: MaskedDiffusion, rows_BT: Tensor, schedule: Schedule = LINEAR, generator: torch.Generator | None = None
) -> Tensor:
    """One estimate of the evidence bound on ``-log p(rows)``, in nats per token: cross-entropy under the masks,
    weighted by the time at which they were drawn. Rows have times evenly apart, which makes the estimate less noisy."""
    time_B1 = times(len(rows_BT), rows_BT.device, generator)
    masked_BT = hide(rows_BT, model.mask_id, schedule.kept(time_B1), generator)
    is_masked_BT = masked_BT == model.mask_id
    losses_N = F.nll_loss(model(masked_BT), rows_BT[is_masked_BT], reduction="none")
    weights_N = schedule.weight(time_B1).expand_as(rows_BT)[is_masked_BT]
    return (weights_N * losses_N).sum() / rows_BT.numel()


def likelihood_bound(
    model: MaskedDiffusion, rows_BT: Tensor, draws: int = 16, generator: torch.Generator | None = None
) -> Tensor:
    """The same bound for measuring: each row's estimate ``(B,)`` in nats per token, unbiased and of small variance.

    Integrated over time, the bound depends only on *how many* tokens are masked: with n of T drawn evenly from 1 … T,
    they count T / n each (arXiv 2502.09992, equation 6).
    """
    length, total_B = rows_BT.shape[1], torch.zeros(len(rows_BT), device=rows_BT.device)
    for _ in range(draws):
        num_B1 = torch.randint(1, length + 1, (len(rows_BT), 1), generator=generator).to(rows_BT.device)
        is_masked_BT = _random(rows_BT, generator).argsort(-1).argsort(-1) < num_B1
        log_probs_NV = model(rows_BT.masked_fill(is_masked_BT, model.mask_id))
        losses_BT = torch.zeros(rows_BT.shape, device=rows_BT.device, dtype=log_probs_NV.dtype)
        losses_BT[is_masked_BT] = F.nll_loss(log_probs_NV, rows_BT[is_masked_BT], reduction="none")
        total_B = total_B + (losses_BT / num_B1).sum(-1)
    return total_B / draws


def score_entropy_loss(
    model: MaskedDiffusion, rows_BT: Tensor, schedule: Schedule = LINEAR, generator: torch.Generator | None = None
) -> Tensor:
    """SEDD's loss (arXiv 2310.16834), for reference: also a bound in nats per token, of a model that gives *ratios*.

    The logits are ``log s / r``: how much likelier the text becomes with token y under the mask than with the mask left
    on, against ``r = alpha / (1 - alpha)``, the ratio if y were certain. They need not be normalised. Where they are,
    this is `diffusion_loss`, term by term.
    """
    time_B1 = times(len(rows_BT), rows_BT.device, generator)
    kept_B1 = schedule.kept(time_B1)
    masked_BT = hide(rows_BT, model.mask_id, kept_B1, generator)
    is_masked_BT = masked_BT == model.mask_id
    kept_N, weights_N = (x_B1.expand_as(rows_BT)[is_masked_BT] for x_B1 in (kept_B1, schedule.weight(time_B1)))
    ratio_N = kept_N / (1 - kept_N)
    log_score_NV = model.logits(masked_BT)[:, : model.mask_id] + ratio_N.log()[:, None]
    entropy_N = score_entropy(log_score_NV, rows_BT[is_masked_BT], ratio_N)
    # Time enters as d(sigma) = -alpha' / alpha, which is the weight of `diffusion_loss` over r.
    return (weights_N / ratio_N * entropy_N).sum() / rows_BT.numel()


def score_entropy(log_score_NV: Tensor, tokens_N: Tensor, ratio_N: Tensor) -> Tensor:
    """``sum(s) - r log s[token] + r (log r - 1)`` for each masked token ``(N,)``: zero where s is r at the token and 0
    elsewhere, and positive otherwise."""
    log_s_N = log_score_NV.gather(-1, tokens_N[:, None]).squeeze(-1)
    return log_score_NV.exp().sum(-1) - ratio_N * log_s_N + ratio_N * (ratio_N.log() - 1)


def times(num_rows: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """One time in (0, 1) for each row ``(B, 1)``: one random offset, then evenly apart."""
    offset = torch.rand(1, generator=generator, device=generator.device if generator else device).to(device)
    spread_B1 = ((offset + torch.arange(num_rows, device=device)) / num_rows)[:, None]
    return EARLIEST + (1 - EARLIEST) * spread_B1


def hide(tokens_BT: Tensor, mask_id: int, kept_B1: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The forward process at once: each token stays with its row's probability, and is masked otherwise."""
    return tokens_BT.masked_fill(_random(tokens_BT, generator) >= kept_B1, mask_id)


@torch.inference_mode()
def sample(
    model: MaskedDiffusion,
    tokens_BT: Tensor,
    *,
    steps: int,
    order: Literal["confidence", "random"] = "confidence",
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Uncover every mask in ``tokens_BT`` in exactly ``steps`` passes of the model; what is not masked never changes.

    Each pass draws a token for every mask and keeps an even share of them: those it was surest of, or, in "random"
    order, any. One mask per pass in random order is an exact sample; the fewer passes, the more tokens are drawn
    without knowing of each other. Temperature 0 takes the likeliest. Raises ValueError unless ``steps`` is positive.
    """
    if steps < 1:
        raise ValueError(f"uncovering takes at least one step, not {steps}")
    tokens_BT = tokens_BT.clone()
    num_masks_B = (tokens_BT == model.mask_id).sum(-1)
    for step in range(1, steps + 1):
        is_masked_BT = tokens_BT == model.mask_id
        log_probs_NV = model(tokens_BT)
        drawn_N = _draw(log_probs_NV, temperature, generator)
        rank_BT = torch.full(tokens_BT.shape, -torch.inf, device=tokens_BT.device, dtype=log_probs_NV.dtype)
        if order == "confidence":
            rank_BT[is_masked_BT] = log_probs_NV.gather(-1, drawn_N[:, None]).squeeze(-1)
        else:
            rank_BT[is_masked_BT] = _random(tokens_BT, generator)[is_masked_BT].to(rank_BT.dtype)
        still_masked_B = num_masks_B * (steps - step) // steps
        num_now_B1 = (is_masked_BT.sum(-1) - still_masked_B)[:, None]
        uncovered_BT = (rank_BT.argsort(dim=-1, descending=True, stable=True).argsort(-1) < num_now_B1) & is_masked_BT
        tokens_BT[uncovered_BT] = drawn_N[uncovered_BT[is_masked_BT]]
    return tokens_BT


def _draw(log_probs_NV: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return log_probs_NV.argmax(-1)
    if not len(log_probs_NV):
        return log_probs_NV.new_zeros(0, dtype=torch.int64)
    return torch.multinomial((log_probs_NV / temperature).softmax(-1), 1, generator=generator).squeeze(-1)


def _random(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers of this shape. A generator lives on a device of its own, usually the CPU."""
    device = generator.device if generator else like.device
    return torch.rand(like.shape, generator=generator, device=device).to(like.device)
