"""LongRoPE's search (arXiv 2402.13753): a factor for every rotary pair, bred for low loss on long texts.

The first generation holds what rules would do (PI, NTK-aware, YaRN) and mutations of them; each next one keeps the
best, crosses and mutates them. Factors are monotone, as slower pairs need more interpolation, and lie between 1 and the
factor of the whole stretch. With them is bred how many first tokens keep their old angles, to which models attend most
(section 3.1). The seeds are never lost, so the result is no worse than any of them on the texts that it was bred on.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.core.errors import ConfigError
from wootz.models.context import PackedContext
from wootz.models.decoder import Decoder
from wootz.models.positions.rotary import Rotary, RotaryConfig
from wootz.models.positions.scaling import LinearScaling, LongRopeScaling, NTKScaling, RopeScaling, YarnScaling

Factors = tuple[float, ...]
Fitness = Callable[[Factors, int], float]
"""The loss of the model with these factors, and so many first tokens unscaled, on calibration texts of the target
length: lower is better."""


class Member(NamedTuple):
    """Of a generation."""

    factors: Factors
    unscaled_tokens: int


@dataclass(frozen=True)
class SearchResult:
    factors: Factors
    unscaled_tokens: int
    loss: float
    seeds: dict[str, float]
    """What the rules got on the same texts."""
    history: tuple[float, ...]
    """The best loss of each generation; it never rises."""
    evaluations: int


def search(
    config: RotaryConfig,
    trained_length: int,
    target_length: int,
    fitness: Fitness,
    *,
    population: int = 32,
    generations: int = 10,
    parents: int = 8,
    mutation: float = 0.3,
    unscaled_tokens: tuple[int, ...] = (0, 1, 2, 4, 8, 16),
    seed: int = 0,
) -> SearchResult:
    """The best factors found for ``config`` (its own scaling does not count) at ``target_length``.

    Each member is judged once. ``mutation`` is the chance that a pair's factor changes, or the number of first tokens
    that are not scaled, which is one of ``unscaled_tokens``. The seeds scale all.
    """
    if target_length <= trained_length:
        raise ConfigError(f"there is nothing to stretch from {trained_length} to {target_length} tokens")
    if population < 4 or not 1 < parents <= population:
        raise ConfigError("a population has at least 4 members, of which at least 2 are parents")
    rng, longest = random.Random(seed), target_length / trained_length
    losses: dict[Member, float] = {}

    def loss(member: Member) -> float:
        if member not in losses:
            losses[member] = fitness(*member)
        return losses[member]

    def mutated(member: Member) -> Member:
        unscaled = rng.choice(unscaled_tokens) if rng.random() < mutation else member.unscaled_tokens
        return Member(_mutate(member.factors, rng, mutation, longest), unscaled)

    seeds = {name: Member(factors, 0) for name, factors in seed_factors(config, trained_length, longest).items()}
    members = list(seeds.values())
    while len(members) < population:
        members.append(mutated(rng.choice(list(seeds.values()))))
    history = []
    for _ in range(generations):
        members = sorted(members, key=loss)[:parents]
        history.append(loss(members[0]))
        children = []
        while len(children) < population - parents:
            mother, father = rng.sample(members, 2)
            child = Member(_cross(mother.factors, father.factors, rng), rng.choice((mother, father)).unscaled_tokens)
            children.append(mutated(child))
        members += children
    best = min((*members, *seeds.values()), key=loss)
    history.append(loss(best))
    found = {name: loss(member) for name, member in seeds.items()}
    return SearchResult(*best, loss(best), found, tuple(history), len(losses))


def seed_factors(config: RotaryConfig, trained_length: int, factor: float) -> dict[str, Factors]:
    """By how much each rule slows each pair."""
    plain = RotaryConfig(config.dim, config.theta).frequencies()
    rules: dict[str, RopeScaling] = {
        "linear": LinearScaling(factor),
        "ntk": NTKScaling(factor),
        "yarn": YarnScaling(factor, trained_length),
    }
    return {name: _monotone((plain / rule.scale(plain)).tolist(), factor) for name, rule in rules.items()}


def _mutate(factors: Factors, rng: random.Random, chance: float, longest: float) -> Factors:
    """Some factors move by up to a tenth of the range."""
    step = (longest - 1) / 10
    return _monotone([f + rng.uniform(-step, step) if rng.random() < chance else f for f in factors], longest)


def _cross(mother: Factors, father: Factors, rng: random.Random) -> Factors:
    """Pair by pair, one parent's."""
    return tuple(rng.choice(pair) for pair in zip(mother, father, strict=True))


def _monotone(factors: list[float], longest: float) -> Factors:
    """In the allowed range, and never smaller than the one before."""
    kept = torch.tensor(factors, dtype=torch.float64).clamp(1.0, longest).cummax(0).values
    return tuple(kept.tolist())


def loss_with(model: Decoder, rows_BT: Tensor, trained_length: int) -> Fitness:
    """The `Fitness` of a model: its mean loss, in nats per token, on rows of the target length."""
    rotaries = [module for module in model.modules() if isinstance(module, Rotary)]
    if not rotaries:
        raise ConfigError("this model has no rotary positions whose factors could be searched for")
    num_rows, length = rows_BT.shape
    positions_T = torch.arange(length, device=model.device).repeat(num_rows)
    plain = [dataclasses.replace(rotary.config, scaling=None) for rotary in rotaries]

    def use(scaling: RopeScaling | None) -> None:
        for rotary, config in zip(rotaries, plain, strict=True):
            rotary.config = dataclasses.replace(config, scaling=scaling)
            rotary.attention_factor = scaling.attention_factor if scaling else 1.0
            rotary.fix_length(length)

    @torch.no_grad()
    def fitness(factors: Factors, unscaled_tokens: int = 0) -> float:
        stretch = length / trained_length
        use(LongRopeScaling((1.0,) * len(factors), factors, trained_length, stretch, unscaled_tokens=unscaled_tokens))
        try:
            logits_TV = model.unembed(model(rows_BT.flatten(), positions_T, PackedContext([length] * num_rows)))
        finally:
            use(None)
        logits_BTV = logits_TV.unflatten(0, (num_rows, length))
        return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), rows_BT[:, 1:].flatten()).item()

    return fitness
