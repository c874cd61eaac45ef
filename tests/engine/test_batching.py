"""However requests are batched, cut, shared, preempted or cancelled: each gets the tokens it would get alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from one_by_one import VOCAB_SIZE, one_at_a_time, tiny_engine, tiny_model

from wootz.engine import SamplingParams
from wootz.engine.attention import PagedCache
from wootz.engine.generation import Event
from wootz.engine.protocol import Finished, Output


@dataclass(frozen=True)
class Arrival:
    prompt: list[int]
    params: SamplingParams
    step: int
    cancelled_at: int | None
    priority: int
    user: str


tokens = st.integers(1, VOCAB_SIZE - 1)
shared_text = [3, 14, 15, 9, 2, 6, 5, 35, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6]
prompts = st.one_of(
    st.lists(tokens, min_size=1, max_size=20),
    st.builds(lambda length, tail: shared_text[:length] + tail, st.integers(1, 18), st.lists(tokens, max_size=4)),
)
sampling = st.one_of(
    st.builds(SamplingParams, temperature=st.just(0.0), max_tokens=st.integers(1, 12), ignore_eos=st.booleans()),
    st.builds(
        SamplingParams,
        temperature=st.floats(0.2, 2),
        max_tokens=st.integers(1, 10),
        min_tokens=st.integers(0, 4),
        seed=st.integers(0, 3),
        n=st.integers(1, 4),
        top_k=st.sampled_from([0, 1, 5]),
        top_p=st.sampled_from([1.0, 0.7]),
        min_p=st.sampled_from([0.0, 0.1]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        presence_penalty=st.sampled_from([0.0, 0.5]),
        frequency_penalty=st.sampled_from([0.0, -0.5]),
        logit_bias=st.sampled_from([{}, {5: 2.0, 6: -100.0}]),
        stop_token_ids=st.sampled_from([(), (7, 8)]),
    ),
)
arrivals = st.builds(
    Arrival,
    prompts,
    sampling,
    step=st.integers(0, 25),
    cancelled_at=st.none() | st.integers(0, 40),
    priority=st.sampled_from([0, 0, 2, -3]),
    user=st.sampled_from(["", "ann", "bob"]),
)


SCENARIO = {
    "requests": st.lists(arrivals, min_size=1, max_size=7),
    "block_size": st.sampled_from([1, 2, 4]),
    "spare_tokens": st.integers(0, 60),
    "max_running": st.integers(1, 6),
    "max_step_tokens": st.sampled_from([1, 2, 3, 7, 64]),
    "prefix_caching": st.booleans(),
    "preemption": st.sampled_from(["auto", "swap", "recompute"]),
    "preemption_victim": st.sampled_from(["latest", "longest", "fifo"]),
    "swap_blocks": st.sampled_from([0, 3, 100]),
    "max_inter_token_latency_ms": st.sampled_from([None, 0.1]),
    "user_weights": st.sampled_from([{}, {"ann": 3.0}]),
}
scenarios = given(**SCENARIO)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@scenarios
def test_tokens_do_not_depend_on_the_company(**scenario):
    check_against_one_at_a_time(**scenario)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@scenarios
def test_tokens_do_not_depend_on_the_company_in_many_scenarios(**scenario):
    check_against_one_at_a_time(**scenario)


def check_against_one_at_a_time(requests: list[Arrival], block_size, spare_tokens, swap_blocks, **options):
    """Returns the engine, when all is done."""
    num_blocks = -(-(36 + spare_tokens) // block_size)
    swap_bytes = swap_blocks * block_bytes(block_size)
    engine = tiny_engine(num_blocks, block_size=block_size, swap_bytes=swap_bytes, **options)
    live, answers, finished = {}, {}, set()
    todo = dict(enumerate(requests))
    step = 0
    while todo or engine.has_work:
        for number, arrival in list(todo.items()):
            if arrival.step <= step:
                del todo[number]
                live[number] = engine.make_request(
                    arrival.prompt, arrival.params, id=str(number), priority=arrival.priority, user=arrival.user
                )
                answers[number] = [[] for _ in range(arrival.params.n)]
                engine.submit(live[number])
        for number, request in live.items():
            if requests[number].cancelled_at == step:
                engine.cancel(request)
        for request, event in engine.step():
            collect(event, answers[int(request.id)])
            if isinstance(event, Finished):
                finished.add(int(request.id))
        engine.scheduler.check_integrity()
        step += 1
        assert step < 5000, "no progress"
    assert engine.pool.num_available == engine.pool.num_blocks
    assert not engine.scheduler.swap.num_used
    for number, arrival in enumerate(requests):
        alone = one_at_a_time(arrival.prompt, arrival.params, engine.max_model_len)
        if arrival.cancelled_at is None:
            assert number in finished
            assert answers[number] == alone
        else:
            assert all(whole[: len(part)] == part for part, whole in zip(answers[number], alone, strict=True))
    return engine


def block_bytes(block_size: int) -> int:
    return PagedCache.block_bytes(tiny_model().cache_specs, block_size, tiny_model().dtype)


def collect(event: Output | Finished, choices: list[list[int]]) -> None:
    if isinstance(event, Output):
        choices[event.index] += event.token_ids


@pytest.mark.parametrize("victim", ["latest", "longest", "fifo"])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_preemption_happens_and_changes_nothing(preemption, victim):
    engine = tiny_engine(12, preemption=preemption, preemption_victim=victim, swap_bytes=40 * block_bytes(4))
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    prompts = [[seed, seed + 1, seed + 2, seed + 3, seed + 4] for seed in range(1, 7)]
    answers = engine.generate(prompts, params)
    stats = engine.stats()
    assert stats.preemptions > 0
    assert (stats.swapped_out, stats.swapped_in) == ((stats.preemptions,) * 2 if preemption == "swap" else (0, 0))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert [answer.token_ids] == one_at_a_time(prompt, params)


def test_what_was_swapped_out_is_not_computed_again():
    def prompt_tokens_computed(preemption: str) -> int:
        engine = tiny_engine(12, preemption=preemption, prefix_caching=False, swap_bytes=40 * block_bytes(4))
        engine.generate([[n] * 5 for n in range(1, 7)], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
        return engine.stats().prompt_tokens_computed

    assert prompt_tokens_computed("swap") == 30 < prompt_tokens_computed("recompute")


def test_a_swapped_sequence_shares_what_is_still_there_and_copies_the_rest():
    engine = tiny_engine(60, preemption="swap", swap_bytes=40 * block_bytes(4))
    params = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
    requests = [engine.make_request([*shared_text[:9], tail], params) for tail in (5, 6)]
    for request in requests:
        engine.submit(request)
        engine.step()
    (first,), (second,) = (request.sequences for request in requests)
    for _ in range(8):
        engine.step()
    engine.scheduler.preempt(second, {})
    engine.step()
    assert engine.stats().swapped_in == 1
    assert second.table.blocks[:2] == first.table.blocks[:2]
    assert len(second.table.blocks) > 3
    while engine.has_work:
        engine.step()
    for request in requests:
        assert [request.sequences[0].token_ids[10:]] == one_at_a_time(request.prompt_token_ids, params)


@pytest.mark.parametrize(("seconds_per_token", "swaps"), [(1.0, True), (1e-12, False), (None, True)])
def test_what_is_cheaper_is_done(seconds_per_token, swaps):
    engine = tiny_engine(12, swap_bytes=40 * block_bytes(4))
    engine.pace.observe = lambda chunks, seconds: None
    engine.pace.seconds_per_token = seconds_per_token
    engine.generate([[n] * 5 for n in range(1, 7)], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    assert engine.stats().preemptions > 0
    assert (engine.stats().swapped_out > 0) == swaps


def test_the_oldest_request_is_never_preempted():
    engine = tiny_engine(num_blocks=12)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    requests = [engine.make_request([n + 1] * 6, params, id=str(n)) for n in range(5)]
    for request in requests:
        engine.submit(request)
    over: list[str] = []
    while engine.has_work:
        oldest = next(request for request in requests if request.num_open)
        grown: list[Event] = engine.step()
        assert oldest in [request for request, _ in grown], "the oldest did not advance"
        over += [request.id for request, event in grown if isinstance(event, Finished)]
    assert over == ["0", "1", "2", "3", "4"]


def test_a_long_prompt_does_not_stall_running_answers():
    engine = tiny_engine(num_blocks=100, max_step_tokens=8)
    running = engine.make_request([1, 2, 3], SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    engine.submit(running)
    engine.step()
    long = engine.make_request([5] * 100, SamplingParams(temperature=0, max_tokens=1))
    engine.submit(long)
    while long.num_open:
        chunks_before = engine.stats().prompt_tokens_computed
        assert running in [request for request, _ in engine.step()]
        assert engine.stats().prompt_tokens_computed - chunks_before <= 7


def test_a_choice_that_must_compute_its_prompt_again_does_not_stall_younger_answers():
    engine = tiny_engine(num_blocks=100, max_step_tokens=8, max_running=3, prefix_caching=False)
    first = engine.make_request([5] * 60, SamplingParams(n=3, seed=1, max_tokens=4, ignore_eos=True))
    younger = engine.make_request([1, 2], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    engine.submit(first)
    engine.submit(younger)
    while not younger.sequences[0].num_output_tokens:
        engine.step()
    assert len(engine.scheduler.waiting) == 1, "the third choice found no place"
    while younger.num_open:
        assert younger in [request for request, _ in engine.step()]
    assert not first.num_open


def test_a_second_request_computes_only_what_is_new():
    engine = tiny_engine(num_blocks=200)
    prefix = [(7 * i) % 36 + 1 for i in range(100)]
    params = SamplingParams(temperature=0, max_tokens=3)
    engine.generate([[*prefix, 5, 6]], params)
    computed = engine.stats().prompt_tokens_computed
    (second,) = engine.generate([[*prefix, 9, 10, 11]], params)
    assert second.cached_tokens == 100
    assert engine.stats().prompt_tokens_computed - computed == 3
    assert engine.stats().prompt_tokens_cached == 100
    assert [second.token_ids] == one_at_a_time([*prefix, 9, 10, 11], params)


def test_the_last_prompt_token_is_always_computed():
    engine = tiny_engine(num_blocks=50)
    prompt = [4, 8, 15, 16, 23, 3, 1, 2]
    first, second = (engine.generate([prompt], SamplingParams(temperature=0, max_tokens=4))[0] for _ in range(2))
    assert (first.cached_tokens, second.cached_tokens) == (0, 4)
    assert first.token_ids == second.token_ids


def test_an_answer_is_shared_with_the_next_turn():
    engine = tiny_engine(num_blocks=50)
    params = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
    (first,) = engine.generate([[1, 2, 3]], params)
    conversation = [1, 2, 3, *first.token_ids, 9]
    (second,) = engine.generate([conversation], params)
    assert second.cached_tokens == 16
    assert [second.token_ids] == one_at_a_time(conversation, params)


def test_prefix_caching_can_be_switched_off():
    engine = tiny_engine(num_blocks=50, prefix_caching=False)
    for _ in range(2):
        (answer,) = engine.generate([[1, 2, 3, 4, 5, 6, 7, 8, 9]], SamplingParams(temperature=0, max_tokens=2))
        assert answer.cached_tokens == 0


def test_choices_share_the_prompts_blocks():
    engine = tiny_engine(num_blocks=50)
    request = engine.make_request([1] * 22, SamplingParams(n=5, seed=1, max_tokens=6, ignore_eos=True))
    engine.submit(request)
    engine.step()
    assert engine.pool.num_referenced == 6
    engine.step()  # each of the five writes behind the prompt: four of them into copies of the last block
    assert engine.pool.num_referenced == 5 + 5
    engine.scheduler.check_integrity()
    engine.cancel(request)
    assert engine.pool.num_referenced == 0


def test_cancelling_frees_blocks_at_once():
    engine = tiny_engine(num_blocks=50, max_step_tokens=4)
    request = engine.make_request([1] * 30, SamplingParams(n=3, max_tokens=50))
    engine.submit(request)
    for _ in range(3):
        engine.step()
    assert engine.pool.num_referenced > 0
    engine.cancel(request)
    engine.cancel(request)
    assert engine.pool.num_referenced == 0
    assert not engine.has_work
    assert engine.step() == []
    assert engine.stats().requests_cancelled == 1


def test_unseeded_choices_differ_and_seeded_ones_repeat():
    engine = tiny_engine(num_blocks=100)
    params = SamplingParams(temperature=1.5, max_tokens=12, n=2, ignore_eos=True)
    (one,), (other,) = (engine.generate([[1, 2, 3]], params) for _ in range(2))
    texts = {tuple(choice.token_ids) for choice in one.choices + other.choices}
    assert len(texts) == 4
    params = SamplingParams(temperature=1.5, max_tokens=12, n=2, ignore_eos=True, seed=11)
    (one,) = engine.generate([[1, 2, 3]], params)
    crowd = [[n % 36 + 1] * 5 for n in range(9)]
    other = engine.generate([*crowd, [1, 2, 3]], params)[-1]
    assert [c.token_ids for c in one.choices] == [c.token_ids for c in other.choices]
    assert one.choices[0].token_ids != one.choices[1].token_ids
