"""A folder as PEFT writes it: ``adapter_config.json``, and ``adapter_model.safetensors`` with its tensors.

LoRA (arXiv 2106.09685) holds two matrices for each projection it changes, ``W + scale * B A``, where the scale is
``alpha / r``, or ``alpha / sqrt(r)`` (rsLoRA, arXiv 2312.03732). A folder that asks for anything else to be computed is
refused by the name of its setting, and a tensor nobody asked for by its own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wootz.core.errors import ModelFileError, NotFoundError

_OTHER_MATHS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
"""Settings of LoRA that change what is computed, or add what is no low-rank matrix."""

_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base weights as they were."""

_LORA_TENSOR = re.compile(r"(.+)\.(?:lora_|lora_embedding_)([AB])(?:\.weight)?")


@dataclass(frozen=True)
class LowRankPair:
    """``scale * B A`` on one module of the checkpoint: ``(r, in)`` and ``(out, r)``."""

    a: Tensor
    b: Tensor
    scale: float

    def delta(self) -> Tensor:
        """What it adds to the weight, ``(out, in)``, in float32."""
        return self.scale * (self.b.float() @ self.a.float())


@dataclass(frozen=True)
class PeftFolder:
    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        return str(self.config.get("peft_type"))

    def pairs(self, prefix: str) -> dict[str, LowRankPair]:
        """LoRA's matrices by the module's name in the checkpoint, without the family's ``prefix``."""
        self._refuse_other_maths()
        halves: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            module = name.removeprefix("base_model.model.")
            if module.endswith(".base_layer.weight"):
                continue  # a copy of the base's embedding, which PEFT writes along with changes to it
            if not (found := _LORA_TENSOR.fullmatch(module)) or tensor.ndim != 2:
                raise ModelFileError(f'{self.path}: holds tensor "{name}", which is not supported')
            halves.setdefault(found[1].removeprefix(prefix), {})[found[2]] = tensor
        if not halves:
            raise ModelFileError(f"{self.path}: holds no LoRA matrices")
        return {module: self._pair(module, prefix, found) for module, found in halves.items()}

    def _pair(self, module: str, prefix: str, halves: dict[str, Tensor]) -> LowRankPair:
        if halves.keys() != {"A", "B"} or halves["A"].shape[0] != halves["B"].shape[1]:
            raise ModelFileError(f"{self.path}: the two matrices of {module} do not fit together")
        rank, alpha = len(halves["A"]), self.config.get("lora_alpha", 8)
        for pattern, its_alpha in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", prefix + module):
                alpha = its_alpha
                break
        scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        return LowRankPair(halves["A"], halves["B"], scale)

    def _refuse_other_maths(self) -> None:
        config = self.config
        if setting := next((setting for setting in _OTHER_MATHS if config.get(setting)), None):
            raise ModelFileError(f"{self.path}: {setting} is not supported", hint="merge it into its model with PEFT")
        if config.get("bias", "none") != "none":
            raise ModelFileError(f"{self.path}: biases that were trained along are not supported")
        if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
            raise ModelFileError(
                f'{self.path}: "{config["init_lora_weights"]}" starts from other base weights',
                hint="convert it to plain LoRA with PEFT",
            )


def read_peft(path: Path) -> PeftFolder:
    """Raises `NotFoundError` where there is no adapter, and `ModelFileError` for one that cannot be read."""
    file, weights = path / "adapter_config.json", path / "adapter_model.safetensors"
    for needed in (file, weights):
        if not needed.is_file():
            raise NotFoundError(f"{path}: no adapter in PEFT's format here ({needed.name} is missing)")
    try:
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
        return PeftFolder(path, config, load_file(weights))
    except (ValueError, OSError, SafetensorError) as error:
        raise ModelFileError(f"{path}: damaged ({error})") from None
