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
one row that does not change.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wootz.data.batch import Batch
from wootz.models import PackedContext
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
        self._norms: dict[str, float] = {}

    def before_update(self, trainer: Trainer, step: Step) -> str | None:
        if self._looks(step):
            self._norms = {part: norm(p.grad for p in group if p.grad is not None) for part, group in _parts(trainer.model)}
            self._before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
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
        ratios = {}
        for part, _ in _parts(model):
            names = [name for name, _ in model.named_parameters() if _part_of(name) == part and name in self._before]
            moved = norm(model.get_parameter(name).detach() - self._before[name] for name in names)
            ratios[part] = moved / max(norm(self._before[name] for name in names), 1e-12)
        for part, size in self._norms.items():
            self.grad_history.setdefault(part, []).append(size)
        return {
            "update_ratio": ratios,
            "activations": seen.activations,
            "attention_entropy": seen.entropies,
            "embedding_ratio": singular_ratio(model.embedding.weight),
            "grad_norms": self._norms,
            "clip_ratio": self._clipped / max(self._made, 1),
            "loss": sum(self._losses) / len(self._losses),
        }

    def alarms(self, figures: dict[str, Any]) -> list[str]:
        found = []
        if fast := {part: ratio for part, ratio in figures["update_ratio"].items() if ratio > 0.1}:
            found.append(f"updates too large: {_worst(fast)} of the weight in one step; lower the learning rate")
        self.first_activations = self.first_activations or figures["activations"]
        growth = [now / max(then, 1e-12) for now, then in zip(figures["activations"], self.first_activations, strict=True)]
        if max(growth) > 10:
            found.append(f"activations grow: layer {growth.index(max(growth))} is {max(growth):.0f} times its first size")
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
            if len(last) == 4 and all(later > 1.3 * sooner for sooner, later in zip(last, last[1:], strict=False)):
                found.append(f"gradients of {part} grow: {last[0]:.2g} to {last[-1]:.2g} over the last looks")
        if self._made >= 200 and abs(figures["loss"] - math.log(self.vocab_size)) < 0.05 * math.log(self.vocab_size):
            found.append(f"nothing is learned: the loss is {figures['loss']:.2f}, and log V is {math.log(self.vocab_size):.2f}")
        return found

    def _looks(self, step: Step) -> bool:
        return world_size() == 1 and (step.number + 1) % self.every == 0

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first_activations, "grads": self.grad_history, "said": self.said, "made": self._made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first_activations, self.grad_history = state.get("first", []), state.get("grads", {})
        self.said, self._made = state.get("said", []), state.get("made", 0)


class Observed:
    """Of one pass: how large each layer's output was, and how spread its attention."""

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
        seen.activations.append(output.float().square().mean().sqrt().item())

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
    """First over second singular value of the rows around their mean: large where all words lie on one line."""
    centred = embedding_VD.detach().float() - embedding_VD.detach().float().mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0).sqrt()
    return (values[-1] / values[-2].clamp(min=1e-12)).item()


def norm(tensors: Any) -> float:
    return math.sqrt(sum(tensor.detach().float().square().sum().item() for tensor in tensors))


def _parts(model: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(_part_of(name), []).append(parameter)
    return list(groups.items())


def _part_of(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"layer {rest.partition('.')[0]}" if first == "layers" else first


def _worst(figures: dict[str, float]) -> str:
    part = max(figures, key=lambda each: figures[each])
    return f"{part} by {figures[part]:.0%}"
