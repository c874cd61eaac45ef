"""Tensor and sequence parallelism (arXiv 1909.08053, 2205.05198) by DTensor, as a plan of styles for a model's modules.

Inside attention and feed-forward parts a rank has all tokens and some of the heads or units; between them, in the
norms and the residual stream, it has some of the tokens and the whole width:

    norm (own tokens) → gather tokens → cut part → scatter sums, to own tokens → …

A part so costs one all-gather and one reduce-scatter, forward and backward. The embedding is cut by vocabulary, and so
is the head, whose logits are gathered. What the norms learn is replicated, and its gradient summed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from wootz.core.errors import ConfigError
from wootz.models.blocks.attention import Attention
from wootz.models.blocks.mlp import MLP, GatedMLP
from wootz.models.decoder import Decoder, Layer
from wootz.models.linear import Linear
from wootz.training.parallel.taken_apart import TakenApart

OWN_TOKENS, ALL, CUT = Shard(0), Replicate(), Shard(-1)


def cut_by_tensor(model: Decoder, mesh: DeviceMesh) -> None:
    """Distribute the parameters of a model that was taken apart, and hang the collectives between its parts, in place.
    Raises `ConfigError` for a part that these rules do not cut."""
    _check(model)
    plan: dict[str, ParallelStyle] = {}
    if isinstance(model.head, Linear):
        plan["head"] = _Linear(rows=True, output=ALL)
    if len(model.embedding.weight):
        plan["embedding"] = RowwiseParallel(input_layouts=ALL, output_layouts=OWN_TOKENS)
    if model.embedding_norm is not None:
        plan["embedding_norm"] = _NORM
    if model.norm is not None:
        plan["norm"] = _NormOfAll(sequence_dim=0)
    for number, layer in enumerate(model.layers):
        if isinstance(layer, Layer):
            plan |= {f"layers.{number}.{path}": style for path, style in _layer_plan(layer, mesh.size()).items()}
    parallelize_module(model, mesh, plan)
    if isinstance(model.head, Linear):
        model.tie_weights()


def _check(model: Decoder) -> None:
    if model.embedding_positions is not None:
        raise ConfigError("tensor parallelism does not cut positions in embeddings (GPT-2)", hint="use shard")
    if isinstance(model.head, Linear) and model.norm is None:
        raise ConfigError("tensor parallelism needs a norm before the head")


def _layer_plan(layer: Layer, size: int) -> dict[str, ParallelStyle]:
    if layer.config.parallel:
        raise ConfigError("tensor parallelism does not cut parts that read one norm side by side", hint="use shard")
    plan: dict[str, ParallelStyle] = {}
    for name in ("mixer_norm", "mixer_output_norm", "ffn_norm", "ffn_output_norm"):
        if getattr(layer, name) is not None:
            plan[name] = _NORM
    for name in ("mixer", "ffn"):
        if (part := getattr(layer, name)) is not None:
            plan[name] = PrepareModuleInput(
                input_layouts=(OWN_TOKENS, None), desired_input_layouts=(ALL, None), use_local_output=False
            )  # pyright: ignore[reportArgumentType]
            plan |= {f"{name}.{path}": style for path, style in _part_plan(part, size).items()}
    return plan


def _part_plan(part: nn.Module, size: int) -> dict[str, ParallelStyle]:
    match part:
        case Attention():
            return _attention_plan(part, size)
        case GatedMLP():
            _check_divides(part.down.in_features, "feed-forward units", size)
            return _rows("gate_up", part.gate_up) | {"down": _Linear(rows=False, output=OWN_TOKENS)}
        case MLP():
            _check_divides(part.down.in_features, "feed-forward units", size)
            return _rows("up", part.up) | {"down": _Linear(rows=False, output=OWN_TOKENS)}
        case other:
            raise ConfigError(f"tensor parallelism cannot cut {type(other).__name__} in training", hint="use shard")


def _attention_plan(part: Attention, size: int) -> dict[str, ParallelStyle]:
    config = part.config
    _check_divides(config.num_heads, "attention heads", size)
    _check_divides(config.num_kv_heads, "key/value heads", size)
    if part.sinks_H is not None or part.score_bias is not None or (config.qk_norm and config.qk_norm_over == "all"):
        raise ConfigError("tensor parallelism cannot cut attention with sinks, score biases or a norm over all heads")
    part.config = replace(config, num_heads=config.num_heads // size, num_kv_heads=config.num_kv_heads // size)
    plan = _rows("qkv", part.qkv) | {"output": _Linear(rows=False, output=OWN_TOKENS)}
    if part.q_norm is not None:
        heads = SequenceParallel(sequence_dim=1, use_local_output=True)
        plan |= {"q_norm": heads, "k_norm": heads}
    return plan


def _check_divides(number: int, what: str, size: int) -> None:
    if number % size:
        raise ConfigError(f"{number} {what} do not divide among {size} ranks")


def _rows(name: str, module: nn.Module) -> dict[str, ParallelStyle]:
    if isinstance(module, TakenApart):
        return {f"{name}.{part}": _Linear(rows=True) for part in range(len(module))}
    return {name: _Linear(rows=True)}


_NORM = SequenceParallel(sequence_dim=0, use_local_output=True)


class _NormOfAll(SequenceParallel):
    """The last norm: on own tokens, whose results all ranks then have."""

    @staticmethod
    def _prepare_output_fn(use_local_output: bool, mod: nn.Module, outputs: Any, device_mesh: DeviceMesh) -> Tensor:
        return outputs.redistribute(placements=[ALL]).to_local()


class _Linear(ParallelStyle):
    """`ColwiseParallel` and `RowwiseParallel` for this house's `Linear`, which is no `nn.Linear`: cut by ``rows`` of
    the weight, every rank has some outputs; by columns, a share of their sum."""

    def __init__(self, *, rows: bool, output: Placement = CUT) -> None:
        super().__init__()
        self.rows, self.output = rows, output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def distribute(_name: str, linear: nn.Module, mesh: DeviceMesh) -> None:
            for name, parameter in list(linear.named_parameters(recurse=False)):
                cut = Shard(0) if self.rows else Shard(1) if parameter.ndim == 2 else ALL
                cut_tensor = distribute_tensor(parameter, mesh, [cut], src_data_rank=None)
                linear.register_parameter(name, nn.Parameter(cut_tensor, requires_grad=parameter.requires_grad))

        def take(_linear: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> Any:
            x = inputs[0]
            return x if isinstance(x, DTensor) else DTensor.from_local(x, mesh, [ALL if self.rows else CUT])

        def give(_linear: nn.Module, y: Any, _mesh: DeviceMesh) -> Tensor:
            return y.redistribute(placements=[self.output]).to_local()

        return distribute_module(module, device_mesh, distribute, take, give)  # pyright: ignore[reportArgumentType]
