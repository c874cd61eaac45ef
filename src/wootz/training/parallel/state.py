"""What many ranks hold, in one process.

Parameters have the same names under all layouts (`taken_apart`), so `wootz.training.checkpoints` is written by any
number of ranks and read by any other; a single process without a mesh takes part once its model is taken apart.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from wootz.models.decoder import Decoder
from wootz.training.parallel.taken_apart import put_together, take_apart


def load_whole(folder: Path, model: Decoder) -> Decoder:
    """The weights of such a checkpoint in one process's model, as it is served and saved. No other rank is asked."""
    take_apart(model)
    state = {"model": held(get_model_state_dict(model))}
    with warnings.catch_warnings(action="ignore"):  # that one process is alone is as it should be
        state_dict_loader.load(state, checkpoint_id=folder, no_dist=True)
    set_model_state_dict(model, state["model"])
    put_together(model)
    model.tie_weights()
    return model


def held(state: Any) -> Any:
    """Without tensors of nothing, such as the embedding of a pipeline's later stages; the same tensors otherwise."""
    if not isinstance(state, dict):
        return state
    return {n: held(value) for n, value in state.items() if not (isinstance(value, Tensor) and not value.numel())}
