"""The watermark is transformers' own, list by list, token by token, and so is what its detector finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from one_by_one import tiny_engine
from random_reference import save_random
from transformers.generation import WatermarkDetector, WatermarkingConfig, WatermarkLogitsProcessor

from wootz.core import BadRequestError
from wootz.engine import SamplingParams, Watermark
from wootz.engine.watermark import detect, green_tokens
from wootz.models import load

CONFIG = transformers.LlamaConfig(
    vocab_size=200, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, eos_token_id=None, bos_token_id=198,
)  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("watermark")
    return save_random(folder, CONFIG), folder


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_green_lists_are_those_of_transformers(ratio: float) -> None:
    theirs = WatermarkLogitsProcessor(200, "cpu", greenlist_ratio=ratio, hashing_key=15485863)
    for token in (0, 1, 57, 199):
        expected = theirs._get_greenlist_ids(torch.tensor([3, token]))
        assert torch.equal(green_tokens(200, token, Watermark(greenlist_ratio=ratio)), expected)


def test_watermarked_text_equals_transformers_and_both_detectors_agree(reference, tmp_path: Path) -> None:
    model, folder = reference
    watermark = Watermark(greenlist_ratio=0.25, bias=2.5, hashing_key=4242)
    config = WatermarkingConfig(greenlist_ratio=0.25, bias=2.5, hashing_key=4242)
    engine = tiny_engine(200, load(folder))
    prompts = [[5, 9, 2], [60, 3, 4, 199]]
    greedy = {"temperature": 0, "max_tokens": 60}
    marked = engine.generate(prompts, SamplingParams(**greedy, watermark=watermark))
    drawn = engine.generate(prompts, SamplingParams(max_tokens=60, seed=1, watermark=watermark))
    plain = engine.generate(prompts, SamplingParams(max_tokens=60, seed=1))
    for prompt, answer in zip(prompts, marked, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=60, watermarking_config=config, pad_token_id=0
        )
        assert answer.token_ids == expected[0, len(prompt) :].tolist()
    for ignore_repeated in (False, True):
        detector = WatermarkDetector(CONFIG, "cpu", config, ignore_repeated_ngrams=ignore_repeated)
        for answer in (*marked, *drawn, *plain):
            ours = detect(answer.token_ids, 200, watermark, ignore_repeated=ignore_repeated)
            theirs = detector(torch.tensor([answer.token_ids]), return_dict=True)
            assert (ours.num_tokens, ours.num_green) == (theirs.num_tokens_scored[0], theirs.num_green_tokens[0])
            assert ours.z_score == pytest.approx(theirs.z_score[0])
            assert ours.p_value == pytest.approx(theirs.p_value[0], abs=1e-6)
    assert all(detect(answer.token_ids, 200, watermark).z_score > 4 for answer in drawn)
    assert all(abs(detect(answer.token_ids, 200, watermark).z_score) < 3 for answer in plain)
    another_key = Watermark(greenlist_ratio=0.25, hashing_key=1)
    assert all(abs(detect(answer.token_ids, 200, another_key).z_score) < 3 for answer in drawn)


def test_what_makes_no_watermark_is_refused() -> None:
    with pytest.raises(BadRequestError, match="greenlist_ratio"):
        tiny_engine(40).make_request([1], SamplingParams(watermark=Watermark(greenlist_ratio=1.0)))
    with pytest.raises(BadRequestError, match="longer text"):
        detect([1], 200, Watermark())
