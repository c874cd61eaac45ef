"""New weights in place, sleeping and waking: afterwards all is as in an engine that was just made."""

from __future__ import annotations

import copy

import pytest
import torch
from one_by_one import one_at_a_time, tiny_engine, tiny_model
from tiny_model import write_tiny_model

from wootz.core import BadRequestError, EngineConfig, NotFoundError, UnavailableError, UnsupportedError
from wootz.engine import Engine, SamplingParams
from wootz.models import Decoder
from wootz.models.names import checkpoint_views

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
PROMPTS = [[n, n + 1, n + 2, 9, 9, 9, 9] for n in range(1, 6)]
SMALL = EngineConfig(cache_bytes=2**22)


def other_model(seed: int = 11) -> Decoder:
    torch.manual_seed(seed)
    model = copy.deepcopy(tiny_model())
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * parameter.std()
    return model


def tensors(model: Decoder) -> list[tuple[str, torch.Tensor]]:
    return list(checkpoint_views(model).items())


def alone(model: Decoder) -> list[list[int]]:
    return [one_at_a_time(prompt, GREEDY, model=model)[0] for prompt in PROMPTS]


def answers(engine: Engine) -> list[list[int]]:
    return [answer.token_ids for answer in engine.generate(PROMPTS, GREEDY)]


def test_new_weights_answer_as_a_fresh_engine_would():
    """Also for prompts that the old weights have left in the cache."""
    engine, trained = tiny_engine(80, copy.deepcopy(tiny_model())), other_model()
    assert answers(engine) == alone(tiny_model())
    engine.update_weights(tensors(trained))
    assert answers(engine) == alone(trained) != alone(tiny_model())
    engine.scheduler.check_integrity()


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_a_request_in_flight_keeps_its_tokens_and_goes_on_with_the_new_weights(preemption):
    engine = tiny_engine(13, copy.deepcopy(tiny_model()), preemption=preemption, swap_bytes=2**22)
    requests = [engine.make_request(prompt, GREEDY) for prompt in PROMPTS]
    for request in requests:
        engine.submit(request)
    while not engine.scheduler.num_preemptions:
        engine.step()
    before = [len(request.sequences[0].token_ids) for request in requests]
    engine.update_weights(tensors(other_model()))
    engine.scheduler.check_integrity()
    assert engine.pool.num_referenced == engine.scheduler.swap.num_used == 0
    while engine.has_work:
        engine.step()
    assert any(length > 8 for length in before)
    for request, length in zip(requests, before, strict=True):
        whole = request.sequences[0].token_ids
        rest = SamplingParams(temperature=0, max_tokens=16 + 7 - length, ignore_eos=True)
        assert whole[7:length] == one_at_a_time(whole[:7], GREEDY)[0][: length - 7]
        assert [whole[length:]] == one_at_a_time(whole[:length], rest, model=other_model())


def test_packed_weights_are_replaced(tmp_path):
    """In float32 on a CPU projections are packed, and the plain weight is gone."""
    old, new = write_tiny_model(tmp_path / "old"), write_tiny_model(tmp_path / "new", seed=1)
    engine, fresh = Engine(old, config=SMALL), Engine(new, config=SMALL)
    assert answers(engine) != answers(fresh)
    engine.load_weights(new)
    assert answers(engine) == answers(fresh)


def test_some_weights_can_be_replaced_alone():
    engine, changed = tiny_engine(80, copy.deepcopy(tiny_model())), copy.deepcopy(tiny_model())
    name, view = tensors(changed)[4]
    view.mul_(-1)
    engine.update_weights([(name, view)])
    assert answers(engine) == alone(changed)


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [("model.layers.9.mlp.gate_proj.weight", torch.zeros(1), "no tensor"), ("lm_head.weight", torch.zeros(3), "shape")],
)
def test_weights_of_another_model_are_refused(name, tensor, said):
    engine = tiny_engine(80, copy.deepcopy(tiny_model()))
    with pytest.raises(BadRequestError, match=said) as error:
        engine.update_weights([(name, tensor)])
    assert error.value.param == name
    assert answers(engine) == alone(tiny_model()), "nothing was replaced"


def test_a_file_that_is_not_there_is_refused(tmp_path):
    engine = tiny_engine(80, copy.deepcopy(tiny_model()))
    with pytest.raises(NotFoundError):
        engine.load_weights(tmp_path / "nothing")
    assert answers(engine) == alone(tiny_model())


@pytest.mark.parametrize("level", [1, 2])
def test_what_waited_while_the_engine_slept_is_answered_as_if_it_had_not(tiny_folder, level):
    engine = Engine(tiny_folder, config=SMALL)
    wanted = answers(Engine(tiny_folder, config=SMALL))
    requests = [engine.make_request(prompt, GREEDY) for prompt in PROMPTS]
    for request in requests[:3]:
        engine.submit(request)
    for _ in range(4):
        engine.step()
    engine.sleep(level)
    assert not engine.runner.cache.layers
    assert not engine.has_work
    assert engine.step() == []
    assert engine.stats().asleep == level
    with pytest.raises(UnavailableError):
        engine.generate("x")
    for request in requests[3:]:
        engine.submit(request)
    engine.wake()
    while engine.has_work:
        engine.step()
    assert [request.sequences[0].token_ids[7:] for request in requests] == wanted
    engine.scheduler.check_integrity()


def test_a_deep_sleep_frees_the_weights_and_newer_ones_end_it():
    engine = tiny_engine(80, copy.deepcopy(tiny_model()))
    engine.sleep(2)
    assert isinstance(engine.model, Decoder)
    assert {parameter.device.type for parameter in engine.model.parameters()} == {"meta"}
    with pytest.raises(UnavailableError):
        engine.wake()
    with pytest.raises(BadRequestError, match="missing"):
        engine.update_weights(tensors(other_model())[1:])
    engine.sleep(2)
    engine.update_weights(tensors(other_model()))
    assert engine.asleep, "the cache is still to come"
    engine.wake()
    assert answers(engine) == alone(other_model())
    with pytest.raises(BadRequestError):
        engine.sleep(3)


@pytest.mark.real
def test_a_quantised_model_sleeps_and_wakes_and_refuses_new_weights(smollm2_gguf):
    engine = Engine(smollm2_gguf, config=EngineConfig(cache_bytes=2**26))
    params = SamplingParams(temperature=0, max_tokens=6)
    (before,) = engine.generate("The sea is", params)
    with pytest.raises(UnsupportedError):
        engine.load_weights(smollm2_gguf)
    engine.sleep(2)
    engine.wake()
    assert engine.generate("The sea is", params)[0].token_ids == before.token_ids
