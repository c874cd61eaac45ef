"""Expert parallelism in training: whole experts on each rank, tokens that travel to them, parameters as DTensors.

The way of the tokens is `wootz.models.expert_parallel`'s. What is added is that a rank's experts are `DTensor` shards
of all of them, under the names they have on one rank, so that they are sharded further, clipped and checkpointed
like any parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.func import functional_call

from wootz.core.errors import ConfigError
from wootz.models.blocks.experts import Experts
from wootz.models.blocks.moe import MoE
from wootz.models.decoder import Decoder
from wootz.models.expert_parallel import Exchange, ShardedExperts


class SpreadExperts(ShardedExperts):
    """Called like the `Experts` of all ranks, on every rank at once."""

    def __init__(self, experts: Experts, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.num_local = len(experts.down.weight) // mesh.size()
        self.exchange = Exchange(mesh.get_group())
        self.gate_up, self.down = experts.gate_up, experts.down
        for projection in (self.gate_up, self.down):
            for name, parameter in list(projection.named_parameters()):
                shard = distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=None)
                setattr(projection, name, nn.Parameter(shard))

        def local(x_ND: Tensor, counts: Sequence[int]) -> Tensor:
            own = {name: _local(parameter) for name, parameter in experts.named_parameters()}
            return functional_call(experts, own, (x_ND, counts))

        self.local = local  # pyright: ignore[reportAttributeAccessIssue]


def _local(parameter: Tensor) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.to_local()


def spread_experts(model: Decoder, mesh: DeviceMesh) -> None:
    """Leave this rank its share of every mixture's experts, in place."""
    mixtures = [module for module in model.modules() if isinstance(module, MoE)]
    for moe in mixtures:
        assert isinstance(moe.experts, Experts)
        if moe.config.router.num_experts % mesh.size():
            raise ConfigError(f"{moe.config.router.num_experts} experts do not divide among {mesh.size()} ranks")
        moe.experts = SpreadExperts(moe.experts, mesh)
