"""Each policy alone: candidates and a request in, an order out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_house import question
from scipy.stats import chisquare

from wootz.core import PriceConfig
from wootz.core.sections.routes import RouteConfig, RuleConfig, in_order
from wootz.gateway.routing.candidate import Candidate, prompt_tokens
from wootz.gateway.routing.latency import HALF_LIFE, Latency
from wootz.gateway.routing.policies import policy_of
from wootz.gateway.routing.policies.ab import ab
from wootz.gateway.routing.policies.cheapest import cheapest
from wootz.gateway.routing.policies.least_busy import least_busy
from wootz.gateway.routing.policies.least_latency import least_latency
from wootz.gateway.routing.policies.overflow import overflow
from wootz.gateway.routing.policies.regions import by_region
from wootz.gateway.routing.policies.rules import by_rules, holds, script
from wootz.gateway.routing.policies.weights import weights
from wootz.telemetry import PriceBook
from wootz.telemetry.prices import Price

ASK = question()


def named(order: list[Candidate]) -> str:
    return "".join(candidate.name for candidate in order)


def candidates(**fields: list[Any]) -> list[Candidate]:
    """Candidates a, b, …; each keyword lists a field's values."""
    rows = zip(*fields.values(), strict=True)
    return [Candidate(name=chr(97 + number), **dict(zip(fields, row, strict=True))) for number, row in enumerate(rows)]


def test_weights_are_shares_and_a_failing_share_is_divided_by_weight() -> None:
    some, policy, n = candidates(weight=[5, 3, 2, 0]), weights(Random(7)), 2000
    orders = [named(policy(some, ASK)) for _ in range(n)]
    firsts = Counter(order[0] for order in orders)
    assert chisquare([firsts[name] for name in "abc"], [0.5 * n, 0.3 * n, 0.2 * n]).pvalue > 0.001
    assert all(order.endswith("d") for order in orders)
    after_a = Counter(order[1] for order in orders if order[0] == "a")
    total = after_a.total()
    assert chisquare([after_a["b"], after_a["c"]], [0.6 * total, 0.4 * total]).pvalue > 0.001


def test_least_latency_counts_the_answers_length() -> None:
    some = candidates(first_token=[0.1, 1.0], inter_token=[0.05, 0.01])
    policy = least_latency(Random(0))
    assert named(policy(some, question(max_tokens=4))) == "ab"
    assert named(policy(some, question(max_tokens=400))) == "ba"
    unknown = candidates(first_token=[0.1, None], inter_token=[0.05, None])
    assert named(policy(unknown, ASK)) == "ba"
    even = candidates(first_token=[1.0, 1.05, 1.2], inter_token=[0.0] * 3)
    assert Counter(named(policy(even, ASK))[0] for _ in range(50)).keys() == {"a", "b"}


def test_a_slow_deployment_is_tried_again_after_a_while() -> None:
    now = 0.0
    slow, quick = Latency(lambda: now), Latency(lambda: now)
    slow.measure_first_token(10.0)
    for _ in range(10):
        now += HALF_LIFE
        quick.measure_first_token(1.0)
    assert quick.first_token == 1.0
    assert slow.first_token is not None
    assert slow.first_token < 0.05


@given(st.lists(st.floats(0.001, 100), min_size=20, max_size=150))
def test_the_quantile_is_that_of_the_last_hundred(times: list[float]) -> None:
    latency = Latency(lambda: 0.0)
    for seconds in times:
        latency.measure_first_token(seconds)
    recent, p95 = times[-100:], latency.p95_first_token
    assert p95 is not None
    assert sum(seconds > p95 for seconds in recent) <= 0.05 * len(recent)
    assert min(recent) <= p95 <= max(recent)


