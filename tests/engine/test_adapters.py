"""Requests with adapters, in one batch with others: each gets what it would get alone."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from one_by_one import one_at_a_time, tiny_engine

from wootz.core import EngineConfig, NotFoundError, WootzError
from wootz.engine import Engine, SamplingParams
from wootz.engine.protocol import Failed
from wootz.models import Decoder, load
from wootz.models.adapters.attach import Adapters
from wootz.models.adapters.load import load_adapter

CONFIG = transformers.LlamaConfig(
    vocab_size=37,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    eos_token_id=0,
)
GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base, three LoRAs (one also on the head) and two prefixes."""
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(CONFIG)
    for parameter in base.parameters():
        parameter.data *= 5
    base.save_pretrained(folder / "base")
    targets = ["q_proj", "v_proj", "down_proj"]
    for number in range(3):
        more = ["lm_head"] if number == 2 else ["gate_proj"]
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=2 + number, target_modules=[*targets, *more])
        write(folder, f"lora{number}", config)
    for number, length in enumerate((5, 9)):
        write(folder, f"prefix{number}", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length))
    return folder


def write(folder: Path, name: str, config: peft.PeftConfig) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = peft.get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.5
    model.save_pretrained(folder / name)


def engine_of(folder: Path, names: list[str], num_blocks: int = 60, **config) -> Engine:
    model = load(folder / "base", dtype="float64")
    engine = tiny_engine(num_blocks, model, **config)
    for name in names:
        engine.adapters.register(name, folder / name)
    return engine


class Adapted:
    """What `one_at_a_time` asks of a model, with one adapter on all rows."""

    def __init__(self, folder: Path, name: str | None) -> None:
        model = load(folder / "base", dtype="float64")
        assert isinstance(model, Decoder)
        self.model, self.adapters = model, Adapters(model)
        self.name = name
        if name is not None:
            self.adapters.add(name, load_adapter(folder / name, model))

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        if self.name is None:
            return self.model.logits(token_ids)
        with self.adapters.active(self.name):
            return self.model.logits(token_ids)


@pytest.mark.parametrize("max_adapters", [1, 2, 8])
def test_tokens_are_those_of_each_adapter_alone(folder, max_adapters):
    rng = random.Random(max_adapters)
    names = [None, "lora0", "lora1", "lora2"]
    engine = engine_of(folder, names[1:], 14, max_running=5, max_step_tokens=7, max_adapters=max_adapters)
    shared = [rng.randrange(1, 37) for _ in range(9)]
    asked = []
    for seed in range(14):
        prompt = shared[: rng.choice([4, 9])] + [rng.randrange(1, 37) for _ in range(2)]
        asked.append((prompt, SamplingParams(seed=seed, max_tokens=8, n=rng.choice([1, 2])), names[seed % 4]))
    requests = [engine.make_request(p, params, id=str(i), adapter=a) for i, (p, params, a) in enumerate(asked)]
    answers = [[[] for _ in range(params.n)] for _, params, _ in asked]
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for request, event in engine.step():
            if hasattr(event, "token_ids"):
                answers[int(request.id)][event.index] += event.token_ids
        engine.scheduler.check_integrity()
        running = {sequence.request.adapter for sequence in engine.scheduler.running} - {None}
        assert running <= set(engine.adapters.loaded), "an adapter in use was taken"
        assert len(engine.adapters.loaded) <= max_adapters
    alone = {name: Adapted(folder, name) for name in names}
    for (prompt, params, name), answer in zip(asked, answers, strict=True):
        assert answer == one_at_a_time(prompt, params, engine.max_model_len, model=alone[name])


def test_an_adapters_cache_is_its_own(folder):
    engine = engine_of(folder, ["lora0", "lora1"])
    prompt = list(range(1, 20))
    for name, cached in ((None, 0), ("lora0", 0), ("lora1", 0), ("lora0", 16), (None, 16)):
        (answer,) = engine.generate([prompt], GREEDY, adapters=name)
        assert answer.cached_tokens == cached
    engine.adapters.register("lora0", folder / "lora1")  # another one under an old name
    (answer,) = engine.generate([prompt], GREEDY, adapters="lora0")
    assert answer.cached_tokens == 0
    assert answer.token_ids == engine.generate([prompt], GREEDY, adapters="lora1")[0].token_ids


