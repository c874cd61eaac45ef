"""`optimise_mixture`: weights for a corpus's sources, by small models that learn it. The rules: `wootz.data.mixing`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.core.errors import ConfigError
from wootz.core.progress import SILENT, Progress
from wootz.data.batch import IGNORED, Batch
from wootz.data.mixing import DoReMi, OnlineMixing
from wootz.data.packing import PackedBatches, Row
from wootz.data.token_store import TokenStore
from wootz.models import Decoder, PackedContext
from wootz.training.fit import FitConfig, fit
from wootz.training.studies.positions import Size, build

Method = Literal["doremi", "online"]


@dataclass
class FoundMixture:
    """The weights to train with, how they came about, and the last losses in nats per token."""

    weights: dict[str, float]
    trajectory: list[dict[str, float]] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)


def optimise_mixture(
    stores: Mapping[str, TokenStore],
    prior: Mapping[str, float] | None = None,
    *,
    method: Method = "doremi",
    size: Size = Size(),
    seed: int = 0,
    eta: float = 1.0,
    progress: Progress = SILENT,
) -> FoundMixture:
    """``size`` says how small the models are, how long they learn and from how large batches. ``prior`` is where the
    search starts and, for DoReMi, what the reference learns from; all sources alike, if it is left out."""
    if len(stores) < 2:
        raise ConfigError("a mixture has two sources at least")
    prior = prior or dict.fromkeys(stores, 1.0)
    vocab_size = next(iter(stores.values())).vocab_size
    progress.set_total(size.steps * (2 if method == "doremi" else 1))

    def model() -> Decoder:
        torch.manual_seed(seed)
        return build(size, vocab_size=vocab_size, max_position_embeddings=size.length)

    def batches(weights: Mapping[str, float]) -> PackedBatches:
        return PackedBatches(stores, weights, seq_len=size.length, batch_size=size.batch_size, seed=seed)

    config = FitConfig(steps=size.steps)
    if method == "online":
        return _online(model(), batches(prior), OnlineMixing(prior), config, progress)
    reference = model()
    fit(reference, batches(prior), config, progress=progress)
    uniform = batches(dict.fromkeys(stores, 1.0))
    return _doremi(model(), reference, uniform, DoReMi(prior, eta=eta), config, progress)


def _doremi(
    proxy: Decoder, reference: Decoder, batches: PackedBatches, rule: DoReMi, config: FitConfig, progress: Progress
) -> FoundMixture:
    """Sources are read alike, and the proxy's losses on them weighted."""
    found, reading = FoundMixture({}), _Reading(batches)

    def weighted_loss(model: Decoder, batch: Batch) -> Tensor:
        losses = token_losses(model, batch)
        with torch.no_grad():
            known = token_losses(reference, batch)
        of_source = reading.places(batch)
        excess = {name: (losses[at] - known[at]).detach().clamp(min=0).mean().item() for name, at in of_source.items()}
        weights = rule.update(excess)
        found.trajectory.append(weights)
        found.losses |= {name: losses[at].mean().item() for name, at in of_source.items()}
        parts = [weights[name] * losses[at].mean() for name, at in of_source.items()]
        return torch.stack(parts).sum()

    fit(proxy, reading, config, loss_of=weighted_loss, progress=progress)
    found.weights = rule.mean
    return found


def _online(
    model: Decoder, batches: PackedBatches, rule: OnlineMixing, config: FitConfig, progress: Progress
) -> FoundMixture:
    found, reading = FoundMixture({}), _Reading(batches)

    def observed_loss(model: Decoder, batch: Batch) -> Tensor:
        losses = token_losses(model, batch)
        seen = {name: losses[at].mean().item() for name, at in reading.places(batch).items()}
        found.losses |= seen
        weights = rule.update(seen)
        found.trajectory.append(weights)
        batches.mixture.set_weights(weights)
        return losses.mean()

    fit(model, reading, config, loss_of=observed_loss, progress=progress)
    found.weights = rule.weights
    return found


def token_losses(model: Decoder, batch: Batch) -> Tensor:
    """Cross-entropy ``(N,)`` in nats at every label that is asked, row after row."""
    labels_T = batch.labels_BT.flatten()
    asked_T = labels_T != IGNORED
    hidden_TD = model(batch.tokens_BT.flatten(), batch.positions_T, PackedContext(batch.lengths))
    return F.cross_entropy(model.unembed(hidden_TD[asked_T]), labels_T[asked_T], reduction="none")


class _Reading(Iterator[Batch]):
    """Batches, and which source each of their rows is of."""

    def __init__(self, batches: PackedBatches) -> None:
        self._batches, self._rows = batches, list[Row]()

    def __next__(self) -> Batch:
        self._rows = self._batches.next_rows()
        return self._batches.batch_of(self._rows)

    def places(self, batch: Batch) -> dict[str, Tensor]:
        """Of the last batch: which of its asked labels belong to each source."""
        asked_BT = batch.labels_BT != IGNORED
        found = {}
        for name in {row.source: None for row in self._rows}:
            of_it_B = torch.tensor([row.source == name for row in self._rows])
            found[name] = of_it_B[:, None].expand_as(asked_BT)[asked_BT]
        return found
