"""Phases of one pretraining: short rows first, long ones late; a broad mixture first, the best text last.

A phase has its share of all tokens. Where its rows are longer there are fewer of them, so that each step reads about as
many tokens, and the base of the rotary positions grows as NTK-aware scaling has it,

    base * (length / first length) ** (d / (d - 2)),

for the slowest pair of dimensions to turn over the longer rows exactly as far as it did over the first ones. Rows of
all phases are read from the same stores. An anneal is a phase: the last share, other weights, a lower rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from wootz.core.errors import ConfigError
from wootz.data.batch import Batch, Batches
from wootz.models.positions.rotary import Rotary
from wootz.training.recipe import Phase, Recipe
from wootz.training.trainer import Callback, Trainer


@dataclass(frozen=True)
class Part:
    """A phase, as steps."""

    phase: Phase
    first_step: int
    num_steps: int
    context: int
    rows: int
    """Of a micro-batch, over all ranks."""
    rope_base: float

    @property
    def end(self) -> int:
        return self.first_step + self.num_steps


def parts(recipe: Recipe) -> list[Part]:
    """The whole run is one phase if the recipe names none."""
    dial, model = recipe.dial, recipe.model
    head_dim = dial.hidden_size // dial.num_heads
    tokens_at_once = dial.micro_batch_rows * model.context * recipe.mesh.data
    found: list[Part] = []
    share = 0.0
    for phase in recipe.pretrain.phases or (Phase(name="all", share=1.0),):
        context = phase.context or (found[-1].context if found else model.context)
        rows = tokens_at_once // context
        if rows < recipe.mesh.data:
            raise ConfigError(
                f"phase {phase.name}: a batch of {tokens_at_once:,} tokens has no row of {context:,} for each process",
                hint="set pretrain.batch_tokens",
            )
        share += phase.share
        first = found[-1].end if found else 0
        base = rope_base(model.rope_base, context / model.context, head_dim)
        found.append(Part(phase, first, round(share * dial.steps) - first, context, rows, base))
    return found


def rope_base(base: float, factor: float, head_dim: int) -> float:
    return base * factor ** (head_dim / (head_dim - 2))


def set_rope_base(model: nn.Module, base: float) -> None:
    for module in model.modules():
        if isinstance(module, Rotary):
            module.config = replace(module.config, theta=base)
            module.frequencies = module.config.frequencies(module.length).to(module.frequencies.device)


class Phases(Callback):
    """Batches of the phase that a step lies in, and, as a callback, its positions and its rate."""

    def __init__(self, parts: list[Part], read: Callable[[Part], Batches]) -> None:
        self.parts, self.read = parts, read
        self._now = 0
        self._batches = read(parts[0])

    @property
    def part(self) -> Part:
        return self.parts[self._now]

    def rate(self, schedule: Callable[[int], float]) -> Callable[[int], float]:
        """``schedule``, each phase at its own share of it."""
        return lambda step: schedule(step) * self._at(step).phase.rate_factor

    def before_step(self, trainer: Trainer) -> None:
        wanted = self.parts.index(self._at(trainer.step))
        if wanted != self._now:
            self._enter(wanted)
            trainer.report(
                f"phase {self.part.phase.name}: rows of {self.part.context:,} tokens from step {trainer.step}"
            )
        set_rope_base(trainer.model, self.part.rope_base)

    def __next__(self) -> Batch:
        return next(self._batches)

    def _at(self, step: int) -> Part:
        return next((part for part in self.parts if step < part.end), self.parts[-1])

    def _enter(self, number: int) -> None:
        self._now, self._batches = number, self.read(self.parts[number])

    def state_dict(self) -> dict[str, Any]:
        return {"phase": self._now, "batches": self._batches.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["phase"] != self._now:
            self._enter(state["phase"])
        self._batches.load_state_dict(state["batches"])
