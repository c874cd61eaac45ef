"""A cache in fewer bits: what is read is close to what was written, and the same whatever the company."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from one_by_one import one_at_a_time, tiny_engine, tiny_model
from torch import Tensor

from wootz.core import ConfigError, EngineConfig
from wootz.engine import Engine, SamplingParams
from wootz.engine.kv_store import KVStore, allocate, bytes_per_token, decode, encode
from wootz.engine.setup import size_cache
from wootz.models import Decoder, PackedContext, load, read_config
from wootz.tokenization import load_tokenizer

FORMATS = ["int8", "fp8", "int4", torch.float16, torch.bfloat16]


class RoundedContext(PackedContext):
    """Whole documents, whose keys and values are what a cache of this format would give back."""

    remembers = True  # latent attention keeps latents, as in the engine

    def __init__(self, lengths: list[int], format) -> None:
        super().__init__(lengths)
        self.format = format

    def round(self, x_T: Tensor) -> Tensor:
        return decode(encode(x_T, self.format), self.format, x_T.dtype)

    def attend(self, slot, q_THd, k_TKd, v_TKe, **how):
        if k_TKd.shape[1:] == v_TKe.shape[1:]:
            k_TKd, v_TKe = self.round(torch.stack((k_TKd, v_TKe), 1)).unbind(1)
        return super().attend(slot, q_THd, k_TKd, v_TKe, **how)

    def attend_latent(self, slot, q_THd, latent_Td, *, value_dim, scale):
        latent_T1d = self.round(latent_Td).unsqueeze(1)
        return PackedContext.attend(self, slot, q_THd, latent_T1d, latent_T1d[..., :value_dim], scale=scale)


class RoundedModel:
    """What `one_at_a_time` asks of a model."""

    def __init__(self, model: Decoder, format) -> None:
        self.model, self.format = model, format

    def logits(self, token_ids: list[int]) -> Tensor:
        ids_T = torch.tensor(token_ids)
        context = RoundedContext([len(ids_T)], self.format)
        return self.model.unembed(self.model(ids_T, torch.arange(len(ids_T)), context))


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 64), (2, 1, 10), (300,)], ids=str)
def test_what_is_read_is_what_was_returned_and_close_to_what_was_written(format, shape):
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn((7, *shape), generator=generator) * torch.logspace(-3, 3, 7).view(7, *[1] * len(shape))
    x_T[3] = 0
    layer = allocate(shape, 5, 4, format, torch.device("cpu"))
    store = KVStore((layer,) if isinstance(layer, Tensor) else layer, format, torch.float32)
    slots_T = torch.tensor([8, 9, 10, 11, 4, 5, 6])
    returned_T = store.write(slots_T, x_T)
    assert torch.equal(store.gather(torch.tensor([2, 1]))[:7], returned_T)
    store.copy(2, 0)
    assert torch.equal(store.gather(torch.tensor([0])), returned_T[:4])
    error = (returned_T - x_T).abs()
    if isinstance(format, torch.dtype):
        assert torch.all(error <= x_T.abs() * torch.finfo(format).eps + 1e-7)
    elif format == "fp8":
        smallest = x_T.abs().amax(-1, keepdim=True) * 2**-17
        assert torch.all(error <= x_T.abs() / 16 * 1.001 + smallest)
    else:
        levels = {"int8": 255, "int4": 15}[format]
        span = x_T.amax(-1, keepdim=True) - x_T.amin(-1, keepdim=True)
        assert torch.all(error <= span / levels / 2 * 1.01 + x_T.abs() * 2**-9 + 1e-6)


def test_in_four_bits_a_large_channel_leaves_the_others_their_levels():
    x_THd = torch.randn(50, 2, 64, generator=torch.Generator().manual_seed(0))
    plain = (decode(encode(x_THd, "int4"), "int4", torch.float32) - x_THd).abs().mean()
    x_THd[:, 1, 17] = 300
    read_THd = decode(encode(x_THd, "int4"), "int4", torch.float32)
    assert (read_THd[:, 1, 17] == 300).all()
    read_THd[:, 1, 17] = x_THd[:, 1, 17]
    assert (read_THd - x_THd).abs().mean() < 1.1 * plain


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_tokens_equal_a_loop_that_rounds_the_same_way(format):
    prove_rounded(tiny_model(), format)


@pytest.mark.parametrize("format", ["int8", "fp8", "int4"])
def test_latents_are_kept_in_codes_too(format):
    torch.manual_seed(1)
    model = read_config(
        {
            "model_type": "deepseek_v2",
            "vocab_size": 37,
            "hidden_size": 32,
            "intermediate_size": 48,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "kv_lora_rank": 12,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "eos_token_id": 0,
        }
    ).build()
    assert isinstance(model, Decoder)
    for parameter in model.parameters():
        parameter.data *= 6
    prove_rounded(model.double().eval().requires_grad_(False), format)


def prove_rounded(model: Decoder, format) -> None:
    """Short chunks, sharing, preemption and choices; each request's tokens are those of `RoundedModel` alone."""
    rng = random.Random(0)
    name = str(format).removeprefix("torch.")
    engine = tiny_engine(10, model, block_size=4, max_running=4, max_step_tokens=7, cache_dtype=name)
    shared = [rng.randrange(1, 37) for _ in range(9)]
    prompts = [shared[: rng.choice([0, 5, 9])] + [rng.randrange(1, 37) for _ in range(3)] for _ in range(8)]
    params = [SamplingParams(seed=seed, max_tokens=8, n=rng.choice([1, 2])) for seed in range(8)]
    answers = engine.generate(prompts, params)
    rounded = RoundedModel(model, format)
    for prompt, each, answer in zip(prompts, params, answers, strict=True):
        alone = one_at_a_time(prompt, each, engine.max_model_len, model=rounded)  # pyright: ignore[reportArgumentType]
        assert [choice.token_ids for choice in answer.choices] == alone
    assert engine.stats().preemptions > 0
    engine.pool.check_integrity([])


