"""Pipeline parallelism by `torch.distributed.pipelining`: a range of layers on each stage, micro-batches that follow
each other through them, in GPipe's order (arXiv 1811.06965: all forward, then all backward) or one forward, one
backward (1F1B, arXiv 2104.04473: as fast, with activations of ``stages`` micro-batches at most and not of all).

The embedding is on the first stage, the last norm and the head are on the last, where the loss is. Every stage is given
the batch's positions, from which it reads how documents are packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from wootz.core.errors import ConfigError
from wootz.data.batch import IGNORED, Batch
from wootz.models.blocks.rwkv7 import TimeMix7
from wootz.models.blocks.shared_block import SharedBlock
from wootz.models.context import PackedContext
from wootz.models.decoder import Decoder, Layer
from wootz.models.parallel.pipeline import Elsewhere, stage_layers
from wootz.models.run import Run
from wootz.training.parallel.context import GatheredKeys, SpreadText
from wootz.training.parallel.layout import Mesh


class Stage(nn.Module):
    """What one rank of a pipeline computes: from tokens or hidden states to hidden states.

    The layers that are left keep their numbers, so parameters have the names they have on one rank.
    """

    def __init__(self, model: Decoder, stage: int, num_stages: int, spread: SpreadText | None) -> None:
        super().__init__()
        _check(model, num_stages)
        own = _shares(model, num_stages)[stage]
        for number in range(len(model.layers)):
            if number not in own:
                model.layers[number] = Elsewhere()
        self.is_first, self.is_last = stage == 0, stage == num_stages - 1
        if not self.is_first:
            model.embedding = type(model.embedding).from_pretrained(model.embedding.weight.detach()[:0])
            model.embedding_norm = model.embedding_positions = None
        if not self.is_last:
            model.norm = None
            model.head = Elsewhere()  # pyright: ignore[reportAttributeAccessIssue]
        self.model, self.spread = model, spread

    def forward(self, x: Tensor, positions_BT: Tensor) -> Tensor:
        """``x`` are token ids ``(B, T)`` on the first stage, hidden states ``(T, D)`` of this rank's tokens on others;
        the last gives those of all tokens, of which some may be zeros (`SpreadText`)."""
        positions_T = positions_BT.flatten()
        starts = (positions_T == 0).nonzero().flatten().tolist()
        lengths = [end - start for start, end in zip(starts, [*starts[1:], len(positions_T)], strict=True)]
        context: PackedContext | GatheredKeys = PackedContext(lengths)
        own = slice(None)
        if self.spread is not None:
            own = self.spread.own(len(positions_T)).to(x.device)
            context = GatheredKeys(lengths, own, self.spread.group)
        run = Run(positions_T[own], context)
        x_TD = self.model.embed(x.flatten()[own], run.positions_T) if self.is_first else x
        for layer in self.model.layers:
            if isinstance(layer, Layer):
                x_TD = layer(x_TD, run)
        if self.is_last and self.model.norm is not None:
            x_TD = self.model.norm(x_TD)
        return self.spread.placed(x_TD) if self.is_last and self.spread is not None else x_TD


def _shares(model: Decoder, num_stages: int) -> list[range]:
    """`stage_layers`, turned around: the last stage, which has the head, gets the smaller share."""
    total = len(model.layers)
    return [range(total - share.stop, total - share.start) for share in reversed(stage_layers(total, num_stages))]


def _check(model: Decoder, num_stages: int) -> None:
    if len(model.layers) < num_stages:
        raise ConfigError(f"{len(model.layers)} layers do not make {num_stages} stages")
    if model.config.tie_embeddings:
        raise ConfigError("a tied head cannot be on another stage than the embedding", hint="untie it, or use shard")
    if any(isinstance(module, TimeMix7 | SharedBlock) for module in model.modules()):
        raise ConfigError(f'the layers of "{model.config.family}" share more than their stream: it makes no pipeline')


def weighed(objective: Callable[..., Tensor], model: Any, batch: Batch, num_asked: float) -> Tensor:
    """The objective by the batch's share of all labels. Without any, a zero that the backward pass still runs through:
    other ranks wait for this one."""
    own = int((batch.labels_BT != IGNORED).sum())
    if own:
        return objective(model, batch) * (own / num_asked)
    return model(batch.tokens_BT.flatten(), batch.positions_T, PackedContext(batch.lengths)).sum() * 0.0


class HiddenStates:
    """Stands where an objective calls a model: what the stages before have computed, and the head."""

    def __init__(self, model: Decoder, hidden_TD: Tensor) -> None:
        self.unembed, self._hidden_TD = model.unembed, hidden_TD
        self.config, self.head = model.config, model.head

    def __call__(self, token_ids_T: Tensor, positions_T: Tensor, context: PackedContext) -> Tensor:
        return self._hidden_TD


class Pipeline:
    """Forward and backward of one batch through all stages."""

    def __init__(self, stage: Stage, mesh: Mesh, objective: Callable[..., Tensor]) -> None:
        self.stage, self.mesh, self.objective = stage, mesh, objective
        self._schedules: dict[tuple[int, int], ScheduleGPipe | Schedule1F1B] = {}
        self._num_asked = 1.0

    def backward(self, batch: Batch, num_asked: float) -> Tensor:
        """Gradients of the summed loss over ``num_asked`` labels are added up; returns this rank's part of that loss,
        zero on all but the last stage."""
        self._num_asked = num_asked
        positions_BT = batch.positions_T.view_as(batch.tokens_BT)
        schedule = self._schedule(*batch.tokens_BT.shape)
        losses: list[Tensor] = []
        inputs = (batch.tokens_BT,) if self.stage.is_first else ()
        target = batch.labels_BT if self.stage.is_last else None
        schedule.step(*inputs, target=target, losses=losses, return_outputs=False, positions_BT=positions_BT)
        return torch.stack(losses).sum().detach() if losses else torch.zeros((), device=self.mesh.device)

    def _loss(self, hidden_TD: Tensor, labels_BT: Tensor) -> Tensor:
        """Of one micro-batch, weighed by its share of all labels."""
        batch = Batch(labels_BT, labels_BT)
        if self.stage.spread is not None:
            batch = self.stage.spread.asked(batch)
        return weighed(self.objective, HiddenStates(self.stage.model, hidden_TD), batch, self._num_asked)

    def _schedule(self, rows: int, length: int) -> ScheduleGPipe | Schedule1F1B:
        shape = rows, length
        if shape not in self._schedules:
            layout = self.mesh.layout
            number = layout.micro_batches or rows
            if rows % number or (layout.schedule == "1f1b" and number < layout.pipeline):
                raise ConfigError(
                    f"{rows} rows do not make {number} micro-batches for {layout.pipeline} stages",
                    hint="micro_batches must divide a rank's rows, and 1F1B needs one for each stage",
                )
            stage = PipelineStage(
                self.stage,
                self.mesh.rank("pipeline"),
                layout.pipeline,
                self.mesh.device,
                *self._shapes(rows // number, length),
                group=self.mesh["pipeline"].get_group(),
            )
            kind = ScheduleGPipe if layout.schedule == "gpipe" else Schedule1F1B
            self._schedules[shape] = kind(stage, number, loss_fn=self._loss, scale_grads=False)
        return self._schedules[shape]

    def _shapes(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """What a micro-batch looks like when it comes and when it goes, as tensors without storage."""
        layout, model = self.mesh.layout, self.stage.model
        dtype = layout.compute_dtype or next(parameter.dtype for parameter in model.parameters())
        tokens = rows * length
        if tokens % (layout.context * layout.tensor):
            raise ConfigError(f"{tokens} tokens do not divide among {layout.context * layout.tensor} ranks")
        own = torch.empty(
            tokens // layout.context // layout.tensor, model.config.hidden_size, dtype=dtype, device="meta"
        )
        comes = torch.empty(rows, length, dtype=torch.int64, device="meta") if self.stage.is_first else own
        comes = comes if self.stage.is_first else comes.requires_grad_()
        goes = own.new_empty(tokens, own.shape[1]) if self.stage.is_last else own
        return comes, goes.requires_grad_()