def test_least_busy_is_by_weight() -> None:
    policy = least_busy(Random(0))
    assert named(policy(candidates(in_flight=[3, 1, 2]), ASK)) == "bca"
    assert named(policy(candidates(in_flight=[3, 1], weight=[10, 1]), ASK)) == "ab"
    assert Counter(named(policy(candidates(in_flight=[0, 0]), ASK)) for _ in range(50)).keys() == {"ab", "ba"}


def test_cheapest_depends_on_the_request() -> None:
    own = {
        "a": PriceConfig(input=Decimal(10), output=Decimal(1)),
        "b": PriceConfig(input=Decimal(1), output=Decimal(10)),
    }
    book = PriceBook(own)

    def price_of(name: str) -> Callable[[int], Price | None]:
        return lambda num_prompt: book.find(name, "", datetime.now(UTC), num_prompt)

    some = candidates(price=[price_of("a"), price_of("b")])
    assert named(cheapest(some, question("x" * 8000, max_tokens=10))) == "ba"
    assert named(cheapest(some, question("short", max_tokens=1000))) == "ab"
    assert named(cheapest([Candidate(name="c"), *some], ASK))[2] == "c"  # Nobody knows its price.


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("The quick brown fox jumps over the lazy dog.", 10), ("敏捷的棕色狐狸跳过了懒狗。", 12), ("", 0)],
)
def test_a_prompts_size_is_about_right_in_any_script(text: str, tokens: int) -> None:
    assert prompt_tokens(question(text)) == pytest.approx(tokens, abs=3)


def test_a_b_is_stable_divides_by_weight_and_moves_nobody_back() -> None:
    policy = ab("way", Random(0))

    def variant(user: str, some: list[Candidate]) -> str:
        return named(policy(some, question(user=user)))[0]

    users = [f"user-{number}" for number in range(1000)]
    shares = {
        weight: {user: variant(user, candidates(weight=[100 - weight, weight])) for user in users}
        for weight in (1, 5, 25, 50)
    }
    for weight, by_user in shares.items():
        count = sum(one == "b" for one in by_user.values())
        assert chisquare([count, len(users) - count], [weight * 10, (100 - weight) * 10]).pvalue > 0.001
        assert by_user == {user: variant(user, candidates(weight=[100 - weight, weight])) for user in users}
    for before, after in ((1, 5), (5, 25), (25, 50)):
        assert all(shares[after][user] == "b" for user in users if shares[before][user] == "b")
    other = ab("another", Random(0))
    half = candidates(weight=[1, 1])
    same = sum(named(other(half, question(user=user)))[0] == shares[50][user] for user in users)
    assert 0.45 * len(users) < same < 0.55 * len(users)


def test_overflow_fills_in_order() -> None:
    assert named(overflow(candidates(capacity=[2, 5, None], in_flight=[1, 0, 0]), ASK)) == "abc"
    assert named(overflow(candidates(capacity=[2, 5, None], in_flight=[2, 0, 0]), ASK)) == "bca"
    assert named(overflow(candidates(capacity=[2, 5], in_flight=[2, 5]), ASK)) == "ab"


def test_regions_by_preference_keep_the_policys_order_within() -> None:
    some = candidates(region=["eu", "cn", None, "cn", "us"])
    assert named(by_region(some, ["cn", "eu"])) == "bdace"


@pytest.mark.parametrize(
    ("rule", "request_", "fits"),
    [
        ({"min_chars": 3}, question("abc"), True),
        ({"min_chars": 4}, question("abc"), False),
        ({"max_chars": 2}, question("abc"), False),
        ({"tools": True}, ASK, False),
        ({"tools": True}, question(tools=[{"type": "function", "function": {"name": "f"}}]), True),
        ({"structured": True}, question(response_format={"type": "json_object"}), True),
        ({"structured": False}, question(response_format={"type": "json_object"}), False),
        ({"script": "han"}, question("你好, world of 你好你好"), False),
        ({"script": "han"}, question("请解释 TLS 的握手过程是怎么工作的"), True),
        ({"script": "kana"}, question("東京は日本の首都です"), True),
        ({"script": "latin"}, question("12345"), False),
        ({"contains": ["prove", "Beweis"]}, question("Prove it."), True),
        ({"contains": ["prove"]}, question("improve it"), False),
        ({"contains": ["证明"]}, question("请证明这个定理"), True),
        ({"contains": ["c++"]}, question("in C++ please"), True),
        ({"tags": {"team": "x"}}, ASK, False),
        ({"min_chars": 1, "tools": True}, ASK, False),
    ],
)
def test_a_rule_holds_when_all_of_it_does(rule: dict[str, Any], request_: Any, fits: bool) -> None:
    assert holds(RuleConfig.model_validate({"to": ["a"], **rule}), request_) is fits


