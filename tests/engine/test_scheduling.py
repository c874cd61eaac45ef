"""Whose turn it is, simulated without a model: every step computes what the scheduler says, and samples token 1."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from wootz.core import BadRequestError
from wootz.engine import SamplingParams
from wootz.engine.cache import BlockPool
from wootz.engine.output import NoText, TextStream
from wootz.engine.pace import FEWEST_TOKENS, Pace
from wootz.engine.queue import AGING_STEPS, MOST_ABSENT, MOST_PASSED, Queue
from wootz.engine.scheduler import Chunk, Scheduler
from wootz.engine.sequence import Request, Sequence
from wootz.engine.validation import check_priority


class Simulation:
    """A scheduler, and a model that takes no time. ``served`` counts what was computed and answered for each user."""

    def __init__(self, num_blocks: int = 200, *, max_running: int = 4, max_step_tokens: int = 64, **options) -> None:
        self.pool = BlockPool(num_blocks, 4)
        self.scheduler = Scheduler(self.pool, max_running=max_running, pace=Pace(max_step_tokens), **options)
        self.served: Counter[str] = Counter()
        self.finished: list[Sequence] = []
        self._arrivals = itertools.count()
        self._texts = itertools.count(10)

    def ask(self, user: str = "", *, prompt: list[int] | int = 8, answer: int = 8, priority: int = 0) -> Sequence:
        """``prompt`` may be its length; its tokens are then like nobody else's."""
        tokens = [next(self._texts)] * prompt if isinstance(prompt, int) else prompt
        request = Request("", tokens, SamplingParams(), 0, frozenset(), len(tokens) + answer, user=user)
        request.priority, request.arrival, request.num_open = priority, next(self._arrivals), 1
        request.submitted_at = self.scheduler.num_steps
        sequence = Sequence(request, 0, list(tokens), TextStream(NoText()))
        request.sequences.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[Chunk]:
        chunks = self.scheduler.schedule()
        for chunk in chunks:
            prompt_end = len(chunk.sequence.request.prompt_token_ids)
            self.served[chunk.sequence.request.user] += max(0, min(chunk.end, prompt_end) - chunk.start) + chunk.samples
        self.scheduler.computed(chunks)
        for chunk in chunks:
            if chunk.samples:
                chunk.sequence.token_ids.append(1)
                if len(chunk.sequence.token_ids) == chunk.sequence.request.max_len:
                    self.scheduler.remove(chunk.sequence)
                    self.finished.append(chunk.sequence)
        self.scheduler.check_integrity()
        return chunks

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(20_000):
            if condition():
                return
            self.step()
        raise AssertionError("it never came to this")


