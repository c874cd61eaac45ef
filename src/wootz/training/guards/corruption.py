"""`CorruptionGuard`: ranks that should agree are compared, since hardware that computes wrongly says nothing.

Every `every` steps, in two ways:

- before a step, each rank computes the very same rows with the weights that all share, forward and backward: the loss,
  the size of the states, of the loss's gradient by them, and of its own gradient by each weight, before any rank's is
  added to another's. A rank off by more than `TOLERANCE` of the median is named, with what it is off in;
- before the update, where ranks hold copies of gradients that were summed over all (``mesh.zero = 1``, copies of
  shards), the bits are added up: a rank whose sum is another received or kept something else than was sent.

The run stops. `wootz run --restarts` starts it again from the last good checkpoint; if the recipe allows it
(``mesh.fewest``) without a rank that was named alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from wootz.core.errors import WootzError
from wootz.data.batch import Batch
from wootz.models import PackedContext
from wootz.models.expert_parallel import ShardedExperts
from wootz.training.trainer import Callback, Step, Trainer, evaluation, world_size


class CorruptionError(WootzError):
    """A rank computes something else than the others."""

    code = "silent_corruption"


class CorruptionGuard(Callback):
    TOLERANCE = 1e-3
    FLOOR = 1e-2
    """Of the whole gradient's size, which is added to each weight's: what is zero but for rounding tells nothing."""

    def __init__(
        self,
        every: int,
        *,
        rows: int = 2,
        length: int = 32,
        seed: int = 0,
        suspect: Callable[[list[int]], None] = lambda ranks: None,
    ) -> None:
        self.every, self.rows, self.length, self.seed = every, rows, length, seed
        self.suspect = suspect
        """Is told of the ranks that are named before the run stops."""

    def before_step(self, trainer: Trainer) -> None:
        if world_size() == 1 or trainer.step % self.every:
            return
        figures = self.figures(trainer)
        everyones = [tuple(each.values()) for each in _exchanged(figures, trainer.peers)]
        if wrong := disagreeing(everyones, self.TOLERANCE):
            names, ranks = list(figures), [trainer.peers[number] for number in wrong]
            off = [f"rank {trainer.peers[n]} ({names[which]} off by {by:.1e})" for n, (by, which) in wrong.items()]
            self._stop(ranks, f"{', '.join(off)} computed something else than the others on the same rows")

    def before_update(self, trainer: Trainer, step: Step) -> str | None:
        if world_size() > 1 and step.number % self.every == 0 and math.isfinite(step.grad_norm):
            sums = _exchanged(bit_sums(trainer.model), range(world_size()))
            if wrong := outvoted(sums):
                found = [f"rank {number} ({name})" for number, name in wrong.items()]
                self._stop(list(wrong), f"{', '.join(found)} holds other gradients than its copies")
        return None

    def _stop(self, ranks: list[int], what: str) -> None:
        self.suspect(ranks)
        raise CorruptionError(what, hint="take that machine out and resume with the rest")

    def figures(self, trainer: Trainer) -> dict[str, float]:
        """Of rows that all ranks know, with this rank's own gradients."""
        generator = torch.Generator().manual_seed(self.seed + trainer.step)
        model: Any = trainer.model
        rows = torch.randint(model.config.vocab_size, (self.rows, self.length + 1), generator=generator)
        batch = Batch.of(rows.to(trainer.device))
        with evaluation(model), own_gradients(model) as sizes:
            hidden_TD = model(batch.tokens_BT.flatten(), batch.positions_T, PackedContext(batch.lengths))
            hidden_TD.retain_grad()
            loss = F.cross_entropy(model.unembed(hidden_TD), batch.labels_BT.flatten())
            loss.backward()
        trainer.optimizer.zero_grad(set_to_none=True)
        total = math.hypot(*sizes.values())
        figures = {
            "loss": loss.item(),
            "states": hidden_TD.detach().norm().item(),
            "their gradient": hidden_TD.grad.norm().item(),
        }
        return figures | {f"gradient of {name}": size + self.FLOOR * total for name, size in sizes.items()}


