from __future__ import annotations

import subprocess
import sys

import pytest
import tokenizers
import torch

from wootz.core import BadRequestError, ConfigError, EngineConfig, RateLimitError
from wootz.engine import Engine, SamplingParams
from wootz.models import read_config
from wootz.tokenization import load_tokenizer

SMALL = EngineConfig(cache_bytes=2**22)


@pytest.fixture(scope="module")
def engine(tiny_folder) -> Engine:
    return Engine(tiny_folder, config=SMALL)


def test_greedy_tokens_equal_transformers(tiny_folder, engine):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    prompts = [engine.tokenizer.encode(text) for text in ("the engine", "A request leaves one record", "x" * 90)]
    answers = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=48, ignore_eos=True))
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = torch.tensor([prompt])
        wanted = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=48, min_new_tokens=48
        )
        # min_new_tokens forbids the end token, so compare up to where we would have chosen it
        wanted = wanted[0, len(prompt) :].tolist()
        end = answer.token_ids.index(2) if 2 in answer.token_ids else 48
        assert end > 5
        assert answer.token_ids[:end] == wanted[:end]


def test_an_answer_says_all_about_itself(engine):
    messages = [{"role": "user", "content": "hello"}]
    (answer,) = engine.generate([messages], SamplingParams(max_tokens=5, n=2, seed=3, logprobs=2, ignore_eos=True))
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.prompt_token_ids == engine.tokenizer.encode_chat(messages)
    assert answer.prompt_tokens == len(answer.prompt_token_ids)
    assert answer.text == engine.tokenizer.decode(answer.token_ids)
    assert answer.finish_reason == "length"
    for token, logprob in zip(answer.token_ids, answer.logprobs, strict=True):
        assert logprob.token_id == token
        assert logprob.token == engine.tokenizer.token_bytes(token)
        assert len(logprob.top) == 2


def test_a_completion_goes_on_where_its_prompt_ends(tmp_path):
    trained = tokenizers.SentencePieceBPETokenizer()
    trained.train_from_iterator(["the sea is blue and the steel is grey"] * 9, vocab_size=64, show_progress=False)
    trained.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.strips_leading_space
    torch.manual_seed(0)
    config = read_config(
        {
            "model_type": "llama",
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
        }
    )
    engine = Engine(config.build(), config=SMALL, tokenizer=tokenizer)
    answers = engine.generate(["the sea"] * 20, [SamplingParams(seed=seed, max_tokens=6) for seed in range(20)])
    assert any(answer.text.startswith(" ") for answer in answers)
    for answer in answers:
        whole = tokenizer.decode(answer.prompt_token_ids + answer.token_ids)
        assert whole == "the sea" + answer.text


def test_a_stop_string_is_not_shown(engine):
    free = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    (whole,) = engine.generate(["the engine"], free)
    stop = whole.text[8:11]
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, stop=(stop,))
    (answer,) = engine.generate("the engine", params)
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert (answer.finish_reason, answer.choices[0].stop_reason) == ("stop", stop)


def test_a_stop_token_is_not_shown_but_counted(engine):
    free = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    (whole,) = engine.generate(["the engine"], free)
    stop = whole.token_ids[6]
    first = whole.token_ids.index(stop)
    (answer,) = engine.generate(
        ["the engine"], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=(stop,))
    )
    assert answer.token_ids == whole.token_ids[: first + 1]
    assert answer.text == engine.tokenizer.decode(whole.token_ids[:first])
    assert (answer.finish_reason, answer.choices[0].stop_reason) == ("stop", stop)


def test_an_answer_ends_where_the_context_ends(tiny_folder):
    engine = Engine(tiny_folder, config=EngineConfig(cache_bytes=2**22, max_model_len=32))
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    (answer,) = engine.generate([[5] * 20], params)
    assert (len(answer.token_ids), answer.finish_reason) == (12, "length")


@pytest.mark.parametrize("prompt", [[5] * 64, [5] * 1000])
def test_a_prompt_that_never_fits_is_refused(tiny_folder, prompt):
    """Too long for the cache, which is what bounds this engine's context."""
    engine = Engine(tiny_folder, config=EngineConfig(cache_bytes=2 * 2 * 32 * 2 * 4 * 64))
    assert engine.max_model_len < 2048
    with pytest.raises(BadRequestError) as error:
        engine.generate([[5, 6], [5] * engine.max_model_len], SamplingParams())
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "prompt")
    assert not engine.has_work, "nothing may be begun when one prompt is refused"


def test_a_long_conversation_is_refused_by_its_own_name(tiny_folder):
    engine = Engine(tiny_folder, config=EngineConfig(cache_bytes=2**22, max_model_len=16))
    with pytest.raises(BadRequestError) as error:
        engine.generate([[{"role": "user", "content": "word " * 50}]])
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"n": 0}, "n"),
        ({"stop": ("",)}, "stop"),
        ({"stop_token_ids": (10**6,)}, "stop_token_ids"),
        ({"logit_bias": {10**6: 1.0}}, "logit_bias"),
        ({"logit_bias": {1: 1000.0}}, "logit_bias"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"logprobs": -1}, "logprobs"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(engine, params, param):
    with pytest.raises(BadRequestError) as error:
        engine.generate(["x"], SamplingParams(**params))
    assert error.value.param == param


def test_wrong_prompts_are_refused(engine):
    for prompt in ([], [10**6], [-1]):
        with pytest.raises(BadRequestError) as error:
            engine.generate([prompt])
        assert error.value.param == "prompt"


def test_a_full_queue_refuses_for_now(tiny_folder):
    engine = Engine(tiny_folder, config=EngineConfig(cache_bytes=2**22, max_waiting=2))
    for _ in range(2):
        engine.submit(engine.make_request([5], SamplingParams()))
    with pytest.raises(RateLimitError):
        engine.submit(engine.make_request([5], SamplingParams()))
    while engine.has_work:
        engine.step()
    assert len(engine.generate([[5]] * 7, SamplingParams(max_tokens=2))) == 7, "generate feeds the queue as it empties"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"cache_bytes": 10}, "cache_bytes"),
        ({"max_model_len": 10**6}, "max_model_len"),
        ({"max_model_len": 2048, "cache_bytes": 2**16}, "cache_bytes"),
        ({"device": "warp"}, "device"),
    ],
)
def test_an_impossible_configuration_is_refused_by_name(tiny_folder, config, named):
    with pytest.raises(ConfigError, match=f"engine.{named}"):
        Engine(tiny_folder, config=EngineConfig(**config))


@pytest.mark.parametrize("module", ["wootz.engine", "wootz.engine.protocol", "wootz.engine.client"])
def test_callers_need_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