def test_images_and_tags_are_conditions_too() -> None:
    image = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    asked = question()
    asked.messages[0] = asked.messages[0].model_validate({"role": "user", "content": image})
    asked.journey.tags["team"] = "x"
    assert holds(RuleConfig(to=["a"], images=True, tags={"team": "x"}), asked)
    assert not holds(RuleConfig(to=["a"], images=True), ASK)


def test_the_first_rule_that_holds_decides_and_tags_name_targets() -> None:
    some = candidates(tags=[("small",), ("big",), ("big",)])
    rules = [RuleConfig(to=["c", "small"], min_chars=100), RuleConfig(to=["big"], contains=["prove"])]
    assert named(by_rules(some, question("x" * 100 + " prove"), rules)) == "ca"
    assert named(by_rules(some, question("prove"), rules)) == "bc"
    assert named(by_rules(some, ASK, rules)) == "abc"


@given(st.text())
def test_no_text_breaks_a_condition(text: str) -> None:
    script(text)
    holds(RuleConfig(to=["a"], contains=["a.b", "("], script="thai"), question(text or "x"))


def test_rules_then_policy_then_regions() -> None:
    config = RouteConfig.model_validate(
        {
            "targets": ["a", "b", {"model": "c", "region": "eu"}],
            "policy": "least-busy",
            "regions": ["eu"],
            "rules": [{"to": ["b", "c"], "contains": ["hard"]}],
        }
    )
    some = candidates(in_flight=[0, 1, 5], region=[None, None, "eu"])
    policy = policy_of("way", config, Random(0))
    assert named(policy(some, ASK)) == "cab"
    assert named(policy(some, question("hard"))) == "cb"


@pytest.mark.parametrize(
    ("route", "says"),
    [
        ({"targets": []}, "at least 1"),
        ({"targets": ["a", "a"]}, "named twice"),
        ({"targets": ["a"], "fallbacks": ["a"]}, "named twice"),
        ({"targets": ["a"], "rules": [{"to": ["b"]}]}, "neither a target nor a tag"),
        ({"targets": ["a", "b"], "policy": "learned"}, "router"),
        ({"targets": ["a"], "policy": "cascade"}, "cascade"),
        ({"targets": ["a", "b"], "policy": "cascade", "cascade": {"thresholds": [1, 2]}}, "but the last"),
        ({"targets": [{"model": "a", "weight": 0}], "policy": "weights"}, "weights are 0"),
        ({"targets": ["a"], "colour": "red"}, "Extra inputs"),
    ],
)
def test_a_route_that_cannot_work_is_refused(route: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RouteConfig.model_validate(route)


def test_routes_of_routes_are_put_in_order_and_circles_refused() -> None:
    def to(*names: str) -> RouteConfig:
        return RouteConfig.model_validate({"targets": list(names)})

    assert in_order({"x": to("y", "m"), "y": to("m")}, {"m"}) == ["y", "x"]
    with pytest.raises(ValueError, match=r"circle: (x → y → x|y → x → y)"):
        in_order({"x": to("y"), "y": to("x")}, {"m"})
    with pytest.raises(ValueError, match='names "m"'):
        in_order({"x": to("m")}, set())
