"""A model in GGUF: the way back from `wootz.models.gguf`, so that llama.cpp runs what was made here.

Not every tensor is quantised. Vectors stay float32: they are few and all depends on them. The output matrix (or the
embedding that it is tied to) gets at least six bits, as its errors go straight into the logits. And where rows are not
whole blocks of a K format, the plain format of the next size takes its place; these are llama.cpp's own rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from wootz.core.errors import ConfigError
from wootz.core.gguf_writer import TensorSource
from wootz.models.blocks.attention import AttentionConfig
from wootz.models.decoder import DecoderConfig
from wootz.models.gguf_architectures import Architecture, Made
from wootz.models.gguf_metadata import architecture_of, frequency_factors
from wootz.models.quantize_blocks import WEIGHTS_PER_BLOCK, quantize

_NARROWER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What takes a K format's place in rows that are not whole blocks of 256."""

_SIX_BITS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K")

_NEVER_QUANTISED = re.compile(r".*(ffn_gate_inp|ssm_conv1d|_norm)\.weight|(?!.*\.weight$).*")
"""Besides vectors: routers, short convolutions, and what is no product's weight."""


def gguf_tensors(
    config: DecoderConfig,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    type: str,
    output_type: str | None = None,
) -> dict[str, TensorSource]:
    """What is to be written, by GGUF name; ``shapes`` and ``read`` are by Hugging Face name. ``output_type`` is for the
    output matrix, if not that of llama.cpp's rules.

    Each tensor is read, reordered and quantised when it is written. Raises `ConfigError` for what has no name there.
    """
    architecture, sources, experts = architecture_of(config), {}, {}

    def add(name: str, shape: tuple[int, ...], weights: Callable[[], Tensor]) -> None:
        kind = type_for(name, tuple(shape), type, tied=config.tie_embeddings, output_type=output_type)
        sources[name] = TensorSource(
            tuple(shape), kind, lambda: quantize(weights().float().contiguous(), kind).flatten().numpy().data
        )

    for ours, shape in shapes.items():
        pattern, layer, expert = _pattern(ours)
        if (made := _made(architecture, pattern)) is not None:
            parts = made.split(config.raw, torch.empty(shape, device="meta"))
            for n, (part, meta) in enumerate(zip(made.theirs, parts, strict=True)):
                add(
                    part.replace("{i}", layer),
                    tuple(meta.shape),
                    lambda made=made, ours=ours, n=n: made.split(config.raw, read(ours).float())[n],
                )
        elif expert is not None:
            stacked = next((theirs for theirs, own in architecture.experts.items() if own == pattern), None)
            if stacked is None:
                raise ConfigError(f'GGUF has no name for tensor "{ours}" of this architecture')
            experts.setdefault((stacked.replace("{i}", layer), shape), []).append(ours)
        else:
            name = _gguf_name(architecture, ours, pattern, layer)
            add(name, shape, lambda ours=ours: _in_their_order(architecture, config, ours, read(ours).float()))
    for (name, shape), every in experts.items():
        add(name, (len(every), *shape), lambda every=every: torch.stack([read(ours).float() for ours in every]))
    for name, factors in frequency_factors(config).items():
        add(name, tuple(factors.shape), lambda factors=factors: factors)
    return sources


def type_for(
    name: str, shape: tuple[int, ...], wanted: str, *, tied: bool = False, output_type: str | None = None
) -> str:
    """The type of one tensor in a file whose matrices are to be ``wanted``."""
    if len(shape) < 2 or _NEVER_QUANTISED.fullmatch(name):
        return "F32"
    if name == ("token_embd.weight" if tied else "output.weight"):
        wanted = output_type or ("Q6_K" if wanted in _SIX_BITS else wanted)
    if shape[-1] % WEIGHTS_PER_BLOCK[wanted]:
        wanted = _NARROWER.get(wanted, wanted)
    return wanted if shape[-1] % WEIGHTS_PER_BLOCK[wanted] == 0 else "F16"


def _in_their_order(architecture: Architecture, config: DecoderConfig, name: str, tensor: Tensor) -> Tensor:
    if architecture.interleaved and (part := re.search(r"\.self_attn\.([qk])_proj\.", name)):
        attention = config.layers[0].mixer
        assert isinstance(attention, AttentionConfig)
        return to_interleaved(tensor, attention.num_heads if part[1] == "q" else attention.num_kv_heads)
    if architecture.norm_offset and name.endswith("norm.weight"):
        return tensor + architecture.norm_offset
    return tensor


def to_interleaved(rows: Tensor, num_heads: int) -> Tensor:
    """Within each head: the first row of each half, then the second of each, …."""
    return rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _pattern(name: str) -> tuple[str, str, str | None]:
    """A Hugging Face name with ``{i}`` and ``{e}`` in it, and what these are."""
    layer = re.search(r"layers\.(\d+)\.", name)
    expert = re.search(r"\.experts\.(\d+)\.", name)
    pattern = name.replace(layer[0], "layers.{i}.") if layer else name
    pattern = pattern.replace(expert[0], ".experts.{e}.") if expert else pattern
    return pattern, layer[1] if layer else "", expert[1] if expert else None


def _made(architecture: Architecture, pattern: str) -> Made | None:
    return next((made for made in architecture.made if made.ours == pattern), None)


def _gguf_name(architecture: Architecture, name: str, pattern: str, layer: str) -> str:
    module, _, leaf = pattern.rpartition(".")
    for gguf, ours in architecture.names.items():
        if ours == module:
            return f"{gguf}.{leaf}".replace("{i}", layer)
    raise ConfigError(f'GGUF has no name for tensor "{name}" of this architecture')
