"""`HealthMonitor`: what goes wrong slowly, measured every so many steps and written to ``health.jsonl``.

| figure | what it is | alarm |
|---|---|---|
| `update_ratio` | size of the last update over the size of the weight, per part | above 0.1: too fast |
| `activations` | root mean square of each layer's output | 10 times what it was at first |
| `attention_entropy` | of each layer, as a share of the most there can be | below 0.02: it looks at single tokens |
| `embedding_ratio` | first over second singular value of the embedding, centred | above 10: collapse into a line |
| `grad_norms` | per part, and their trend | doubled in each of the last looks: slow growth |
| `clip_ratio` | share of steps that were clipped | (none: for the eye) |
| loss | - | stays at log V: nothing is learned |

Parts are the embedding, each layer, and the rest. All are computed from what is there: the model is run once more on
one row that does not change. Figures are of the whole model, whatever ranks have of it: each adds up its own share of
squares, and all sums of a look are one exchange.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from wootz.data.batch import Batch
from wootz.models import PackedContext
from wootz.training.parallel.clipping import num_shards
from wootz.training.runs import RunFolder
from wootz.training.trainer import Callback, Step, Trainer, evaluation, rank, world_size


class HealthMonitor(Callback):
    def __init__(self, run: RunFolder, vocab_size: int, *, every: int = 100, length: int = 64) -> None:
        self.run, self.vocab_size, self.every, self.length = run, vocab_size, every, length
        self.first_activations: list[float] = []
        self.grad_history: dict[str, list[float]] = {}
        self.said: list[str] = []
        """Alarms are given once."""
        self._losses: deque[float] = deque(maxlen=50)
        self._clipped = self._made = 0
        self._before: dict[str, Tensor] = {}
        self._gradients: dict[str, float] = {}
        """Squares, of what this rank has of each part."""

    def before_update(self, trainer: Trainer, step: Step) -> str | None:
        if self._looks(step):
            parameters = dict(trainer.model.named_parameters())
            gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
            self._gradients = squares(gradients)
            self._before = {name: _local(p).detach().clone() for name, p in parameters.items()}
        return None

    def after_step(self, trainer: Trainer, step: Step) -> None:
        self._losses.append(step.loss)
        self._made += 1
        self._clipped += step.grad_norm > trainer.config.max_grad_norm
        if not self._looks(step):
            return
        figures = self.figures(trainer)
        self._before = {}
        if rank() == 0:
            self.run.append("health", {"step": step.number, **figures})
        for alarm in self.alarms(figures):
            if alarm.split(":")[0] not in self.said:
                self.said.append(alarm.split(":")[0])
                trainer.report(f"step {step.number}: {alarm}")

    def figures(self, trainer: Trainer) -> dict[str, Any]:
        model: Any = trainer.model
        tokens_T = torch.randint(self.vocab_size, (self.length,), generator=torch.Generator().manual_seed(0))
        batch = Batch.of(torch.cat((tokens_T, tokens_T[:1]))[None]).to(trainer.device)
        with observed(model) as seen, evaluation(model), torch.no_grad():
            model(batch.tokens_BT.flatten(), batch.positions_T, seen.context([self.length]))
        parameters = dict(model.named_parameters())
        moved = {name: _local(parameters[name]).detach() - before for name, before in self._before.items()}
        shares = {name: share_held(parameters[name]) for name in self._before}
        own = [squares(self._before, shares), squares(moved, shares), self._gradients]
        parts = list(own[0])
        ranks, layers = world_size(), len(seen.activations)
        sums = trainer.sum_over_ranks(
            *(each.get(part, 0.0) for each in own for part in parts),
            *(square / ranks for square in seen.activations),
            *(entropy / ranks for entropy in seen.entropies),
        )
        sizes = [math.sqrt(square) for square in sums[: 3 * len(parts) + layers]]
        before, moves, gradients = (dict(zip(parts, sizes[n * len(parts) :], strict=False)) for n in range(3))
        for part, size in gradients.items():
            self.grad_history.setdefault(part, []).append(size)
        return {
            "update_ratio": {part: moves[part] / max(before[part], 1e-12) for part in parts},
            "activations": sizes[3 * len(parts) :],
            "attention_entropy": sums[3 * len(parts) + layers :],
            "embedding_ratio": singular_ratio(model.embedding.weight),
            "grad_norms": gradients,
            "clip_ratio": self._clipped / max(self._made, 1),
            "loss": sum(self._losses) / len(self._losses),
        }

    def alarms(self, figures: dict[str, Any]) -> list[str]:
        found = []
        if fast := {part: ratio for part, ratio in figures["update_ratio"].items() if ratio > 0.1}:
            found.append(f"updates too large: {_worst(fast)} of the weight in one step; lower the learning rate")
        self.first_activations = self.first_activations or figures["activations"]
        growth = [
            now / max(then, 1e-12) for now, then in zip(figures["activations"], self.first_activations, strict=True)
        ]
        if max(growth) > 10:
            found.append(
                f"activations grow: layer {growth.index(max(growth))} is {max(growth):.0f} times its first size"
            )
        if figures["attention_entropy"] and min(figures["attention_entropy"]) < 0.02:
            layer = figures["attention_entropy"].index(min(figures["attention_entropy"]))
            found.append(f"attention collapsed: layer {layer} looks at single tokens; normalise queries and keys")
        if figures["embedding_ratio"] > 10:
            found.append(
                f"embedding collapsed: its first singular value is {figures['embedding_ratio']:.0f} times the second; "
                "go back, and double the embedding's learning rate"
            )
        for part, history in self.grad_history.items():
            last = history[-4:]
            if len(last) == 4 and all(later > 1.3 * sooner for sooner, later in pairwise(last)):
                found.append(f"gradients of {part} grow: {last[0]:.2g} to {last[-1]:.2g} over the last looks")
        if self._made >= 200 and abs(figures["loss"] - math.log(self.vocab_size)) < 0.05 * math.log(self.vocab_size):
            found.append(
                f"nothing is learned: the loss is {figures['loss']:.2f}, and log V is {math.log(self.vocab_size):.2f}"
            )
        return found

    def _looks(self, step: Step) -> bool:
        return (step.number + 1) % self.every == 0

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first_activations, "grads": self.grad_history, "said": self.said, "made": self._made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first_activations, self.grad_history = state.get("first", []), state.get("grads", {})
        self.said, self._made = state.get("said", []), state.get("made", 0)


class Observed:
    """Of one pass: mean squares of each layer's output, and how spread its attention was; of this rank's tokens and
    heads, where they are shared out."""

    def __init__(self) -> None:
        self.activations: list[float] = []
        self.entropies: list[float] = []

    def context(self, lengths: list[int]) -> PackedContext:
        return _Watching(lengths, self.entropies)


class _Watching(PackedContext):
    def __init__(self, lengths: list[int], entropies: list[float]) -> None:
        super().__init__(lengths)
        self.entropies = entropies

    def attend(self, slot: int, q_THd: Tensor, k_TKd: Tensor, v_TKe: Tensor, *, scale: float, **how: Any) -> Tensor:
        self.entropies.append(attention_entropy(q_THd, k_TKd, scale))
        return super().attend(slot, q_THd, k_TKd, v_TKe, scale=scale, **how)


@contextmanager
def observed(model: Any) -> Iterator[Observed]:
    seen = Observed()

    def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.activations.append(output.float().square().mean().item())

    hooks = [layer.register_forward_hook(look) for layer in model.layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def attention_entropy(q_THd: Tensor, k_TKd: Tensor, scale: float) -> float:
    """Of causal attention over one document, as a share of the most there can be, over the later half of its places."""
    k_THd = k_TKd.repeat_interleave(q_THd.shape[1] // k_TKd.shape[1], dim=1)
    scores_HTT = torch.einsum("qhd,khd->hqk", q_THd.float(), k_THd.float()) * scale
    length = len(q_THd)
    future = torch.ones(length, length, dtype=torch.bool, device=q_THd.device).triu(1)
    odds_HTT = scores_HTT.masked_fill(future, -torch.inf).softmax(-1)
    entropy_HT = torch.special.entr(odds_HTT).sum(-1)
    most_T = torch.arange(1, length + 1, device=q_THd.device).log()
    half = length // 2
    return (entropy_HT[:, half:] / most_T[half:]).mean().item()


def singular_ratio(embedding_VD: Tensor) -> float:
    """First over second singular value of the rows around their mean: large where all words lie on one line. Of rows
    that ranks share out by their products, ``X'X - n m m'``, which add up."""
    own_VD, share = _local(embedding_VD).detach().double(), share_held(embedding_VD)
    sums = torch.cat([own_VD.T @ own_VD, own_VD.sum(0)[None]]) * share
    if world_size() > 1:
        dist.all_reduce(sums)
    products_DD, sum_D = sums[:-1], sums[-1]
    values = torch.linalg.eigvalsh(products_DD - torch.outer(sum_D, sum_D) / len(embedding_VD)).clamp(min=0).sqrt()
    return (values[-1] / values[-2].clamp(min=1e-12)).item()


def squares(tensors: Mapping[str, Tensor], shares: Mapping[str, float] | None = None) -> dict[str, float]:
    """Sums of squares by part, of what this rank has of each tensor, weighed so that all ranks' add up to the whole."""
    found: dict[str, float] = {}
    for name, tensor in tensors.items():
        share = share_held(tensor) if shares is None else shares[name]
        own = _local(tensor).detach().float().square().sum().item() * share
        found[_part_of(name)] = found.get(_part_of(name), 0.0) + own
    return found


def share_held(tensor: Tensor) -> float:
    """The weight at which this rank's numbers count, if all ranks' are added: equally many hold each of them."""
    return num_shards(tensor) / world_size()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _part_of(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"layer {rest.partition('.')[0]}" if first == "layers" else first


def _worst(figures: dict[str, float]) -> str:
    part = max(figures, key=lambda each: figures[each])
    return f"{part} by {figures[part]:.0%}"
