"""Training draft heads on a frozen model, and a small model as a draft for a large one.

The teacher is the model itself: a head's loss is its cross-entropy against the probabilities that the model gives at
the place that the head guesses. So any text will do, the model's own answers best, and nothing has to be labelled.
An eagle head is also held to the model's hidden state (as in arXiv 2401.15077), and is trained on its own output for
one more level, since that is what it reads when it drafts.

A draft model is accepted as often as its probabilities agree with the model's, so that is what `distill` trains: on
text that the model wrote, the divergence between the two (DistillSpec, arXiv 2310.08461).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.core.progress import SILENT, Progress
from wootz.data.batch import Batch
from wootz.engine import Engine, SamplingParams
from wootz.models import Decoder, PackedContext
from wootz.models.draft_heads import DraftHeads
from wootz.models.run import Run
from wootz.training.fit import FitConfig, Fitted, fit

EAGLE_LEVELS = 2
STATE_WEIGHT = 0.1
"""Of the hidden states' smooth L1 distance beside the cross-entropy."""


def train_heads(
    heads: DraftHeads, base: Decoder, batches: Iterator[Batch], config: FitConfig, progress: Progress = SILENT
) -> Fitted:
    """Train ``heads`` in place; ``base`` is not changed. Labels are not looked at."""

    def loss(heads: DraftHeads, batch: Batch) -> Tensor:
        return heads_loss(heads, base, batch.tokens_BT)

    return fit(heads, batches, config, loss_of=loss, progress=progress)


def heads_loss(heads: DraftHeads, base: Decoder, rows_BT: Tensor) -> Tensor:
    """Mean over the levels of the cross-entropy against the base's probabilities, in nats per token."""
    num_rows, length = rows_BT.shape
    run = Run(torch.arange(length, device=rows_BT.device).repeat(num_rows), PackedContext([length] * num_rows))
    with torch.no_grad():
        hidden_TD = base(rows_BT.flatten(), run.positions_T, run.context)
        teacher_BTV = base.unembed(hidden_TD).softmax(-1).unflatten(0, rows_BT.shape)
        embedded_TD = base.embedding(rows_BT.flatten())
    if not heads.is_sequential:
        states = heads.parallel_states(hidden_TD, run)
        return _mean([_cross_entropy(base, states[k], teacher_BTV, ahead=k + 1) for k in range(len(states))])

    def before(level: int, state_TD: Tensor) -> Tensor:
        state_BTD = state_TD.unflatten(0, rows_BT.shape)
        return F.pad(state_BTD, (0, 0, 1, 0))[:, :-1].flatten(0, 1)

    levels = EAGLE_LEVELS if heads.kind == "eagle" else heads.depth
    states = heads.sequential_states(hidden_TD, embedded_TD, run, before, levels)
    losses = [_cross_entropy(base, state_TD, teacher_BTV, ahead=0) for state_TD in states]
    if heads.kind == "eagle":
        losses += [STATE_WEIGHT * F.smooth_l1_loss(state_TD, hidden_TD) for state_TD in states]
    return torch.stack(losses).sum() / len(states)


def distill(
    draft: Decoder, target: Decoder, batches: Iterator[Batch], config: FitConfig, progress: Progress = SILENT
) -> Fitted:
    """Train ``draft`` in place to give the probabilities of ``target`` on these texts. Labels are not looked at."""

    def loss(draft: Decoder, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher_BTV = _logits(target, batch.tokens_BT).softmax(-1)
        return _soft_cross_entropy(_logits(draft, batch.tokens_BT), teacher_BTV)

    return fit(draft, batches, config, loss_of=loss, progress=progress)


def _logits(model: Decoder, rows_BT: Tensor) -> Tensor:
    num_rows, length = rows_BT.shape
    positions_T = torch.arange(length, device=rows_BT.device).repeat(num_rows)
    return model.unembed(model(rows_BT.flatten(), positions_T, PackedContext([length] * num_rows))).unflatten(
        0, rows_BT.shape
    )


def _cross_entropy(base: Decoder, state_TD: Tensor, teacher_BTV: Tensor, *, ahead: int) -> Tensor:
    """Of states that guess what the base says ``ahead`` places behind them."""
    length = teacher_BTV.shape[1] - ahead
    state_BTD = state_TD.unflatten(0, teacher_BTV.shape[:2])[:, :length]
    logits_BTV = base.unembed(state_BTD.flatten(0, 1)).unflatten(0, state_BTD.shape[:2])
    return _soft_cross_entropy(logits_BTV, teacher_BTV[:, ahead:])


def _soft_cross_entropy(logits_BTV: Tensor, teacher_BTV: Tensor) -> Tensor:
    return -(teacher_BTV * logits_BTV.log_softmax(-1)).sum(-1).mean()


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean()


def own_answers(
    engine: Engine, text_N: Tensor, *, num_rows: int, prompt_length: int, answer_length: int, seed: int = 0
) -> Tensor:
    """Rows ``(R, prompt + answer)``: beginnings cut from a text, and how the engine's model goes on, by chance."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text_N) - prompt_length, (num_rows,), generator=generator).tolist()
    prompts = [text_N[start : start + prompt_length].tolist() for start in starts]
    params = SamplingParams(max_tokens=answer_length, ignore_eos=True, seed=seed)
    answers = engine.generate(prompts, params, progress=True)
    return torch.tensor([[*prompt, *answer.token_ids] for prompt, answer in zip(prompts, answers, strict=True)])


def batches_of(rows_RT: Tensor, batch_size: int, seed: int = 0) -> Iterator[Batch]:
    """Rows at random, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield Batch.of(rows_RT[torch.randint(len(rows_RT), (batch_size,), generator=generator)])
