"""The promise of `docs/logprobs.md`: a log-probability from the engine is the one of the training forward.

The same weights, seen by `PackedContext` as training sees them and by the engine's paged cache: sampled tokens, and
given text that is scored, however requests are batched, chunked, preempted or shared.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import pytest
import torch
from one_by_one import tiny_engine

from wootz.core import BadRequestError
from wootz.engine import Engine, SamplingParams
from wootz.engine.generation import Generation
from wootz.models import Decoder, PackedContext, read_config

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "eos_token_id": 0,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "gemma2": {"model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "windows-and-sinks": {"model_type": "wootz", "layers": "WA", "sliding_window": 5, "sinks": True},
    "latent": {"model_type": "wootz", "layers": "L"},
    "mamba2": {"model_type": "wootz", "layers": "S", "state_size": 8},
    "hybrid": {"model_type": "wootz", "layers": "MAe", "experts": "4x2+1", "state_size": 8},
    "rwkv7": {"model_type": "wootz", "layers": "R", "ffn": "rwkv", "num_attention_heads": 4},
}
CRAMPED = {"block_size": 4, "max_running": 6, "max_step_tokens": 9}


@lru_cache
def model_of(kind: str, dtype: torch.dtype) -> Decoder:
    torch.manual_seed(3)
    model = read_config(SIZES | MODELS[kind]).build()
    assert isinstance(model, Decoder)
    for parameter in model.parameters():
        parameter.data *= 3 if parameter.ndim > 1 else 1  # opinions, as a trained model has them
    return model.to(dtype).eval().requires_grad_(False)


def generated(engine: Engine, num_requests: int = 12) -> list[Generation]:
    """Answers to requests that share beginnings, ask for prompts' scores or not, and draw from sharp and flat ends."""
    rng = random.Random(4)
    shared = [rng.randrange(1, 61) for _ in range(12)]
    prompts = [
        shared[: rng.choice([0, 8, 12])] + [rng.randrange(1, 61) for _ in range(rng.randrange(1, 9))]
        for _ in range(num_requests)
    ]
    params = [
        SamplingParams(
            max_tokens=rng.randrange(1, 14), seed=number, n=1 + number % 2, temperature=rng.choice([0.0, 0.7, 1.0]),
            top_k=rng.choice([0, 5]), logprobs=2, prompt_logprobs=rng.choice([None, 0, 3]),
        )
        for number in range(num_requests)
    ]  # fmt: skip
    return engine.generate(prompts, params)


def training_logprobs(model: Decoder, texts: list[list[int]]) -> list[torch.Tensor]:
    """Of each text's tokens but the first: all texts packed end to end, as in a training step."""
    lengths = [len(text) for text in texts]
    positions_T = torch.cat([torch.arange(length) for length in lengths])
    tokens_T = torch.tensor([token for text in texts for token in text])
    logits = model.unembed(model(tokens_T, positions_T, PackedContext(lengths))).split(lengths)
    return [
        rows[:-1].log_softmax(-1).gather(1, torch.tensor(text[1:]).unsqueeze(1)).squeeze(1)
        for text, rows in zip(texts, logits, strict=True)
    ]


def compared(model: Decoder, answers: list[Generation]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the engine said of every sampled token and every scored prompt token, and what training says."""
    texts = [a.prompt_token_ids + choice.token_ids for a in answers for choice in a.choices]
    expected = iter(training_logprobs(model, texts))
    ours, theirs = [], []
    for answer in answers:
        for choice in answer.choices:
            of_text, start = next(expected), len(answer.prompt_token_ids) - 1
            ours += [token.logprob for token in choice.logprobs or []]
            theirs.append(of_text[start:])
            if answer.prompt_logprobs is not None:
                ours += [token.logprob for token in answer.prompt_logprobs[1:]]
                theirs.append(of_text[:start])
    return torch.tensor(ours), torch.cat(theirs)


@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_logprobs_are_those_of_the_training_forward(kind: str) -> None:
    model = model_of(kind, torch.float32)
    engine = tiny_engine(10, model, **CRAMPED)
    answers = generated(engine)
    ours, theirs = compared(model, answers)
    assert len(ours) > 100
    assert theirs.min() < -4  # unlikely tokens too
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    if kind not in ("mamba2", "rwkv7"):  # their states take no blocks, so nobody has to give way
        assert engine.scheduler.num_preemptions > 0


@pytest.mark.parametrize("kind", ["llama", "gemma2", "hybrid"])
@torch.inference_mode()
def test_in_bfloat16_they_differ_by_roundings_of_the_logits(kind: str) -> None:
    """A logit is a bfloat16 number, and a step of another shape may round it to the next one: 2^-8 of its size. A
    log-probability may be off by that of its own logit and of those that the sum is made of."""
    model = model_of(kind, torch.bfloat16)
    ours, theirs = compared(model, generated(tiny_engine(10, model, **CRAMPED)))
    largest = model.logits(list(range(1, 60))).abs().max()
    assert (ours - theirs).abs().max() <= 2 * 2**-8 * largest


@torch.inference_mode()
def test_given_text_is_scored_with_its_likeliest_alternatives_and_nothing_is_written() -> None:
    model = model_of("llama", torch.float32)
    engine = tiny_engine(60, model, block_size=4, max_step_tokens=7)
    text = [random.Random(1).randrange(1, 61) for _ in range(40)]
    params = SamplingParams(max_tokens=0, prompt_logprobs=3)
    for _ in range(2):  # the second time all of it is in the cache, which must not matter
        (answer,) = engine.generate([text], params)
        assert (answer.token_ids, answer.finish_reason, answer.cached_tokens) == ([], "length", 0)
        assert answer.prompt_logprobs is not None
        assert [token.token_id for token in answer.prompt_logprobs] == text
        assert (answer.prompt_logprobs[0].logprob, answer.prompt_logprobs[0].top) == (0.0, [])
        logprobs = model.logits(text).log_softmax(-1)
        for place, token in enumerate(answer.prompt_logprobs[1:]):
            assert token.logprob == pytest.approx(logprobs[place, token.token_id].item(), abs=1e-5)
            values, ids = logprobs[place].topk(3)
            assert [top[0] for top in token.top] == ids.tolist()
            assert [top[2] for top in token.top] == pytest.approx(values.tolist(), abs=1e-5)
    # and what was scored is there for others
    (other,) = engine.generate([[*text, 5]], SamplingParams(max_tokens=1))
    assert other.cached_tokens == 40
    (whole,) = engine.generate([text * 3 + text[:8]], params)  # as long as the model reads: nothing has to follow
    assert len(whole.prompt_logprobs or []) == 128


def test_no_tokens_may_be_asked_for_only_to_score() -> None:
    engine = tiny_engine(20, model_of("llama", torch.float32))
    with pytest.raises(BadRequestError, match='"max_tokens" must be at least 1'):
        engine.make_request([1], SamplingParams(max_tokens=0))
    with pytest.raises(BadRequestError, match="prompt_logprobs"):
        engine.make_request([1], SamplingParams(prompt_logprobs=-1))
