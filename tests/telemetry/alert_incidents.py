"""One incident for each rule, as it would stand in the ledger and the signals of a real one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from alert_traffic import START, Traffic, attempt, timeline

AT = START + timedelta(days=8, hours=10)
"""A Tuesday morning, with a week and a day before it."""
HOUR, MINUTE, DAY = timedelta(hours=1), timedelta(minutes=1), timedelta(days=1)


@dataclass(frozen=True)
class Incident:
    """``companions`` are rules that say the same from another side, and may fire too."""

    rule: str
    subject: str
    happen: Callable[[Traffic], None]
    lasts: timedelta = HOUR / 2
    companions: tuple[str, ...] = ()


INCIDENTS: list[Incident] = []


def incident(rule: str, subject: str, lasts: timedelta = HOUR / 2, companions: tuple[str, ...] = ()) -> Callable:
    def add(happen: Callable[[Traffic], None]) -> Callable[[Traffic], None]:
        INCIDENTS.append(Incident(rule, subject, happen, lasts, companions))
        return happen

    return add


def each(traffic: Traffic, per_hour: float, lasts: timedelta = HOUR / 2) -> Iterator[datetime]:
    return traffic.moments(AT, AT + lasts, per_hour)


@incident("provider-errors", "near", companions=("fallback-rate",))
def provider_fails(traffic: Traffic) -> None:
    """It answers 503, and the route's second answers instead: users notice nothing."""
    for at in each(traffic, 200):
        tried = timeline(attempt(error_code="upstream_error"), attempt("spare"))
        traffic.usual(at, timeline=tried, num_attempts=2, deployment="spare")


@incident("provider-refuses-key", "near", companions=("errors",))
def key_is_revoked(traffic: Traffic) -> None:
    for at in each(traffic, 200):
        traffic.usual(at, timeline=timeline(attempt(error_code="upstream_refused")), status=502)


@incident("provider-rate-limit", "near")
def asked_too_much(traffic: Traffic) -> None:
    for at in each(traffic, 200):
        traffic.usual(at, timeline=timeline(attempt(error_code="upstream_rate_limit")), status=429)


@incident("fallback-rate", "chat")
def quiet_failover(traffic: Traffic) -> None:
    for at in each(traffic, 300):
        traffic.usual(at, num_attempts=2, deployment="spare", timeline=timeline(attempt("spare"), attempt("spare")))


@incident("errors", "chat")
def all_fail(traffic: Traffic) -> None:
    for at in each(traffic, 200):
        traffic.usual(at, status=502, error_code="upstream_error", timeline=timeline(), num_attempts=0, deployment=None)


@incident("latency-p99", "chat")
def some_hang(traffic: Traffic) -> None:
    for at in each(traffic, 600):
        traffic.usual(at, duration=60.0 if traffic.random.random() < 0.05 else 2.0)


@incident("latency-first-token", "chat")
def slow_to_begin(traffic: Traffic) -> None:
    for at in each(traffic, 600):
        traffic.usual(at, time_to_first_token=8.0)


@incident("latency-between-tokens", "chat")
def slow_to_write(traffic: Traffic) -> None:
    for at in each(traffic, 600):
        traffic.usual(at, inter_token_latency=0.5)


@incident("queue-wait", "chat")
def long_queue(traffic: Traffic) -> None:
    for at in each(traffic, 600):
        traffic.usual(at, queue_time=12.0)


@incident("queue-depth", "local")
def piles_up(traffic: Traffic) -> None:
    for n in range(120):
        traffic.signal(AT + n * timedelta(seconds=15), "queue_depth", 60, subject="local")


@incident("breaker-open", "near")
def breaker_opens(traffic: Traffic) -> None:
    for n in range(120):
        traffic.signal(AT + n * timedelta(seconds=15), "breaker_open", subject="near")


@incident("out-of-memory", "local")
def no_memory(traffic: Traffic) -> None:
    traffic.signal(AT, "out_of_memory", subject="local")


@incident("engine-died", "local")
def dies_again(traffic: Traffic) -> None:
    for minutes in (0, 2, 5):
        traffic.signal(AT + minutes * MINUTE, "engine_died", subject="local")


@incident("records-lost", "all")
def disk_full(traffic: Traffic) -> None:
    for n in range(20):
        traffic.signal(AT + n * MINUTE, "rows_lost", 3)


@incident("cost-spike", "all", HOUR, companions=("user-spend", "cost-per-request", "feature-cost"))
def planner_runs_wild(traffic: Traffic) -> None:
    """A scheduler whose plan begins with asking for a plan."""
    for at in each(traffic, 400, HOUR):
        traffic.usual(at, user="user-3", key_id="key-3", cost=40_000_000_000)


