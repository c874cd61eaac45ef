"""`build_optimizer`: from a config to any optimiser, over a model or over groups of parameters.

What all have in common is decided here: matrices decay and vectors (norms, biases) do not; every group knows its
``lr_scale`` (layer-wise rates, muP), and `set_rate` is the one way to set rates, so that no schedule can flatten them;
where decay acts is a choice of its own; half-precision weights get float32 masters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wootz.core.errors import ConfigError
from wootz.training.optimizers.adamw_8bit import AdamW8bit
from wootz.training.optimizers.algorithms import Decay, algorithm
from wootz.training.optimizers.lion import Lion
from wootz.training.optimizers.pairs import MasterWeights, MuonWithAdamW
from wootz.training.optimizers.rate_free import DAdaptAdam, Prodigy
from wootz.training.optimizers.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from wootz.training.optimizers.sophia import Sophia


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """None: the algorithm's own default (`ALGORITHMS`)."""

    name: str = "adamw"
    learning_rate: float = 3e-4
    """The peak; for Prodigy and D-Adaptation a factor (1.0)."""
    betas: tuple[float, float] | None = None
    momentum: float | None = None
    eps: float | None = None
    weight_decay: float | None = None
    """Of matrices and what has more dimensions."""
    decay: Decay | None = None
    layer_decay: float = 1.0
    """Each layer's rate is this times that of the layer above it; embeddings lie below the first, the head is not
    scaled. 0.8 is usual for fine-tuning (arXiv 1801.06146, 2003.10555)."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Passed to the optimiser's class as it is: ``gamma`` for Sophia, ``block_size`` for 8-bit AdamW."""


Groups = list[dict[str, Any]]


def build_optimizer(
    model_or_groups: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Groups may say ``lr_scale`` and ``weight_decay`` for themselves. Raises ConfigError for settings that the
    algorithm has no place for."""
    facts = algorithm(config.name)
    if config.learning_rate <= 0:
        raise ConfigError(f"a learning rate is above 0, not {config.learning_rate}")
    decay = config.decay or facts.decay
    if decay == "l2" and config.name not in _L2_NATIVE | {"adamw"}:
        raise ConfigError(f"{config.name} has no L2 decay", hint='decay = "decoupled" or "independent"')
    if decay == "independent" and config.name in ("prodigy", "d-adaptation"):
        raise ConfigError(f"{config.name} finds its own rate, so decay cannot be independent of it")
    groups = parameter_groups(model_or_groups, config)
    if not any(group["params"] for group in groups):
        raise ConfigError("there is nothing to train: no parameter requires gradients")
    for group in groups:
        group["lr"] = config.learning_rate * group["lr_scale"]
        if decay == "independent":
            group["weight_decay"] /= group["lr"]
        if decay != "l2" and config.name in _L2_NATIVE - {"adam"}:
            group["decoupled_decay"], group["weight_decay"] = group["weight_decay"], 0.0
    construct = _constructor(config, decay)
    try:
        if any(parameter.element_size() < 4 for group in groups for parameter in group["params"]):
            return MasterWeights(groups, construct)
        return construct(groups)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimiser {config.name}: {error}") from None


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The peak rate times the schedule's multiplier; each group gets its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)


@contextmanager
def evaluation_mode(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """While the block runs, the weights are those to judge and to save: Schedule-Free's average. Nothing for others."""
    averaging: Any = optimizer if hasattr(optimizer, "eval") else None
    if averaging is None:
        yield
        return
    averaging.eval()
    try:
        yield
    finally:
        averaging.train()


# --- groups -----------------------------------------------------------------------------------------------------------


def parameter_groups(
    model_or_groups: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]], config: OptimizerConfig
) -> Groups:
    """Every parameter that requires gradients, once, in groups of equal ``lr_scale``, ``weight_decay`` and, for Muon,
    ``matrices`` (those that are no embedding and no head)."""
    facts = algorithm(config.name)
    weight_decay = facts.weight_decay if config.weight_decay is None else config.weight_decay
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for parameter, given, scale, hidden in _parameters(model_or_groups, config.layer_decay):
        own = given.get("weight_decay", weight_decay if parameter.ndim > 1 else 0.0)
        settings = {**given, "lr_scale": given.get("lr_scale", 1.0) * scale, "weight_decay": own}
        if config.name == "muon":
            settings["matrices"] = given.get("matrices", hidden and parameter.ndim == 2)
        group = groups.setdefault(tuple(settings.items()), {**settings, "params": []})
        group["params"].append(parameter)
    return list(groups.values())


