"""`fit`: a model learns to predict the next token of packed documents, or by another loss. Small, and all that a study
needs.

One step is a batch of token rows of equal length. The learning rate rises over ``warmup`` steps and then falls along a
cosine to a tenth; gradients are clipped to norm 1; matrices decay, vectors do not (GPT-3's recipe, arXiv 2005.14165).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.core.progress import SILENT, Progress
from wootz.data.batch import IGNORED, Batch, Batches
from wootz.models import Decoder, PackedContext
from wootz.training.optimizers import OptimizerConfig, build_optimizer
from wootz.training.schedules import ScheduleConfig, build_schedule
from wootz.training.trainer import AfterStep, Trainer, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    steps: int
    learning_rate: float = 3e-3
    warmup: int = 20
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0

    def share_at(self, step: int) -> float:
        """Of the learning rate. A run that is shorter than the warmup is all warmup."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return build_schedule(ScheduleConfig(name="cosine", warmup=self.warmup), self.steps)(step)


@dataclass
class Fitted:
    losses: list[float] = field(default_factory=list)
    """In nats per token, one per step."""


def language_loss(model: Decoder, batch: Batch) -> Tensor:
    """Mean cross-entropy, in nats, over the labels that are asked."""
    logits_NV = predictions(model, batch)
    return F.cross_entropy(logits_NV, batch.labels_BT.flatten()[_asked(batch)])


def fit(
    model: nn.Module,
    batches: Iterator[Batch],
    config: FitConfig,
    *,
    loss_of: Callable[[Any, Batch], Tensor] = language_loss,
    groups: list[dict[str, Any]] | None = None,
    extra_loss: Callable[[], Tensor] | None = None,
    after_step: Callable[[int], None] | None = None,
    progress: Progress = SILENT,
) -> Fitted:
    """Train ``model`` in place by ``loss_of(model, batch)``, in nats per token, in ``groups`` of
    parameters with an ``lr_scale`` and a ``weight_decay`` each, if they are given. ``extra_loss`` is added to each
    step's loss (experts' balance, say); ``after_step`` is called with the step's number once its update is made. Raises
    FloatingPointError if the loss is not a number."""
    settings = OptimizerConfig(learning_rate=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    fitted = Fitted()

    def objective(model: Any, batch: Batch) -> Tensor:
        loss = loss_of(model, batch)
        fitted.losses.append(loss.item())
        return loss if extra_loss is None else loss + extra_loss()

    listeners = [AfterStep(then) for then in (after_step, lambda step: progress.advance()) if then is not None]
    Trainer(
        model,
        build_optimizer(model if groups is None else groups, settings),
        config.share_at,
        cast(Batches, batches),  # never taken up again, so it need not know where it stands
        TrainerConfig(steps=config.steps, max_grad_norm=config.max_grad_norm),
        objective=objective,
        callbacks=listeners,
    ).run()
    return fitted


@torch.inference_mode()
def accuracy(model: Decoder, batch: Batch) -> float:
    """The share of asked labels that are the likeliest token."""
    logits_NV = predictions(model, batch)
    return (logits_NV.argmax(-1) == batch.labels_BT.flatten()[_asked(batch)]).float().mean().item()


@torch.inference_mode()
def losses_by_position(model: Decoder, rows_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats at each position ``(T - 1,)`` of rows read from their start."""
    batch = Batch.of(rows_BT)
    losses = F.cross_entropy(predictions(model, batch), batch.labels_BT.flatten(), reduction="none")
    return losses.view(batch.labels_BT.shape).mean(0)


def predictions(model: Decoder, batch: Batch) -> Tensor:
    """Logits ``(N, V)`` where a label is asked, row by row; the others are never unembedded."""
    hidden_TD = model(batch.tokens_BT.flatten(), batch.positions_T, PackedContext(batch.lengths))
    return model.unembed(hidden_TD[_asked(batch)])


def _asked(batch: Batch) -> Tensor:
    return batch.labels_BT.flatten() != IGNORED
