"""All layers in one call give what they give one by one, and a request's company does not change a bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from msgspec import structs
from packed_model import CONFIGS, packed_model
from tiny_model import write_tiny_model

from wootz import kernels
from wootz.core import EngineConfig
from wootz.engine import Engine, SamplingParams
from wootz.engine.fused import FusedLayers
from wootz.engine.sampler import Logits
from wootz.engine.scheduler import Chunk
from wootz.models import families
from wootz.models.saving import save
from wootz.models.weight_quantization.whole_model import quantize as quantize_folder
from wootz.tokenization import load_tokenizer

pytestmark = pytest.mark.skipif(not kernels.AVAILABLE, reason="installed without a C++ compiler")


@pytest.mark.parametrize("name", CONFIGS)
def test_one_call_equals_layer_by_layer(name: str) -> None:
    fused, plain = Engine(packed_model(name)), Engine(packed_model(name))
    assert fused.model.layer_loop is not None, "nothing was fused"  # pyright: ignore[reportAttributeAccessIssue]
    plain.model.layer_loop = None  # pyright: ignore[reportAttributeAccessIssue]
    prompts = [torch.randint(0, 157, (n,)).tolist() for n in (1, 5, 40, 90)]
    params = SamplingParams(temperature=0, max_tokens=30, logprobs=5, ignore_eos=True)
    for one, other in zip(fused.generate(prompts, params), plain.generate(prompts, params), strict=True):
        assert one.logprobs is not None
        assert other.logprobs is not None
        for a, b in zip(one.logprobs, other.logprobs, strict=True):
            # A number that lies between two steps may be rounded to either: logits differ a little.
            assert abs(a.logprob - b.logprob) < 0.02
            if a.token_id != b.token_id:
                assert abs(a.top[0][2] - a.top[1][2]) < 0.02, "different tokens, and not because two were as likely"
                break


def test_what_is_not_common_runs_layer_by_layer() -> None:
    torch.manual_seed(0)
    dense = families.read_config(CONFIGS["llama"]).build()
    assert Engine(dense).model.layer_loop is None  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_chunks_batches_sharing_and_preemption_do_not_change_a_bit(name: str) -> None:
    torch.manual_seed(1)
    prompts = [torch.randint(0, 157, (n,)).tolist() for n in (3, 17, 33, 70)]
    prompts.append([*prompts[3][:64], 5, 6, 7])
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
    alone = [Engine(packed_model(name)).generate([prompt], params)[0] for prompt in prompts]
    block_bytes = Engine(packed_model(name), config=EngineConfig(block_size=4)).runner.cache.layers[0][0].nbytes * 3
    configs = {
        "together": EngineConfig(),
        "token by token": EngineConfig(max_step_tokens=1),
        "odd chunks": EngineConfig(max_step_tokens=7, prefix_caching=False),
        "preempted": EngineConfig(block_size=4, cache_bytes=24 * block_bytes, max_model_len=90),
    }
    for how, config in configs.items():
        engine = Engine(packed_model(name), config=config)
        together = engine.generate(prompts, params)
        assert how != "preempted" or engine.stats().preemptions > 0
        for one, other in zip(alone, together, strict=True):
            assert one.logprobs is not None
            assert other.logprobs is not None
            assert [a.logprob for a in one.logprobs] == [b.logprob for b in other.logprobs], how


@pytest.mark.parametrize("method", ["rtn4", "awq", "int8", "smoothquant"])
def test_folders_are_packed_too(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = families.read_config(CONFIGS["qwen3"]).build()
    save(model, tmp_path / "whole")
    calibration = [torch.randint(0, 157, (64,)).tolist() for _ in range(4)]
    quantize_folder(tmp_path / "whole", tmp_path / method, method, calibration=calibration, group_size=32)
    tokenizer = load_tokenizer(write_tiny_model(tmp_path / "tiny"))
    fused = Engine(tmp_path / method, tokenizer=tokenizer, config=EngineConfig(activations="int8"))
    exact = Engine(tmp_path / method, tokenizer=tokenizer, config=EngineConfig(activations="float32"))
    assert fused.model.layer_loop is not None, "nothing was fused"  # pyright: ignore[reportAttributeAccessIssue]
    text, scored = torch.randint(0, 157, (100,)).tolist(), SamplingParams(max_tokens=0, prompt_logprobs=0)
    logprobs = []
    for engine in (fused, exact):
        (answer,) = engine.generate([text], scored)
        assert answer.prompt_logprobs is not None
        logprobs.append(torch.tensor([token.logprob for token in answer.prompt_logprobs[1:] if token]))
    assert 0 < (logprobs[0] - logprobs[1]).abs().mean() < 0.02


@pytest.mark.parametrize("name", CONFIGS)
def test_a_whole_step_in_one_call_equals_its_parts(name: str) -> None:
    """Tokens to logits and the likeliest tokens: to the last bit what embedding, layers and head give one by one."""
    engine, apart = Engine(packed_model(name)), Engine(packed_model(name))
    whole, parts = engine.model.layer_loop, apart.model.layer_loop  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(whole, FusedLayers)
    assert isinstance(parts, FusedLayers)
    steps: list[tuple[torch.Tensor, list[int] | None]] = []
    run = whole.step

    def noted(chunks: list[Chunk]) -> Logits | None:
        logits = run(chunks)
        assert logits is not None, "the step was not computed whole"
        steps.append((logits.rows_SV.clone(), logits.likeliest_S))
        return logits

    whole.step = noted  # pyright: ignore[reportAttributeAccessIssue]
    parts.step = lambda chunks: None  # pyright: ignore[reportAttributeAccessIssue]
    prompts = [torch.randint(0, 157, (n,)).tolist() for n in (1, 5, 40, 140)]
    greedy = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    scored = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=0)
    one, other = engine.generate(prompts, greedy), apart.generate(prompts, scored)
    assert [answer.token_ids for answer in one] == [answer.token_ids for answer in other]
    again = engine.generate(prompts, scored)
    for a, b in zip(again, other, strict=True):
        assert a.logprobs is not None
        assert b.logprobs is not None
        assert [token.logprob for token in a.logprobs] == [token.logprob for token in b.logprobs]
    assert steps
    for rows_SV, likeliest_S in steps:
        assert likeliest_S == rows_SV.argmax(-1).tolist()


def test_a_step_that_asks_for_more_is_computed_in_parts() -> None:
    """Scores of a prompt need its hidden states."""
    engine = Engine(packed_model("llama"))
    prompt = torch.randint(0, 157, (30,)).tolist()
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    (scored,) = engine.generate([prompt], structs.replace(params, prompt_logprobs=0))
    (plain,) = engine.generate([prompt], params)
    assert scored.prompt_logprobs is not None
    assert scored.token_ids == plain.token_ids


def test_of_equal_logits_the_first_is_the_likeliest() -> None:
    model = packed_model("qwen2")
    matrix = model.head.blocks.matrices[0]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    matrix.data.zero_()
    engine = Engine(model)
    (answer,) = engine.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    assert answer.token_ids == [0, 0, 0, 0]