def _parameters(
    model_or_groups: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]], layer_decay: float
) -> Iterator[tuple[Tensor, dict[str, Any], float, bool]]:
    """Each with what its group says, its layer's scale, and whether it is neither embedding nor head."""
    if isinstance(model_or_groups, nn.Module):
        scales = layer_scales(model_or_groups, layer_decay)
        embeddings = {id(part.weight) for part in model_or_groups.modules() if isinstance(part, nn.Embedding)}
        for name, parameter in model_or_groups.named_parameters():
            if parameter.requires_grad:
                hidden = id(parameter) not in embeddings and not re.search(r"embed|head", name)
                yield parameter, {}, scales[name], hidden
        return
    if layer_decay != 1.0:
        raise ConfigError("layer-wise rates need the model, not groups of parameters")
    for group in model_or_groups:
        given = dict(group) if isinstance(group, dict) else {"params": [group]}
        parameters = given.pop("params")
        for parameter in [parameters] if isinstance(parameters, Tensor) else parameters:
            if parameter.requires_grad:
                yield parameter, given, 1.0, True


def layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """``layer_decay ** (layers above)`` for every parameter by name. Embeddings count as the layer below the first;
    what is in no layer and no embedding (final norm, head) is not scaled."""
    numbers = {name: _layer_of(name) for name, _ in model.named_parameters()}
    num_layers = max((number for number in numbers.values() if number is not None), default=-1) + 1
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    scales = {}
    for name, parameter in model.named_parameters():
        number = -1 if id(parameter) in embeddings or "embed" in name else numbers[name]
        scales[name] = 1.0 if number is None else layer_decay ** (num_layers - 1 - number)
    return scales


def _layer_of(name: str) -> int | None:
    found = re.search(r"(?:^|\.)(?:layers?|blocks|h)\.(\d+)\.", name)
    return int(found[1]) if found else None


# --- constructors -----------------------------------------------------------------------------------------------------

_L2_NATIVE = frozenset({"sgd", "momentum", "nag", "adagrad", "rmsprop", "adam"})


def _constructor(config: OptimizerConfig, decay: Decay) -> Callable[[Groups], torch.optim.Optimizer]:
    facts = algorithm(config.name)
    betas = config.betas or facts.betas
    eps = facts.eps if config.eps is None else config.eps
    momentum = facts.momentum if config.momentum is None else config.momentum
    adam = torch.optim.Adam if decay == "l2" else torch.optim.AdamW
    own: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
        "sgd": (torch.optim.SGD, {"momentum": momentum}),
        "momentum": (torch.optim.SGD, {"momentum": momentum}),
        "nag": (torch.optim.SGD, {"momentum": momentum, "nesterov": True}),
        "adagrad": (torch.optim.Adagrad, {"eps": eps}),
        "rmsprop": (torch.optim.RMSprop, {"alpha": betas[1], "eps": eps, "momentum": momentum}),
        "adam": (adam, {"betas": betas, "eps": eps, "fused": True}),
        "adamw": (adam, {"betas": betas, "eps": eps, "fused": True}),
        "adafactor": (torch.optim.Adafactor, {"eps": (None, eps)}),
        "adamw-8bit": (AdamW8bit, {"betas": betas, "eps": eps}),
        "lion": (Lion, {"betas": betas}),
        "sophia": (Sophia, {"betas": betas, "eps": eps}),
        "d-adaptation": (DAdaptAdam, {"betas": betas, "eps": eps}),
        "prodigy": (Prodigy, {"betas": betas, "eps": eps}),
        "schedule-free-sgd": (ScheduleFreeSGD, {"beta": momentum}),
        "schedule-free": (ScheduleFreeAdamW, {"betas": betas, "eps": eps}),
        "muon": (MuonWithAdamW, {"momentum": momentum, "betas": betas, "eps": eps}),
    }
    cls, settings = own[config.name]

    def construct(groups: Groups) -> torch.optim.Optimizer:
        optimizer = cls(groups, **settings, **config.extra)
        if any("decoupled_decay" in group for group in groups):
            optimizer.register_step_pre_hook(_shrink)
        return optimizer

    return construct


@torch.no_grad()
def _shrink(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Decoupled decay for PyTorch's optimisers that only know L2."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.mul_(1 - group["lr"] * group["decoupled_decay"])
