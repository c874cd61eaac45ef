"""Draft heads: small parts on top of a finished model that guess what it will say after the next token.

The model stays as it is; the heads read its final hidden states, and speak through its unembedding. Four kinds:

- medusa (arXiv 2401.10774): head k turns one hidden state into a guess k places further on, ``x + silu(W x)``;
- parallel (arXiv 2404.19737): the same with a whole layer, which looks back at the earlier states;
- sequential (DeepSeek-V3, arXiv 2412.19437): head k is told the tokens that were guessed before its own;
- eagle (arXiv 2401.15077): one sequential head, used again and again on what it made itself.

The heads of a `MultiTokenModel` are the two kinds in the middle (`DraftHeads.of`). Of a sequential head, the entry at
a token's place is made of that token and of the state before it, zeros at the start of a text; so it depends on
nothing behind that place, and can be cached and shared like the keys and values of any layer.

On disk, heads are a folder: ``config.json`` and ``model.safetensors``. The config says whose heads they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wootz.core.atomic import atomic_folder
from wootz.core.errors import ConfigError, ModelFileError
from wootz.models.context import CacheSpec
from wootz.models.decoder import Decoder
from wootz.models.linear import Linear
from wootz.models.multi_token import Head, MultiTokenModel
from wootz.models.run import Run, assign_slots
from wootz.models.saving import write_weights

KINDS = ("medusa", "parallel", "sequential", "eagle")
MODEL_TYPE = "wootz-draft-heads"


class DraftHeads(nn.Module):
    """``depth`` tokens are guessed beyond the next one. The model they belong to is no part of them."""

    def __init__(self, kind: str, depth: int, base: Decoder) -> None:
        super().__init__()
        self.kind, self.depth = kind, depth
        size, norm, layer = base.config.hidden_size, base.config.norm, base.config.layers[-1]
        if kind == "medusa":
            heads: list[nn.Module] = [MedusaHead(size) for _ in range(depth)]
        else:
            count = 1 if kind == "eagle" else depth
            heads = [Head(layer, size, norm, sequential=self.is_sequential) for _ in range(count)]
            for module in nn.ModuleList(heads).modules():
                if isinstance(module, Linear):
                    nn.init.normal_(module.weight, std=base.config.initializer_range)
        self.heads = nn.ModuleList(heads)
        self.cache_specs: list[CacheSpec] = assign_slots(self)

    @staticmethod
    def of(model: MultiTokenModel) -> DraftHeads:
        """The heads that were trained along with a trunk."""
        heads = DraftHeads("sequential" if model.config.sequential else "parallel", model.config.depth, model.trunk)
        heads.heads = model.heads
        heads.cache_specs = assign_slots(heads)
        return heads

    @property
    def is_sequential(self) -> bool:
        return self.kind in ("sequential", "eagle")

    def head_at(self, level: int) -> Head:
        """What makes the guess ``level`` places beyond the next token, from 0."""
        head = self.heads[0 if self.kind == "eagle" else level]
        assert isinstance(head, Head)
        return head

    def parallel_states(self, hidden_TD: Tensor, run: Run) -> list[Tensor]:
        """Of a kind that is not sequential: for each head a state ``(T, D)``, whose unembedding is its guess."""
        return [head(hidden_TD, hidden_TD, run) for head in self.heads]

    def sequential_states(
        self, hidden_TD: Tensor, embedded_TD: Tensor, run: Run, before: Callable[[int, Tensor], Tensor], levels: int
    ) -> list[Tensor]:
        """Of a sequential kind: the states ``(T, D)`` of the first ``levels`` heads, level by level. ``before(level,
        state_TD)`` is each token's predecessor's state."""
        states = [hidden_TD]
        for level in range(levels):
            states.append(self.head_at(level)(before(level, states[-1]), embedded_TD, run))
        return states[1:]


class MedusaHead(nn.Module):
    """Begins as no change at all: the guess for a later token is at first the one for the next."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = Linear(hidden_size, hidden_size, bias=True)
        nn.init.zeros_(self.linear.weight)

    def forward(self, state_TD: Tensor, *_: object) -> Tensor:
        return state_TD + F.silu(self.linear(state_TD))


# --- whose they are -------------------------------------------------------------------------------------------


def base_fingerprint(base: Decoder) -> str:
    """A hash of the model's sizes and norms. Those are never quantised or laid out anew, so it is the same for a model
    in any dtype and format, prepared for inference or not; a model that was tuned as a whole has another."""
    config = base.config
    state = hashlib.sha256(f"{config.vocab_size} {config.hidden_size} {config.num_layers}".encode())
    for weight in (weight for name, weight in base.named_parameters() if "norm" in name):
        rounded = weight.detach().to("cpu", torch.bfloat16).contiguous()  # whatever dtype it was loaded in
        state.update(rounded.view(torch.uint8).numpy().data)
    return state.hexdigest()[:16]


def save_heads(heads: DraftHeads, folder: Path | str, base: Decoder, *, replace: bool = False) -> None:
    """Raises `ConfigError` when the folder holds something else; ``replace`` allows older heads."""
    config = {
        "model_type": MODEL_TYPE,
        "kind": heads.kind,
        "depth": heads.depth,
        "hidden_size": base.config.hidden_size,
        "base_family": base.config.family,
        "base_fingerprint": base_fingerprint(base),
    }
    with atomic_folder(folder, replace_if="config.json" if replace else None) as partial:
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_weights(partial, ((name, tensor.cpu()) for name, tensor in heads.state_dict().items()))


def load_heads(folder: Path | str, base: Decoder) -> DraftHeads:
    """Raises `ModelFileError` for a damaged folder, `ConfigError` for heads of another model."""
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_bytes())
        kind, depth, theirs = config["kind"], config["depth"], config["base_fingerprint"]
        if config["model_type"] != MODEL_TYPE or kind not in KINDS or not isinstance(depth, int) or depth < 1:
            raise ValueError("not the config of draft heads")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{folder}: no folder of draft heads ({error})", hint="make one by `wootz spec train-heads`"
        ) from None
    if theirs != (ours := base_fingerprint(base)):
        raise ConfigError(f"{folder}: these heads were trained on another model ({theirs}, this one is {ours})")
    heads = DraftHeads(kind, depth, base).to(base.device, base.dtype)
    try:
        heads.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelFileError(f"{folder}: damaged weights ({str(error).splitlines()[0]})") from None
    return heads.eval()
