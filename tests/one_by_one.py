"""A tiny random model, an engine around it, and generation one token at a time, the oracle of everything else."""

from __future__ import annotations

from functools import lru_cache

import torch

from wootz.engine import Engine, EngineConfig, SamplingParams
from wootz.engine.attention import PagedCache
from wootz.engine.output import NoText, TextStream
from wootz.engine.sampler import sample
from wootz.engine.sequence import Request, Sequence
from wootz.engine.setup import cache_format
from wootz.engine.speculation.speculate import Speculator
from wootz.models import Decoder, read_config

VOCAB_SIZE = 37
EOS = 0


@lru_cache
def tiny_model() -> Decoder:
    """Float64, so that another order of additions never changes which token is likeliest; sharp, so that it varies."""
    torch.manual_seed(5)
    config = read_config(
        {
            "model_type": "llama",
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "eos_token_id": EOS,
        }
    )
    model = config.build().double()
    for parameter in model.parameters():
        parameter.data *= 6
    return model.eval().requires_grad_(False)


def tiny_engine(
    num_blocks: int, model: Decoder | None = None, speculator: Speculator | None = None, **config
) -> Engine:
    """With room for ``num_blocks`` blocks, and for the states of a recurrent model's sequences."""
    config = {"block_size": 4, "max_running": 8} | config
    model = model or tiny_model()
    specs = [*model.cache_specs, *(speculator.cache_specs if speculator else ())]
    format = cache_format(model, EngineConfig(**config))
    cache_bytes = num_blocks * PagedCache.block_bytes(specs, config["block_size"], format)
    cache_bytes += config["max_running"] * PagedCache.state_bytes(model.cache_specs, model.dtype)
    return Engine(model, config=EngineConfig(cache_bytes=cache_bytes or 1, **config), speculator=speculator)


def one_at_a_time(
    prompt: list[int],
    params: SamplingParams,
    max_len: int = 256,
    *,
    seed: int | None = None,
    model: Decoder | None = None,
):
    """Token ids of each choice, by running the whole sequence through the model for every token."""
    model = model or tiny_model()
    ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else {EOS})
    max_len = min(max_len, len(prompt) + (params.max_tokens or max_len))
    seed = params.seed if seed is None else seed
    request = Request("", prompt, params, 0 if seed is None else seed, ends, max_len)
    choices = []
    for index in range(params.n):
        sequence = Sequence(request, index, list(prompt), TextStream(NoText()))
        while len(sequence.token_ids) < max_len:
            with torch.inference_mode():
                logits_1V = model.logits(sequence.token_ids)[-1:].clone()
                (chosen,) = sample(logits_1V, [sequence])
            sequence.token_ids.append(chosen.token_id)
            if chosen.token_id in ends:
                break
        choices.append(sequence.token_ids[len(prompt) :])
    return choices
