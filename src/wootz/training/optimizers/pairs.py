"""Optimisers made of others: Muon for matrices with AdamW for the rest, and any one that moves something in place of
the weights (float32 masters here, shards in `sharded.py`).

All are one `torch.optim.Optimizer` to their caller: one list of groups, one state, one `state_dict` that resumes
exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from wootz.training.optimizers.base import ExactOptimizer


class MuonWithAdamW(ExactOptimizer):
    """Groups say ``"matrices": True`` to be moved by Muon (which orthogonalises the update of a hidden matrix;
    https://kellerjordan.github.io/posts/muon), and are AdamW's otherwise. With ``match_rms_adamw`` (arXiv 2502.16982)
    Muon's updates are as large as AdamW's are, and one learning rate serves both. ``full_precision`` orthogonalises in
    float32, not bfloat16: on a CPU without bfloat16 units that is many times faster."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float = 3e-4,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        adjust_lr_fn: str = "match_rms_adamw",
        full_precision: bool = False,
    ) -> None:
        for group in groups:
            group.setdefault("matrices", False)
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        matrices = [group for group in self.param_groups if group["matrices"]]
        others = [group for group in self.param_groups if not group["matrices"]]
        settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = (MuonFloat32 if full_precision else torch.optim.Muon)(
                matrices, momentum=momentum, adjust_lr_fn=adjust_lr_fn, **settings
            )
            self._parts.append(muon)
        if others:
            self._parts.append(torch.optim.AdamW(others, betas=betas, eps=eps, fused=True, **settings))
        self._join()

    def _join(self) -> None:
        """The parts work on this one's own groups and state."""
        for part in self._parts:
            part.state = self.state
            muon = isinstance(part, torch.optim.Muon)
            part.param_groups = [group for group in self.param_groups if group["matrices"] == muon]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._join()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts:
            part.step()
        return loss


class MuonFloat32(torch.optim.Muon):
    """PyTorch's Muon, whose Newton-Schulz iteration runs in float32."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                average, momentum = state["momentum_buffer"], group["momentum"]
                average.lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(average, momentum) if group["nesterov"] else average
                rows, columns = parameter.shape
                matched = group["adjust_lr_fn"] == "match_rms_adamw"
                scale = 0.2 * max(rows, columns) ** 0.5 if matched else max(1, rows / columns) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                direction = orthogonalised(update, group["ns_coefficients"], group["ns_steps"])
                parameter.add_(direction, alpha=-group["lr"] * scale)
        return loss


def orthogonalised(matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int) -> torch.Tensor:
    """All singular values pushed near 1, by a quintic iteration that needs only products."""
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Proxied(ExactOptimizer):
    """One whose ``inner`` optimiser, which ``make`` makes, moves other tensors in the place of each weight. To its
    caller it has the weights, the inner one's settings, and its state."""

    def __init__(
        self, groups: list[dict[str, Any]], make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    ) -> None:
        proxies = [{**group, "params": [self.proxy(weight) for weight in group["params"]]} for group in groups]
        self.inner = make(proxies)
        outer = [{**one, "params": group["params"]} for one, group in zip(self.inner.param_groups, groups, strict=True)]
        super().__init__(outer, {})

    def proxy(self, weight: torch.Tensor) -> torch.Tensor:
        """What is moved in place of this weight; a leaf."""
        raise NotImplementedError

    def gradient(self, weight: torch.Tensor, proxy: torch.Tensor) -> torch.Tensor:
        """The proxy's, from the weight's."""
        raise NotImplementedError

    def show(self, weight: torch.Tensor, proxy: torch.Tensor) -> None:
        """Write into the weight what became of its proxy."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        self._tell_settings()
        for weight, proxy in self._pairs():
            proxy.grad = None if weight.grad is None else self.gradient(weight, proxy)
        self.inner.step()
        for _, proxy in self._pairs():
            proxy.grad = None
        self._show()
        return loss

    def eval(self) -> None:
        self._switch("eval")

    def train(self) -> None:
        self._switch("train")

    @torch.no_grad()
    def _switch(self, mode: str) -> None:
        if hasattr(self.inner, mode):
            getattr(self.inner, mode)()
            self._show()

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        groups = zip(self.param_groups, self.inner.param_groups, strict=True)
        return [pair for outer, inner in groups for pair in zip(outer["params"], inner["params"], strict=True)]

    def _tell_settings(self) -> None:
        """The caller sets rates on our groups; the inner ones follow."""
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({name: value for name, value in outer.items() if name != "params"})

    @torch.no_grad()
    def _show(self) -> None:
        """What the inner optimiser did: in the weights, and its state and counters in ours."""
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            outer.update({name: value for name, value in inner.items() if name != "params"})
        for weight, proxy in self._pairs():
            self.show(weight, proxy)
            if state := self.state_of(proxy):
                self.state[weight] = state

    def state_of(self, proxy: torch.Tensor) -> dict[str, Any]:
        return self.inner.state.get(proxy, {})


class MasterWeights(Proxied):
    """Half-precision weights, trained in float32: ``inner`` has a float32 copy of each to work on.

    A step takes the gradients to float32, moves the copies, and rounds them into the weights. So updates too small for
    the weights' own type add up in place of getting lost (in bfloat16 a change below 2^-9 of a weight is nothing), and
    the inner state is float32. 4 bytes per parameter more. Not needed where weights are float32 and only the arithmetic
    is in half precision (autocast, FSDP's mixed precision)."""

    def proxy(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().float().clone().requires_grad_()

    def gradient(self, weight: torch.Tensor, proxy: torch.Tensor) -> torch.Tensor:
        assert weight.grad is not None
        return weight.grad.to(proxy.dtype)

    def show(self, weight: torch.Tensor, proxy: torch.Tensor) -> None:
        weight.copy_(proxy)

    def state_of(self, proxy: torch.Tensor) -> dict[str, Any]:
        return {"master": proxy.detach(), **super().state_of(proxy)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for weight, master in self._pairs():
            state = dict(self.state.get(weight, {}))
            master.data.copy_(state.pop("master", weight))
            if state:
                self.inner.state[master] = state
        self._tell_settings()
        self._show()