@incident("user-spend", "user-5", HOUR, companions=("cost-spike",))
def one_spends(traffic: Traffic) -> None:
    for at in each(traffic, 60, HOUR):
        traffic.usual(at, user="user-5", cost=40_000_000_000)


@incident("feature-cost", "search", DAY)
def prompt_grows(traffic: Traffic) -> None:
    for at in each(traffic, 60, DAY):
        traffic.usual(at, cost=9_000_000_000, tags=json.dumps({"feature": "search"}))


@incident("resolution-cost", "chat", 2 * DAY)
def dearer_successor(traffic: Traffic) -> None:
    for at in each(traffic, 20, 2 * DAY):
        traffic.usual(at, deployment="newer", cost=4_000_000_000)


@incident("conversation-cost", "c-loop", HOUR, companions=("user-spend", "cost-spike", "feature-cost"))
def one_conversation(traffic: Traffic) -> None:
    for at in each(traffic, 40, HOUR):
        traffic.usual(at, cost=200_000_000_000, tags='{"conversation": "c-loop"}')


@incident("session-cost", "s-1", HOUR, companions=("user-spend", "cost-spike"))
def one_session(traffic: Traffic) -> None:
    for at in each(traffic, 40, HOUR):
        traffic.usual(at, cost=200_000_000_000, tags='{"session": "s-1"}')


@incident("conversation-loop", "c-loop", HOUR)
def agent_asks_itself(traffic: Traffic) -> None:
    for at in each(traffic, 250, HOUR):
        traffic.usual(at, tags='{"conversation": "c-loop"}')


@incident("cost-per-request", "chat", HOUR, companions=("cost-spike", "user-spend", "feature-cost"))
def dear_requests(traffic: Traffic) -> None:
    for at in each(traffic, 80, HOUR):
        traffic.usual(at, cost=2_000_000_000_000 if traffic.random.random() < 0.3 else 2_000_000_000)


@incident("price-unknown", "new-model", HOUR)
def no_price(traffic: Traffic) -> None:
    for at in each(traffic, 60, HOUR):
        traffic.usual(at, deployment="new-model", priced=0, cost=0)


@incident("prompt-cache-drop", "chat", 3 * HOUR)
def prompt_edited(traffic: Traffic) -> None:
    """A time of day was put at the beginning of the prompt."""
    for at in each(traffic, 300, 3 * HOUR):
        traffic.usual(at, cached_tokens=0)


@incident("answer-cache-drop", "chat", 3 * HOUR)
def cache_missed(traffic: Traffic) -> None:
    for at in each(traffic, 300, 3 * HOUR):
        traffic.usual(at, cache="miss")


@incident("refusals", "chat", 3 * HOUR)
def refuses_more(traffic: Traffic) -> None:
    for at in each(traffic, 200, 3 * HOUR):
        traffic.usual(at, refused=int(traffic.random.random() < 0.2))


@incident("injection-attempts", "user-9", companions=("guardrail-trips",))
def keeps_trying(traffic: Traffic) -> None:
    for at in each(traffic, 120):
        traffic.signal(at, "injection_attempt", subject="prompt", user="user-9", key_id="key-9")


@incident("guardrail-trips", "pii", HOUR)
def personal_numbers(traffic: Traffic) -> None:
    for at in each(traffic, 80, HOUR):
        traffic.signal(at, "guardrail_trip", subject="pii")


@incident("quality-drift", "near", DAY)
def silently_worse(traffic: Traffic) -> None:
    """A managed model was changed behind its name."""
    for at in each(traffic, 10, DAY):
        traffic.signal(at, "quality", min(1.0, traffic.random.gauss(0.68, 0.1)), model="near")


@incident("faithfulness-drop", "near", DAY / 2)
def other_embedding(traffic: Traffic) -> None:
    for at in each(traffic, 20, DAY / 2):
        traffic.signal(at, "faithfulness", min(1.0, traffic.random.gauss(0.6, 0.1)), model="near")


@incident("secret-stale", "openai", DAY)
def never_rotated(traffic: Traffic) -> None:
    for n in range(6 * 24):
        traffic.signal(AT + n * 10 * MINUTE, "stale_secret", n / 144, subject="openai")


@incident("model-retires", "near", 2 * DAY)
def end_announced(traffic: Traffic) -> None:
    for n in range(48):
        traffic.signal(AT + n * HOUR, "retires_in_days", 90 - n / 24, subject="near")


@incident("model-retires-soon", "near", 2 * DAY, companions=("model-retires",))
def end_is_near(traffic: Traffic) -> None:
    for n in range(48):
        traffic.signal(AT + n * HOUR, "retires_in_days", 14 - n / 24, subject="near")


# Of "traffic-gone" nothing happens: it is what does not come (see the test).