def test_rows_without_an_adapter_keep_every_bit(folder):
    engine = Engine(load(folder / "base"), adapters={"lora0": folder / "lora0"})
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3)
    prompts = [[3, 1, 4, 1, 5], [3, 1, 4, 1, 5]]
    together = engine.generate(prompts, params, adapters=["lora0", None])[1]
    twice = engine.generate(prompts, params)[1]
    assert together.logprobs == twice.logprobs
    assert together.token_ids != engine.generate(prompts, params, adapters="lora0")[0].token_ids


def test_prefixes_equal_pefts_generation(folder):
    engine = engine_of(folder, ["prefix0", "prefix1"], max_step_tokens=7)
    prompts = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3], [8, 4, 6]]
    together = engine.generate(prompts * 3, GREEDY, adapters=["prefix0"] * 3 + ["prefix1"] * 3 + [None] * 3)
    for name, answers in zip(("prefix0", "prefix1", None), (together[:3], together[3:6], together[6:]), strict=True):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float64)
        if name:
            model = peft.PeftModel.from_pretrained(model, folder / name)
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([prompt])
            settings = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
            wanted = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
            wanted = wanted[0, len(prompt) :].tolist()
            end = answer.token_ids.index(0) if 0 in answer.token_ids else 10  # which transformers was forbidden
            assert answer.token_ids[:end] == wanted[:end], name
            assert end > 2
            assert answer.prompt_token_ids == prompt
    assert together[0].token_ids != together[3].token_ids != together[6].token_ids


def test_a_prefix_is_kept_once_and_survives_preemption(folder):
    engine = engine_of(folder, ["prefix1"])
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    (first,) = engine.generate([prompt], GREEDY, adapters="prefix1")
    (second,) = engine.generate([prompt], GREEDY, adapters="prefix1")
    assert (first.cached_tokens, second.cached_tokens) == (0, 7)
    assert engine.stats().prompt_tokens_computed == 8 + 1
    small = engine_of(folder, ["prefix1"], 14)
    answers = small.generate([prompt] * 5, GREEDY, adapters="prefix1")
    assert small.stats().preemptions > 0
    assert {tuple(answer.token_ids) for answer in answers} == {tuple(first.token_ids)}
    penalised = SamplingParams(temperature=0, max_tokens=5, repetition_penalty=1.5, n=2, ignore_eos=True)
    (answer,) = small.generate([prompt], penalised, adapters="prefix1")
    assert answer.cached_tokens <= answer.prompt_tokens == 8


def test_an_adapter_that_is_gone_fails_its_request_alone(folder, tmp_path):
    shutil.copytree(folder / "lora0", tmp_path / "lora")
    engine = engine_of(folder, ["lora1"], max_adapters=1)
    engine.adapters.register("lora", tmp_path / "lora")
    shutil.rmtree(tmp_path / "lora")
    lost = engine.make_request([1, 2, 3], GREEDY, id="lost", adapter="lora")
    fine = engine.make_request([1, 2, 3], GREEDY, id="fine", adapter="lora1")
    engine.submit(lost)
    engine.submit(fine)
    events = []
    while engine.has_work:
        events += engine.step()
    assert [event.message for request, event in events if isinstance(event, Failed)] == [
        f"{tmp_path / 'lora'}: no adapter in PEFT's format here (adapter_config.json is missing)"
    ]
    assert sum(request is fine for request, _ in events) == 11
    with pytest.raises(WootzError, match="no adapter in PEFT's format"):
        engine.generate([[1, 2]], GREEDY, adapters="lora")
    with pytest.raises(NotFoundError, match='no adapter "other"'):
        engine.generate([[1, 2]], GREEDY, adapters="other")
    engine.adapters.forget("lora1")
    with pytest.raises(NotFoundError):
        engine.generate([[1, 2]], GREEDY, adapters="lora1")


def test_adapters_join_weights_that_were_read_again(folder):
    """A deep sleep ends with another model object; the old one's adapters would be the old one's alone."""
    config = EngineConfig(dtype="float32", block_size=4, cache_bytes=2**20)
    engine = Engine(load(folder / "base"), config=config, path=folder / "base")
    engine.weights.reload = lambda: load(folder / "base")  # this folder has no tokenizer
    engine.adapters.register("lora0", folder / "lora0")
    before = [answer.token_ids for answer in engine.generate([[3, 5, 7]] * 2, GREEDY, adapters=["lora0", None])]
    assert before[0] != before[1]
    engine.sleep(2)
    engine.wake()
    after = engine.generate([[3, 5, 7]] * 2, GREEDY, adapters=["lora0", None])
    assert [answer.token_ids for answer in after] == before
