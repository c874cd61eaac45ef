"""`ShardedState`: ZeRO-1 (arXiv 1910.02054). Weights and gradients are whole on every rank; each rank moves a share of
the rows of every weight, keeps the optimiser's state of those alone, and then all give each other what they moved.

A share is a view of the weight, as a `DTensor` of all of it, so state has the form that it has under FSDP2: the same
checkpoints, read by any number of ranks. (`torch.distributed.optim.ZeroRedundancyOptimizer` gives whole parameters to
ranks, which is uneven, and gathers all state on one of them to save it.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from wootz.core.errors import ConfigError
from wootz.training.optimizers.build import OptimizerConfig, build_optimizer, parameter_groups
from wootz.training.optimizers.pairs import Proxied

LOOK_AT_MORE = frozenset({"adafactor", "adamw-8bit", "muon", "sophia"})
"""Whose update of a number depends on more than that number: rows and columns, blocks, a whole matrix, another loss."""


class ShardedState(Proxied):
    """``model`` has been built alike on all ranks of ``mesh``, and is given the same gradients on all of them."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, mesh: DeviceMesh) -> None:
        if config.name in LOOK_AT_MORE:
            raise ConfigError(f"ZeRO-1 cannot cut the state of {config.name}", hint="use adamw or lion")
        self.mesh = mesh
        groups = parameter_groups(model, config)
        super().__init__(groups, lambda proxies: build_optimizer(proxies, replace(config, layer_decay=1.0)))

    def proxy(self, weight: Tensor) -> Tensor:
        return nn.Parameter(self._share(weight.detach()))

    def gradient(self, weight: Tensor, proxy: Tensor) -> Tensor:
        assert weight.grad is not None
        return self._share(weight.grad)

    def show(self, weight: Tensor, proxy: Tensor) -> None:
        assert isinstance(proxy, DTensor)
        weight.copy_(proxy.full_tensor())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for weight, proxy in self._pairs():
            if weight in self.state:
                self.inner.state[proxy] = self.state[weight]
        self._tell_settings()

    def _share(self, whole: Tensor) -> DTensor:
        """This rank's rows, as a view: what is written there is written into the whole."""
        rows, rank = whole.chunk(self.mesh.size()), self.mesh.get_local_rank()
        own = rows[rank] if rank < len(rows) else whole[:0]
        return DTensor.from_local(own, self.mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())


def bytes_held(optimizer: torch.optim.Optimizer) -> int:
    """Of state, on this rank."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum((x.to_local() if isinstance(x, DTensor) else x).nbytes for x in tensors if x.ndim)