def test_smaller_numbers_mean_more_blocks():
    def blocks(cache_dtype: str) -> int:
        config = EngineConfig(cache_bytes=20_480, block_size=4, max_running=1000, cache_dtype=cache_dtype)
        return size_cache(model, model.cache_specs, config)[0]

    model = copy.deepcopy(tiny_model()).float()
    sizes = {name: blocks(name) for name in ("auto", "float16", "int8", "fp8", "int4")}
    assert sizes["float16"] == 2 * sizes["auto"]
    assert sizes["fp8"] > sizes["int8"] > sizes["float16"]
    assert (bytes_per_token((2, 3, 64), "int8"), bytes_per_token((2, 3, 64), "int4")) == (6 * 68, 6 * 39)


def test_four_bits_need_an_even_head():
    model = read_config(
        {"model_type": "gpt2", "vocab_size": 37, "n_embd": 30, "n_head": 2, "n_layer": 1, "n_positions": 64}
    )
    with pytest.raises(ConfigError, match='cache_dtype: "int4" packs pairs'):
        Engine(model.build(), config=EngineConfig(cache_dtype="int4"))


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(1200)
def test_perplexity_of_a_real_model_hardly_rises(smollm2_gguf):
    text = Path(__file__).parents[3] / "shared/data/shakespeare/input.txt"
    if not text.is_file():
        pytest.skip(f"{text} is not there")
    model, tokenizer = load(smollm2_gguf), load_tokenizer(smollm2_gguf)
    ids = tokenizer.encode(text.read_text()[:4000])[:768]
    ids_T, positions_T = torch.tensor(ids), torch.arange(len(ids))

    @torch.inference_mode()
    def loss(context: PackedContext) -> float:
        logits_TV = model.unembed(model(ids_T, positions_T, context))
        return F.cross_entropy(logits_TV[:-1], ids_T[1:]).item()

    exact = loss(PackedContext([len(ids)]))
    for format, most in (("int8", 0.005), ("fp8", 0.01), ("int4", 0.06)):
        assert abs(loss(RoundedContext([len(ids)], format)) - exact) < most