def jain(values: list[float]) -> float:
    """Jain's index of fairness: 1 for equal shares, 1/n when one takes all."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


# --- fairness -------------------------------------------------------------------------------------------------


def test_users_of_equal_weight_get_equal_shares():
    """One floods the queue, one asks in long texts, one wants long answers, one always has a single request."""
    simulation = Simulation(max_running=6)
    for _ in range(400):
        simulation.ask("flood")
    for _ in range(60):
        simulation.ask("reader", prompt=60, answer=4)
        simulation.ask("writer", prompt=4, answer=60)
    single = simulation.ask("single", prompt=12, answer=20)
    for _ in range(400):
        if single in simulation.finished:
            single = simulation.ask("single", prompt=12, answer=20)
        simulation.step()
    shares = dict(simulation.scheduler.waiting.served)
    assert jain(list(shares.values())) > 0.98, shares
    served = simulation.served
    assert jain([served[user] for user in ("flood", "reader", "writer")]) > 0.9, served
    assert served["single"] > served["flood"] / 4, "who asks one thing at a time is not in every batch"


def test_first_come_first_served_would_not_share_equally():
    """The same crowd under one name: what the flood gets is what it asked for."""
    simulation = Simulation(max_running=6)
    names: dict[Sequence, str] = {}
    for _ in range(400):
        names[simulation.ask()] = "flood"
    for _ in range(60):
        names[simulation.ask(prompt=60, answer=4)] = "reader"
    for _ in range(300):
        simulation.step()
    assert Counter(names[sequence] for sequence in simulation.finished)["reader"] == 0


def test_a_weight_is_a_share():
    simulation = Simulation(user_weights={"twice": 2.0})
    for _ in range(200):
        simulation.ask("once")
        simulation.ask("twice")
    for _ in range(300):
        simulation.step()
    assert simulation.served["twice"] / simulation.served["once"] == pytest.approx(2, rel=0.1)


def test_nobody_saves_up_by_staying_away():
    simulation = Simulation(max_running=2)
    for _ in range(300):
        simulation.ask("here")
    for _ in range(200):
        simulation.step()
    for _ in range(300):
        simulation.ask("back")
    simulation.served.clear()
    for _ in range(200):
        simulation.step()
    assert simulation.served["back"] / simulation.served["here"] == pytest.approx(1, rel=0.15)


def test_nobody_gets_rid_of_a_debt_by_leaving_for_a_moment():
    simulation = Simulation(max_running=1)
    greedy = simulation.ask("greedy", answer=150)
    simulation.step()
    others = [simulation.ask("other", answer=30) for _ in range(4)]
    simulation.until(lambda: greedy in simulation.finished)
    again = simulation.ask("greedy")
    simulation.until(lambda: again in simulation.finished)
    assert set(others) <= set(simulation.finished)


def test_the_counters_of_those_who_left_do_not_pile_up():
    queue, steady = Queue(), Simulation().ask("steady")
    queue.arrive(steady)
    for number in range(MOST_ABSENT + 500):
        visitor = Simulation().ask(f"visitor {number}")
        queue.arrive(visitor)
        queue.put(visitor)
        queue.charge(visitor, 3)
        queue.take(visitor)
        queue.leave(visitor)
    assert len(queue.served) <= MOST_ABSENT + 1
    queue.check_integrity([steady])
    queue.leave(steady)
    assert not queue.served, "with nobody there, nobody is owed anything"


# --- priority -------------------------------------------------------------------------------------------------


def test_the_lowest_number_goes_first():
    simulation = Simulation(max_running=1)
    asked = {priority: simulation.ask(f"user {priority}", priority=priority) for priority in (3, 0, -2, 1)}
    simulation.until(lambda: len(simulation.finished) == 4)
    assert simulation.finished == [asked[priority] for priority in (-2, 0, 1, 3)]


def test_what_is_urgent_takes_the_place_of_what_is_not():
    simulation = Simulation(max_running=2)
    slow = [simulation.ask(answer=100, priority=5) for _ in range(2)]
    for _ in range(5):
        simulation.step()
    urgent = simulation.ask(priority=-1)
    assert any(chunk.sequence is urgent for chunk in simulation.step())
    assert simulation.scheduler.running == [urgent, slow[0]], "the later one gave way"
    simulation.until(lambda: len(simulation.finished) == 3)
    assert simulation.finished[0] is urgent


def test_a_low_priority_waits_but_not_for_ever():
    """Urgent requests never stop coming, from the same user and from another."""
    simulation = Simulation(max_running=2)
    low = simulation.ask("ann", priority=3, answer=40)
    for _ in range(3 * AGING_STEPS + 200):
        for user in ("ann", "bob"):
            if sum(s.request.user == user for s in simulation.scheduler.waiting) < 3:
                simulation.ask(user)
        simulation.step()
        waited = simulation.scheduler.num_steps
        if waited < 3 * AGING_STEPS - 1:
            assert low in simulation.scheduler.waiting
    assert low in simulation.finished
    assert low.num_preemptions == 0, "once it is in, its age protects it"


def test_age_does_not_outrank_fairness():
    """A flood that has waited for long still has to let a newcomer in."""
    simulation = Simulation(max_running=1)
    for _ in range(500):
        simulation.ask("flood")
    for _ in range(5 * AGING_STEPS):
        simulation.step()
    newcomer = simulation.ask("newcomer")
    for _ in range(40):
        simulation.step()
    assert newcomer in simulation.finished


@pytest.mark.parametrize("priority", [-101, 101, 10**9])
def test_a_priority_out_of_reach_is_refused(priority):
    with pytest.raises(BadRequestError) as error:
        check_priority(priority)
    assert error.value.param == "priority"


# --- locality -------------------------------------------------------------------------------------------------


def tails() -> Iterator[int]:
    return itertools.count(1000)


def test_the_longest_cached_prefix_goes_first():
    simulation = Simulation(max_running=1)
    shared = list(range(2000, 2040))
    first = simulation.ask(prompt=shared)
    simulation.until(lambda: first in simulation.finished)
    running = simulation.ask()
    simulation.step()
    others = [simulation.ask(prompt=40), simulation.ask(prompt=[*shared[:20], 7]), simulation.ask(prompt=[*shared, 8])]
    simulation.until(lambda: len(simulation.finished) == 5)
    assert simulation.finished[1:] == [running, others[2], others[1], others[0]]
    assert simulation.scheduler.num_prefix_hits == 2
    assert simulation.scheduler.num_admitted == 5
    assert simulation.scheduler.num_cached_tokens == 60


def test_a_request_is_passed_over_so_often_and_no_more():
    simulation, tail = Simulation(max_running=1), tails()
    shared = list(range(2000, 2040))
    simulation.ask(prompt=shared)
    simulation.step()
    unlucky = simulation.ask(prompt=40)
    passed = 0
    for _ in range(500):
        if unlucky not in simulation.scheduler.waiting:
            break
        while len(simulation.scheduler.waiting) < 4:
            simulation.ask(prompt=[*shared, next(tail)])
        before = len(simulation.finished)
        simulation.step()
        passed += len(simulation.finished) - before
    assert unlucky.num_passed == MOST_PASSED
    assert passed == MOST_PASSED + 1, "those that passed it, and the one before"


def test_locality_does_not_cost_another_user_more_than_a_step():
    """One user's requests are all in the cache, and cost little; the other's are not. Both get on."""
    simulation, tail = Simulation(max_running=2, max_step_tokens=32), tails()
    shared = list(range(2000, 2040))
    for _ in range(200):
        simulation.ask("cached", prompt=[*shared, next(tail)])
        simulation.ask("new", prompt=40)
    largest = 0.0
    for _ in range(400):
        simulation.step()
        counters = simulation.scheduler.waiting.served
        largest = max(largest, abs(counters["cached"] - counters["new"]))
    assert largest <= 32 + 2 * (40 + 2 * 8), "the slack, and what was admitted within it"


# --- victims --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("victim", "loses", "then"), [("latest", 2, 2), ("longest", 1, 2), ("fifo", 0, 1)])
def test_the_policy_chooses_the_victim(victim, loses, then):
    """Three that arrived one after the other; the second has been running for longest."""
    simulation = Simulation(victim=victim)
    running = simulation.scheduler.running = [simulation.ask(str(number)) for number in range(3)]
    for sequence, admitted_at in zip(running, (7, 3, 5), strict=True):
        sequence.admitted_at = admitted_at
    assert simulation.scheduler._victim() is running[loses]
    running[loses].num_preemptions = 1
    assert simulation.scheduler._victim() is running[then], "but one policy, who was preempted less often goes first"
    running[0].level = -1
    running[1].level = -1
    assert simulation.scheduler._victim() is running[2], "the worst level before all"


@pytest.mark.parametrize("victim", ["latest", "longest", "fifo"])
def test_whoever_is_preempted_gets_to_the_end_while_others_keep_coming(victim):
    simulation = Simulation(num_blocks=12, max_running=4, victim=victim)
    old = [simulation.ask(prompt=6, answer=30) for _ in range(3)]
    for _ in range(400):
        while len(simulation.scheduler.waiting) < 3:
            simulation.ask(prompt=6, answer=30)
        simulation.step()
    assert set(old) <= set(simulation.finished)
    assert simulation.scheduler.num_preemptions > 0


# --- pace -----------------------------------------------------------------------------------------------------


def paced(milliseconds_per_token: float, target: float, steps: int = 200) -> tuple[Pace, list[float]]:
    """Steps of 8 answers and a prompt that never ends, on a machine of this speed; returns each one's milliseconds."""
    simulation = Simulation()
    answering = simulation.ask(prompt=1)
    answering.token_ids += [1] * 5
    reading = simulation.ask(prompt=100_000)
    pace, took = Pace(512, target), []
    for _ in range(steps):
        num_tokens = pace.budget(8) - 8
        took.append(milliseconds_per_token * (num_tokens + 8))
        chunks = [Chunk(answering, 5, 1)] * 8 + [Chunk(reading, 0, num_tokens)]
        pace.observe(chunks, took[-1] / 1000)
    return pace, took


@pytest.mark.parametrize("speed", [0.02, 0.1, 0.7])
def test_the_prefill_budget_settles_below_the_target(speed):
    pace, took = paced(speed, target=40)
    assert all(milliseconds <= 40 for milliseconds in took[10:])
    largest = min(speed * 512, 40)
    assert took[-1] > 0.75 * largest, "and leaves little of it unused"
    assert pace.seconds_per_token == pytest.approx(speed / 1000, rel=0.01)


def test_prompts_go_on_when_the_target_cannot_be_kept():
    pace, _ = paced(100, target=1)
    assert pace.budget(8) == 8 + FEWEST_TOKENS


def test_without_answers_to_wait_for_the_whole_budget_is_used():
    pace, _ = paced(0.7, target=10)
    assert pace.budget(8) < pace.budget(0) == 512
    assert Pace(512).budget(8) == 512
