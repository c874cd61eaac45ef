"""What an engine needs before its first step: a loaded model, its end tokens, and how large the cache may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from wootz import kernels
from wootz.core import ConfigError, EngineConfig, UnsupportedError
from wootz.engine.attention import PagedCache
from wootz.engine.cache import BlockPool
from wootz.engine.kv_store import CacheFormat
from wootz.engine.parallel.model import ParallelModel, lead
from wootz.engine.runner import Model
from wootz.engine.swap import SwapSpace, mover
from wootz.models import load as load_model
from wootz.models.context import CacheSpec, LatentKV, PagedKV, WholeText
from wootz.models.linear import Linear
from wootz.models.packed_weight import PackedWeight
from wootz.tokenization import load_tokenizer
from wootz.tokenization.fingerprint import check_fingerprint

if TYPE_CHECKING:
    from wootz.tokenization import Tokenizer

MOST_CPU_CACHE_BYTES = 2 * 2**30
MOST_SWAP_BYTES = 4 * 2**30
CPU_SHARE, GPU_SHARE = 0.25, 0.85
"""Of the memory that is free once the weights are loaded; on a GPU the rest is for activations."""

SAMPLING_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def load(
    model: str | Path | Model, tokenizer: Tokenizer | None, config: EngineConfig
) -> tuple[Model, Tokenizer | None]:
    """The model, its weights laid out for speed, and its tokenizer."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if isinstance(model, str | Path):
        path = Path(model)
        tokenizer = tokenizer or load_tokenizer(path)
        if path.is_dir():
            check_fingerprint(path, tokenizer)
        device = pick_device(config.device)
        dtype = pick_dtype(config.dtype, device)
        if config.num_ranks > 1:
            model = lead(path, config, dtype, device)
        else:
            packed = config.activations == "int8" or (config.activations == "auto" and kernels.MULTIPLIES_BYTES)
            model = load_model(path, dtype=dtype, device=device, keep_quantized="packed" if packed else "exact")
    elif config.num_ranks > 1 and not isinstance(model, ParallelModel):
        raise ConfigError("an engine on several processes loads its model from a path, on each of them")
    model.prepare_for_inference()
    return model, tokenizer


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f'engine.device: this machine has no "{name}"', hint='use "auto" or "cpu"') from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on a GPU that has it. On a CPU it is float32: without special instructions, which few have,
    bfloat16 products of more than one row run several times slower."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return getattr(torch, name)


def size_cache(model: Model, specs: list[CacheSpec], config: EngineConfig) -> tuple[int, int]:
    """``(num_blocks, max_model_len)``: as many blocks of ``specs`` as memory allows and ``max_running`` sequences could
    ever use, and the longest sequence that both model and cache can hold."""
    if any(isinstance(spec, WholeText) for spec in model.cache_specs):
        raise UnsupportedError(WholeText.REASON)
    longest = model.config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigError(f"engine.max_model_len: {config.max_model_len} is more than the model's own {longest}")
    max_model_len = config.max_model_len or longest

    block_bytes = PagedCache.block_bytes(specs, config.block_size, cache_format(model, config))
    budget = config.cache_bytes or _default_cache_bytes(model.device, config.num_ranks)
    budget -= config.max_running * PagedCache.state_bytes(model.cache_specs, model.dtype)
    useful = config.max_running * -(-max_model_len // config.block_size)
    num_blocks = min(budget // block_bytes, useful) if block_bytes else useful  # a purely recurrent model needs none
    room = num_blocks * config.block_size
    if num_blocks < 1 or (config.max_model_len is not None and room < config.max_model_len):
        tokens = config.max_model_len or config.block_size
        needed = -(-tokens // config.block_size) * block_bytes
        raise ConfigError(
            f"engine.cache_bytes: {budget} is too small; {tokens} tokens of this model take {needed} bytes"
        )
    return num_blocks, min(max_model_len, room)


def cache_format(model: Model, config: EngineConfig) -> CacheFormat:
    """How blocks keep their numbers. "auto" is as the model computes them, or in 16 bits where activations are rounded
    to 8 anyway and the kernels read the cache."""
    match config.cache_dtype:
        case "auto":
            rounds = any(
                isinstance(module, Linear) and isinstance(module.blocks, PackedWeight) for module in model.modules()
            )
            heads = [spec.head_dim for spec in model.cache_specs if isinstance(spec, PagedKV)]
            reads = all(dim % kernels.HEAD_MULTIPLE == 0 for dim in heads)
            return torch.float16 if rounds and reads else model.dtype
        case "int8" | "fp8" | "int4" as codes:
            kept = [spec for spec in model.cache_specs if isinstance(spec, PagedKV | LatentKV)]
            dims = [spec.head_dim if isinstance(spec, PagedKV) else spec.dim for spec in kept]
            if codes == "int4" and (odd := [dim for dim in dims if dim % 2]):
                raise ConfigError(
                    f'engine.cache_dtype: "int4" packs pairs, and this model keeps {odd[0]} numbers a head'
                )
            return codes
        case name:
            return getattr(torch, name)


def _default_cache_bytes(device: torch.device, num_ranks: int) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(GPU_SHARE * free)
    return min(int(CPU_SHARE * psutil.virtual_memory().available), MOST_CPU_CACHE_BYTES) // num_ranks


def make_swap_space(cache: PagedCache, pool: BlockPool, config: EngineConfig) -> SwapSpace:
    """Host memory for preempted sequences, laid out as the cache is. On a CPU there is none unless it is asked for:
    the same memory is worth more as cache."""
    budget, device, size = config.swap_bytes, cache.device, config.block_size
    if budget is None:
        budget = min(int(CPU_SHARE * psutil.virtual_memory().available), MOST_SWAP_BYTES) if device.type != "cpu" else 0
    state_bytes = PagedCache.state_bytes(cache.specs, cache.dtype)
    block_bytes = PagedCache.block_bytes(cache.specs, size, cache.format)
    num_states = min(pool.num_states or 0, budget // (2 * state_bytes)) if state_bytes else 0
    num_blocks = (budget - num_states * state_bytes) // block_bytes if block_bytes else pool.num_blocks
    if config.preemption == "recompute" or not num_blocks or (pool.num_states and not num_states):
        return SwapSpace(0, size)
    host = PagedCache(
        cache.specs,
        num_blocks,
        size,
        num_states=num_states,
        dtype=cache.dtype,
        device=torch.device("cpu"),
        format=cache.format,
    )
    return SwapSpace(
        num_blocks,
        size,
        num_states=num_states,
        block_bytes=block_bytes,
        preemption=config.preemption,
        save=mover(cache, host),
        load=mover(host, cache),
    )


def sampling_defaults(path: Path) -> dict[str, Any]:
    """What the model's ``generation_config.json`` says about sampling."""
    file = path / "generation_config.json"
    if not file.is_file():
        return {}
    settings = json.loads(file.read_text())
    return {name: settings[name] for name in SAMPLING_DEFAULTS if settings.get(name) is not None}
