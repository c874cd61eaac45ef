"""What checkpoints call experts: most keep each expert's projections as tensors of their own, we stack them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wootz.models.families.family import View

OURS = "layers.{i}.ffn"


def expert_names(
    module: str, *, router: str = "gate", projections: tuple[str, str, str] | None = None
) -> dict[str, Any]:
    """Names of a `MoE` at ``module`` ("model.layers.{i}.mlp"), whose experts are ``experts.{e}.`` there."""
    gate, up, down = (
        f"{module}.experts.{{e}}.{name}.weight" for name in projections or ("gate_proj", "up_proj", "down_proj")
    )
    return {
        f"{OURS}.router.weight_ED": f"{module}.{router}.weight",
        f"{OURS}.experts.gate_up.weight": per_expert(gate, up),
        f"{OURS}.experts.down.weight": per_expert(down),
    }


def per_expert(*theirs: str) -> View:
    """The view of ``(E, out, in)`` as tensors per expert, and per part where parts lie one below the other."""

    def view(tensor: Tensor, layer: int) -> dict[str, Tensor]:
        return {
            their.replace("{i}", str(layer)).replace("{e}", str(expert)): part
            for expert, weight in enumerate(tensor.unbind())
            for their, part in zip(theirs, weight.chunk(len(theirs)), strict=True)
        }

    return view


def sparse_layers(raw: dict[str, Any]) -> list[bool]:
    """Which layers have experts, by ``decoder_sparse_step`` and ``mlp_only_layers`` (Qwen)."""
    step, dense = raw.get("decoder_sparse_step", 1), raw.get("mlp_only_layers") or []
    return [layer not in dense and (layer + 1) % step == 0 for layer in range(raw["num_hidden_layers"])]


def num_experts(raw: dict[str, Any]) -> int:
    """Transformers 5 saves it under another name than the published configs have."""
    return next(raw[name] for name in ("num_experts", "num_local_experts", "n_routed_experts") if name in raw)
