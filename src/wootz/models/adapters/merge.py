"""An adapter folded into its base: ``W += scale * B A``. The result is an ordinary model, at the base's cost."""

from __future__ import annotations

from pathlib import Path

import torch

from wootz.core.errors import ConfigError, ModelFileError
from wootz.models.adapters.peft_folder import read_peft
from wootz.models.decoder import Decoder
from wootz.models.families import family_of
from wootz.models.names import checkpoint_rows


@torch.no_grad()
def merge(model: Decoder, path: Path | str) -> None:
    """Fold the LoRA in the folder ``path`` into the model's weights, in float32, rounded once.

    Raises `ConfigError` for what cannot be folded into this model, and nothing is changed then.
    """
    folder, family, config = read_peft(Path(path)), family_of(model.config.family), model.config
    if folder.kind != "LORA":
        raise ConfigError(f'{path}: an adapter of kind "{folder.kind}" cannot be merged (LORA can)')
    pairs, projections = folder.pairs(family.prefix), checkpoint_rows(model)
    ends = {family.names["embedding"], family.names.get("head")}
    if config.tie_embeddings and (changed := ends & pairs.keys()):
        raise ConfigError(
            f"{path}: changes {changed.pop()}, which in this model is embedding and head in one",
            hint="untie them first (wootz.models.surgery.untie)",
        )
    changes = []
    for name, pair in pairs.items():
        if name == family.names["embedding"]:
            weight, rows, delta = model.embedding.weight, torch.arange(config.vocab_size), pair.delta().T
        elif name in projections:
            linear, rows = projections[name]
            weight, delta = linear.weight, pair.delta()
        else:
            raise ModelFileError(f'{path}: changes "{name}", which is no projection of this model')
        if weight is None:
            raise ConfigError("the model was prepared for inference, so nothing can be merged into it")
        if (wanted := (len(rows), weight.shape[1])) != delta.shape:
            raise ModelFileError(f"{path}: changes {name} of shape {(*delta.shape,)}, but this model's is {wanted}")
        changes.append((weight, rows.to(weight.device), delta.to(weight.device)))
    for weight, rows, delta in changes:
        weight[rows] = (weight[rows].float() + delta).to(weight.dtype)
