"""Phases of one pretraining: short rows first, long ones late; a broad mixture first, the best text last.

A phase has its share of all tokens. Where its rows are longer there are fewer of them, so that each step reads about as
many tokens, and rotary positions are stretched, in one of two ways (``pretrain.longer_rows``):

- ``base``: the base grows as NTK-aware scaling has it, ``base * (length / first length) ** (d / (d - 2))``, for the
  slowest pair of dimensions to turn over the longer rows exactly as far as it did over the first ones;
- ``yarn`` (arXiv 2309.00071): pairs that turned often within the first rows are left alone, slow ones are slowed down
  by ``length / first length``, and scores are sharpened a little. It asks for fewer steps at the new length.

A model that the run goes on from counts with the length that it was made for: up to that, its positions stay. Rows of
all phases are read from the same text. An anneal is a phase: the last share, other weights, a lower rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from wootz.core.errors import ConfigError
from wootz.data.batch import Batch, Batches
from wootz.models.decoder import DecoderConfig
from wootz.models.model_folder import read_config as read_model_config
from wootz.models.positions.extension import extend
from wootz.models.positions.rotary import Rotary, RotaryConfig
from wootz.models.positions.scaling import YarnScaling
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
    rotary: RotaryConfig | None
    """None: as the model has its positions."""

    @property
    def end(self) -> int:
        return self.first_step + self.num_steps


def parts(recipe: Recipe) -> list[Part]:
    """The whole run is one phase if the recipe names none. Raises `ConfigError` for rows that no batch holds, or for
    which a model's positions cannot be stretched."""
    dial, model = recipe.dial, recipe.model
    first_rotary, trained_length = first_positions(recipe)
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
        if first_rotary is None and context > trained_length:
            raise ConfigError(
                f"phase {phase.name}: rows of {context:,} are longer than the {trained_length:,} that "
                f"{recipe.pretrain.start_from} was made for, and its positions cannot be stretched",
                hint="only plain rotary positions can be",
            )
        share += phase.share
        first = found[-1].end if found else 0
        rotary = first_rotary and stretched(first_rotary, trained_length, context, recipe.pretrain.longer_rows)
        found.append(Part(phase, first, round(share * dial.steps) - first, context, rows, rotary))
    return found


def first_positions(recipe: Recipe) -> tuple[RotaryConfig | None, int]:
    """The model's before any phase, None if they cannot be stretched, and the length of rows they are meant for."""
    if (folder := recipe.pretrain.start_from) is None:
        dial, model = recipe.dial, recipe.model
        return RotaryConfig(dial.hidden_size // dial.num_heads, model.rope_base), model.context
    config = read_model_config(folder)
    assert isinstance(config, DecoderConfig)
    rotaries = {getattr(layer.mixer, "rotary", None) for layer in config.layers}
    rotary = rotaries.pop()
    plain = not rotaries and rotary is not None and rotary.scaling is None
    return rotary if plain else None, config.max_position_embeddings


def stretched(rotary: RotaryConfig, trained_length: int, length: int, how: Literal["base", "yarn"]) -> RotaryConfig:
    """For rows of ``length``. No model is unlearned what it can: shorter rows change nothing."""
    factor = length / trained_length
    if factor <= 1:
        return rotary
    if how == "yarn":
        return replace(rotary, scaling=YarnScaling(factor, trained_length))
    return replace(rotary, theta=rope_base(rotary.theta, factor, rotary.dim))


def rope_base(base: float, factor: float, dim: int) -> float:
    return base * factor ** (dim / (dim - 2))


def set_positions(model: nn.Module, config: RotaryConfig) -> None:
    for module in model.modules():
        rotary = getattr(module, "rotary", None)
        if isinstance(rotary, Rotary) and rotary.config != config:
            setattr(module, "rotary", Rotary(config).to(rotary.frequencies.device))  # noqa: B010


def finished_config(raw: dict[str, Any], last: Part, trained_length: int) -> dict[str, Any]:
    """A model's ``config.json``, with the positions of the last phase."""
    raw = raw | {"max_position_embeddings": max(last.context, trained_length)}
    if last.rotary is None:
        return raw
    if isinstance(yarn := last.rotary.scaling, YarnScaling):
        return extend(raw | {"max_position_embeddings": trained_length}, "yarn", yarn.factor)
    if "rope_parameters" in raw:
        return raw | {"rope_parameters": raw["rope_parameters"] | {"rope_theta": last.rotary.theta}}
    return raw | {"rope_theta": last.rotary.theta}


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
        if self.part.rotary is not None:
            set_positions(trainer.model, self.part.rotary)

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