@contextmanager
def own_gradients(model: nn.Module) -> Iterator[dict[str, float]]:
    """In the block: sizes of the gradients that a backward pass makes on this rank, before others' are added to them.
    While a module is called its parameters are whole under FSDP, so that is when they are listened to. Experts that are
    spread over ranks are left out: each rank has others."""
    sizes: dict[str, float] = {}
    heard: dict[str, Any] = {}
    hooks = []

    def listen(name: str, parameter: Tensor) -> None:
        def note(gradient: Tensor) -> None:
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            sizes[name] = math.hypot(sizes.get(name, 0.0), local.float().norm().item())

        if parameter.requires_grad and name not in heard:
            heard[name] = parameter.register_hook(note)

    def called(prefix: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            for name, parameter in module.named_parameters(recurse=False):
                listen(f"{prefix}.{name}", parameter)

        return hook

    spread = [name for name, module in model.named_modules() if isinstance(module, ShardedExperts)]
    for name, module in model.named_modules():
        if not any(name.startswith(each) for each in spread):
            hooks.append(module.register_forward_pre_hook(called(name)))
    try:
        with torch.compiler.set_stance("force_eager"):  # for layers that are compiled without these hooks
            yield sizes
    finally:
        for hook in [*hooks, *heard.values()]:
            hook.remove()


def disagreeing(everyones: Sequence[tuple[float, ...]], tolerance: float) -> dict[int, tuple[float, int]]:
    """Those whose worst figure is off by more than ``tolerance`` of the median: by how much, and which figure it is. Of
    two that differ nobody can say which is wrong, and both are named. What is not a number is infinitely off."""
    middle = [
        median([value for value in values if value == value] or [math.nan]) for values in zip(*everyones, strict=True)
    ]
    off = {
        number: max(
            (math.inf if value != value else abs(value - centre) / max(abs(centre), 1e-12), which)
            for which, (value, centre) in enumerate(zip(figures, middle, strict=True))
        )
        for number, figures in enumerate(everyones)
    }
    return {number: worst for number, worst in off.items() if worst[0] > tolerance}


def bit_sums(model: nn.Module) -> dict[tuple[str, str], int]:
    """Of each gradient, by name and by which share of it this rank has."""
    sums = {}
    for name, parameter in model.named_parameters():
        if (gradient := parameter.grad) is not None:
            local, share = gradient, ""
            if isinstance(gradient, DTensor):
                local, at = gradient.to_local(), gradient.device_mesh.get_coordinate() or []
                cut = [place for place, how in zip(at, gradient.placements, strict=True) if not how.is_replicate()]
                share = "/".join(map(str, cut))
            if local.numel():
                sums[name, share] = int(
                    local.contiguous().view(torch.uint8).view(_INTEGERS[local.element_size()]).sum()
                )
    return sums


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def outvoted(sums: Sequence[dict[tuple[str, str], int]]) -> dict[int, str]:
    """Ranks that have another sum than most of those with the same share, and of which gradient; all of those where no
    sum has a majority."""
    wrong: dict[int, str] = {}
    for key in dict.fromkeys(key for each in sums for key in each):
        found = {number: each[key] for number, each in enumerate(sums) if key in each}
        (most, votes), *others = Counter(found.values()).most_common()
        if others:
            clear = votes > len(found) / 2
            wrong |= {n: key[0] for n, value in found.items() if n not in wrong and not (clear and value == most)}
    return wrong


def _exchanged(own: Any, ranks: Sequence[int]) -> list[Any]:
    """What all ranks have, of which those that are asked for are given."""
    everyones: list[Any] = [None] * world_size()
    dist.all_gather_object(everyones, own)
    return [everyones[number] for number in ranks]
