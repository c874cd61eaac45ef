"""Beams are those of transformers' ``generate(num_beams=…)``, score by score, whatever the company and however small
the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from one_by_one import tiny_engine
from random_reference import save_random

from wootz.core import BadRequestError
from wootz.engine import Engine, SamplingParams
from wootz.models import load

SIZES = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "eos_token_id": 0}
ATTENTION = transformers.LlamaConfig(**SIZES, num_hidden_layers=2, num_key_value_heads=2, bos_token_id=None)
HYBRID = transformers.JambaConfig(
    **SIZES, num_hidden_layers=2, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1, num_experts=1,
    use_mamba_kernels=False, mamba_d_state=4, bos_token_id=None,
    pad_token_id=0,
)  # fmt: skip
PROMPTS = [[5, 9, 2, 23, 7, 7, 1, 12, 3], [5, 9, 2, 23, 7, 7, 1, 12, 4, 8], [11, 3]]
SETTINGS = [
    {"num_beams": 2},
    {"num_beams": 4, "n": 4, "early_stopping": True},
    {"num_beams": 4, "n": 4, "length_penalty": 2.0, "early_stopping": "never"},
    {"num_beams": 3, "n": 2, "length_penalty": 0.0, "early_stopping": "never"},
    {"num_beams": 5, "n": 5, "length_penalty": -0.5, "min_tokens": 3},
    {"num_beams": 3, "n": 3, "repetition_penalty": 1.7},
]


ASKED = [
    (prompt, SamplingParams(temperature=0, max_tokens=9, **settings)) for settings in SETTINGS for prompt in PROMPTS
]


@pytest.fixture(scope="module", params=[ATTENTION, HYBRID], ids=["attention", "hybrid"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("beams")
    model = save_random(folder, request.param).double()
    with torch.no_grad():
        model.lm_head.weight *= 4  # opinions differ enough for beams to die and to be followed twice
    model.save_pretrained(folder)
    expected = [beams_of_transformers(model, prompt, params) for prompt, params in ASKED]
    return folder, expected


@torch.inference_mode()
def beams_of_transformers(model, prompt: list[int], params: SamplingParams) -> list[tuple[list[int], float]]:
    found = model.generate(
        torch.tensor([prompt]), do_sample=False, num_beams=params.num_beams, num_return_sequences=params.n,
        max_new_tokens=params.max_tokens, length_penalty=params.length_penalty, early_stopping=params.early_stopping,
        min_new_tokens=params.min_tokens or None, repetition_penalty=params.repetition_penalty, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    answers = []
    for row, score in zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True):
        answer = row[len(prompt) :]
        answers.append((answer[: answer.index(0) + 1] if 0 in answer else answer, score))
    return answers


def run(engine: Engine, asked: list[tuple[list[int], SamplingParams]]) -> list[list[tuple[list[int], float]]]:
    requests = [engine.make_request(prompt, params) for prompt, params in asked]
    found = {request: [([], 0.0)] * request.params.n for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for request, event in engine.step():
            if hasattr(event, "token_ids"):
                tokens, _ = found[request][event.index]
                found[request][event.index] = tokens + event.token_ids, event.score
        engine.scheduler.check_integrity()
    assert engine.pool.num_available == engine.pool.num_blocks
    return list(found.values())


@pytest.mark.parametrize(
    ("num_blocks", "config"),
    [
        (200, {"block_size": 4, "max_running": 32, "max_step_tokens": 64}),
        (200, {"block_size": 4, "max_running": 9, "max_step_tokens": 3}),
        (30, {"block_size": 4, "max_running": 5, "max_step_tokens": 24}),
    ],
    ids=["roomy", "in-chunks", "cramped"],
)
def test_beams_and_scores_equal_transformers_whatever_the_company(reference, num_blocks, config) -> None:
    folder, expected = reference
    company = [([7, 1, number], SamplingParams(temperature=0, max_tokens=12)) for number in range(4)]
    engine = tiny_engine(num_blocks, load(folder, dtype="float64"), **config)
    found = run(engine, [*company[:2], *ASKED, *company[2:]])[2:-2]
    if num_blocks == 30:
        assert engine.scheduler.num_preemptions > 0
    for asked, ours, theirs in zip(ASKED, found, expected, strict=True):
        assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in theirs], asked
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=1e-5)


def test_beams_share_what_they_have_in_common(reference) -> None:
    """A prompt of many blocks lies in the cache once, and what branches off is copied by whoever writes."""
    folder, _ = reference
    engine = tiny_engine(400, load(folder), block_size=4, max_running=8)
    request = engine.make_request(list(range(1, 23)) * 4, SamplingParams(temperature=0, max_tokens=8, num_beams=8, n=8))
    engine.submit(request)
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, engine.pool.num_referenced)
    assert most < 22 + 8 * 4  # 22 full blocks of the prompt, and at most a few for each beam's own tokens


def test_text_and_reasons_come_with_the_answers(tiny_model_folder: Path) -> None:
    engine = Engine(tiny_model_folder)
    (answer,) = engine.generate(["The sea"], SamplingParams(temperature=0, max_tokens=6, num_beams=3, n=2))
    assert answer.choices[0].score >= answer.choices[1].score
    for choice in answer.choices:
        ended = choice.finish_reason == "stop"
        assert ended == (choice.token_ids[-1] in engine.eos_token_ids)
        shown = choice.token_ids[:-1] if ended else choice.token_ids
        assert choice.text == engine.tokenizer.decode(shown)
    assert answer.choices[0].token_ids != answer.choices[1].token_ids


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"temperature": 1.0}, "temperature"),
        ({"n": 4}, "n"),
        ({"stop": ("x",)}, "stop"),
        ({"early_stopping": "often"}, "early_stopping"),
        ({"num_beams": 9}, "num_beams"),
        ({"max_tokens": 100}, "num_beams"),
    ],
)
def test_what_cannot_be_searched_is_refused(settings, param) -> None:
    engine = tiny_engine(40, block_size=4, max_running=8)
    with pytest.raises(BadRequestError) as error:
        engine.make_request([1, 2], SamplingParams(**{"temperature": 0, "num_beams": 3, **settings}))
    assert error.value.param == param
