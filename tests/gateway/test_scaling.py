"""The simulator against queueing theory and scipy, and the policy against the loads that make others go wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wootz.gateway.scaling import Policy, Queue, State, decide, fewest_servers, simulate
from wootz.gateway.scaling.policy import PreWarm
from wootz.gateway.scaling.simulation import Machine
from wootz.gateway.scaling.traces import (
    Trace,
    around_the_threshold,
    recorded,
    spikes,
    steady,
    waves,
    working_day,
)

HOUR = 3600.0


# --- the closed form ----------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.floats(0.05, 0.98), st.integers(1, 300))
def test_erlang_c_is_what_scipy_says(utilisation: float, servers: int) -> None:
    """C = P(N = c)/(1-ρ) / (P(N < c) + P(N = c)/(1-ρ)) with N Poisson."""
    queue = Queue(utilisation * servers / 2.0, 2.0, servers)
    poisson = stats.poisson(queue.offered)
    full = poisson.pmf(servers) / (1 - utilisation)
    assert queue.waiting_probability == pytest.approx(full / (poisson.cdf(servers - 1) + full), rel=1e-6)


def test_known_values() -> None:
    assert Queue(0.5, 1.0, 1).mean_wait == pytest.approx(1.0)  # M/M/1: ρ/(μ-λ).
    assert Queue(5.0, 1.0, 6).waiting_probability == pytest.approx(0.5875, abs=1e-4)  # Tables of Erlang C.
    assert Queue(2.0, 1.0, 2).mean_wait == math.inf


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 50), st.floats(0.1, 20), st.integers(1, 16))
def test_the_fewest_servers_suffice_and_one_replica_less_does_not(rate: float, service: float, step: int) -> None:
    wanted = {"wait": 0.5, "share": 0.95, "utilisation": 0.7}
    servers = fewest_servers(rate, service, step=step, **wanted)
    queue, less = Queue(rate, service, servers), Queue(rate, service, max(1, servers - step))
    assert queue.wait_quantile(0.95) <= 0.5
    assert queue.utilisation <= 0.7 + 1e-6
    assert servers == step or less.wait_quantile(0.95) > 0.5 or less.utilisation > 0.7 - 1e-6


@pytest.mark.parametrize(("rate", "replicas", "places"), [(0.7, 1, 1), (3.2, 1, 4), (6.0, 2, 4), (20.0, 3, 8)])
def test_a_fixed_number_of_replicas_is_the_mmc_queue(rate: float, replicas: int, places: int) -> None:
    queue = Queue(rate, 1.0, replicas * places)
    machine = Machine(places=places, service=1.0)
    runs = [simulate(steady(rate, 12000 / rate), machine, replicas, seed=10 * seed) for seed in range(4)]
    mean = sum(run.mean_wait for run in runs) / len(runs)
    waiting = sum(run.share_waiting() for run in runs) / len(runs)
    assert waiting == pytest.approx(queue.waiting_probability, rel=0.1)
    assert mean == pytest.approx(queue.mean_wait, rel=0.2)
    assert runs[0].busy_seconds / runs[0].seconds / queue.servers == pytest.approx(queue.utilisation, rel=0.05)


# --- the policy ---------------------------------------------------------------------------------------------------

QUIET = State(now=1e6, demand=0, peak=0, places=10, running=4, loading=0, paid_left=[100.0] * 4)


def test_what_the_policy_does() -> None:
    policy = Policy()
    assert decide(policy, replace(QUIET, demand=25)).start == 2, "25 of 40 are over 60 %: to 6, where it is 42 %"
    for demand in (23, 13):
        made = decide(policy, replace(QUIET, demand=demand))
        assert (made.start, made.stop) == (0, 0), "between 30 and 60 %"
    assert decide(policy, replace(QUIET, demand=4)).stop == 3
    assert decide(policy, QUIET).stop == 3, "never to none"
    assert decide(policy, replace(QUIET, peak=12)).stop == 1, "so many were needed within the hour"
    assert decide(policy, replace(QUIET, paid_left=[2000.0] * 4)).stop == 0, "their hour is paid for"
    assert decide(policy, replace(QUIET, loading=1)).stop == 0
    assert decide(Policy(floor=6), QUIET).start == 2
    assert decide(Policy(ceiling=5), replace(QUIET, demand=400)).start == 1
    warm = Policy(pre_warm=[PreWarm(8 * HOUR + 50 * 60, 18 * HOUR, 9)])
    assert decide(warm, replace(QUIET, now=8 * HOUR + 49 * 60)).start == 0
    assert decide(warm, replace(QUIET, now=8 * HOUR + 51 * 60)).start == 5


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 500), st.integers(1, 20), st.integers(1, 30), st.floats(0.35, 0.9), st.floats(0.05, 0.34))
def test_a_step_never_calls_for_the_step_back(busy: float, places: int, there: int, up: float, down: float) -> None:
    policy = Policy(up=up, down=down, ceiling=10**6)
    state = State(
        now=1e6, demand=busy, peak=busy, places=places, running=there, loading=0, paid_left=[0.0] * there
    )  # fmt: skip
    made = decide(policy, state)
    after = there + made.start - made.stop
    following = decide(policy, replace(state, running=after, paid_left=[0.0] * after))
    assert after >= 1
    assert not (made.start and following.stop)
    assert not (made.stop and following.start)


PEAK = 4.0
MACHINE = Machine(places=2, service=4.0, load_delay=180.0)
TRACES = [
    steady(2.0, 6 * HOUR),
    working_day(PEAK, 24 * HOUR),
    waves(PEAK, 8 * HOUR),
    spikes(PEAK, 6 * HOUR),
    around_the_threshold(1.2, 6 * HOUR),
    around_the_threshold(0.6, 6 * HOUR),
]


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.name)
def test_it_does_not_flap(trace: Trace) -> None:
    """Up and down again (or down and up) within two load times is flapping: what was loaded was not used."""
    result = simulate(trace, MACHINE, Policy(), seed=3, start_with=4)
    assert result.flaps(within=2 * MACHINE.load_delay) == 0


def test_without_a_gap_and_a_pause_it_would() -> None:
    eager = Policy(up=0.5, down=0.49, look_back=0.0, release_within=3600.0)
    flaps = simulate(around_the_threshold(1.2, 6 * HOUR), MACHINE, eager, seed=3, start_with=4)
    assert flaps.flaps(within=2 * MACHINE.load_delay) > 5


def test_pre_warming_saves_those_who_come_at_nine() -> None:
    day = working_day(PEAK, 12 * HOUR)
    plain = simulate(day, MACHINE, Policy(), seed=1)
    warm = simulate(day, MACHINE, Policy(pre_warm=[PreWarm(8 * HOUR + 50 * 60, 9.5 * HOUR, 18)]), seed=1)
    assert plain.share_waiting(5.0) > 5 * warm.share_waiting(5.0)
    assert plain.wait_quantile(0.99) > 10 * warm.wait_quantile(0.99)
    assert warm.paid_hours < 1.2 * plain.paid_hours


def test_who_is_paid_by_the_hour_is_kept_for_the_hour() -> None:
    """A load that comes back within the hour: who lets go at once rents, and loads, the same replicas again."""
    wave = waves(PEAK, 4 * HOUR, period=2400.0)
    patient = simulate(wave, MACHINE, Policy(), seed=1)
    hasty = simulate(wave, MACHINE, Policy(release_within=3600.0, look_back=60.0), seed=1)
    assert patient.paid_hours < 0.8 * hasty.paid_hours
    assert patient.wait_quantile(0.95) < hasty.wait_quantile(0.95)


def test_a_spike_shorter_than_the_load_time_is_not_helped_by_scaling() -> None:
    """The sheet's warning: only a floor (or sending some away) helps."""
    trace = spikes(PEAK, 4 * HOUR)
    scaled, floor = (simulate(trace, MACHINE, Policy(floor=n), seed=2) for n in (1, 12))
    assert scaled.wait_quantile(0.99) > 20
    assert floor.wait_quantile(0.99) < 5


def test_latency_has_its_knee_between_half_and_nine_tenths() -> None:
    waits = [Queue(8 * busy, 1.0, 8).mean_wait for busy in (0.5, 0.7, 0.9)]
    assert waits[1] > 5 * waits[0]
    assert waits[2] > 5 * waits[1]


def test_a_full_queue_refuses_instead_of_growing() -> None:
    crowd = steady(1.0, HOUR)
    bounded = simulate(crowd, MACHINE, 1, seed=1, max_waiting=8)
    endless = simulate(crowd, MACHINE, 1, seed=1)
    assert bounded.refused > 0.4 * len(bounded.waits)
    assert max(bounded.waits) < 60 < max(endless.waits)


def test_a_recorded_load_is_played_as_it_was() -> None:
    trace = recorded([(0.0, 2.0), (600.0, 10.0), (1200.0, 0.5)])
    assert [trace.rate(now) for now in (0, 599, 600, 1799)] == [2.0, 2.0, 10.0, 0.5]
    assert trace.seconds == 1800.0
