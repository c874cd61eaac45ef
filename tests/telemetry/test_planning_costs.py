"""What-if and host-or-buy against published figures, corrected ones, and brute force."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wootz.telemetry.host_or_buy import Machine, blended, break_even, break_even_utilisation, compare
from wootz.telemetry.prices import Price
from wootz.telemetry.what_if import Cascade, Step, Traffic, what_if


def price(input: str, output: str, cached: str | None = None) -> Price:
    each = Decimal(input)
    return Price(
        input=each, cached_input=Decimal(cached) if cached else each, cache_write=each, output=Decimal(output),
        batch=Decimal(1), unit=Decimal(0), version="test",
    )  # fmt: skip


TRAFFIC = Traffic(calls_a_day=Decimal(10_000), prompt=Decimal(4000), completion=Decimal(500))


def walk(input_price: str, counts_failures: bool) -> list[Step]:
    cascade = Cascade(share=Decimal("0.6"), price=price("0.10", "0.30"), counts_failures=counts_failures)
    dear = price(input_price, "15", "0.30")
    return what_if(TRAFFIC, dear, cached=Decimal(3000), semantic=Decimal("0.3"), cascade=cascade)


def test_the_articles_walk_through() -> None:
    """It takes 4 dollars for input, where its own table has 3, and forgets the cheap answers that were thrown away."""
    steps = walk("4", counts_failures=False)
    assert [step.per_call for step in steps[:2]] == [Decimal("0.0235"), Decimal("0.0124")]
    assert [round(step.a_month) for step in steps] == [7050, 3720, 2604, 1111]
    assert [round(step.total * 100) for step in steps] == [0, 47, 63, 84]


def test_the_walk_through_at_the_tables_price() -> None:
    steps = walk("3", counts_failures=False)
    assert [step.per_call for step in steps[:2]] == [Decimal("0.0195"), Decimal("0.0114")]
    assert [round(step.a_month) for step in steps] == [5850, 3420, 2394, 1027]
    assert [round(step.total * 100, 1) for step in steps] == [0, Decimal("41.5"), Decimal("59.1"), Decimal("82.4")]


def test_the_cheap_answers_thrown_away_cost_something() -> None:
    last = walk("3", counts_failures=True)[-1]
    assert (round(last.a_month), round(last.total * 100, 1)) == (1073, Decimal("81.7"))


shares = st.decimals(0, 1, places=3)
amounts = st.integers(1, 10**5)


@given(shares, shares, shares, amounts, amounts)
def test_what_is_left_after_each_step_multiplies_to_what_is_left_of_all(
    cached: Decimal, semantic: Decimal, share: Decimal, prompt: int, completion: int
) -> None:
    traffic = Traffic(calls_a_day=Decimal(7), prompt=Decimal(prompt), completion=Decimal(completion))
    cascade = Cascade(share=share, price=price("0.1", "0.3"))
    steps = what_if(traffic, price("3", "15", "0.3"), cached=cached * prompt, semantic=semantic, cascade=cascade)
    left = Decimal(1)
    for step in steps:
        left *= 1 - step.marginal
    assert left == pytest.approx(1 - steps[-1].total)
    assert all(step.total <= 1 for step in steps)


# --- host or buy ----------------------------------------------------------------------------------------------

H100 = Machine(dollars_an_hour=Decimal("2.5"), tokens_a_second=Decimal(2500))


def test_a_billion_a_month_leaves_a_large_gpu_idle() -> None:
    """380 tokens a second: 1.83 dollars a million on a rented H100, far from the 0.10 of price tables."""
    found = compare(Decimal(10**9), H100, Decimal("1.4"))
    assert found.machines == 1
    assert found.host_per_million == Decimal("1.825")
    assert round(found.utilisation * 2500) == 381
    assert found.host > found.buy


def test_a_busy_gpu_is_cheaper_than_an_api_and_an_idle_one_is_not() -> None:
    mix = blended(Decimal("1.4"), Decimal("5.6"), Decimal("0.2"))
    assert mix == Decimal("2.24")
    assert H100.per_million(Decimal("0.7")) < mix
    assert H100.per_million(Decimal("0.1")) > mix
    assert H100.per_million(break_even_utilisation(H100, mix)) == pytest.approx(mix)


machines = st.builds(
    Machine,
    dollars_an_hour=st.decimals("0.1", 20, places=2),
    tokens_a_second=st.decimals(10, 10_000, places=0),
    highest_utilisation=st.decimals("0.1", 1, places=2),
    engineering_a_month=st.decimals(0, 20_000, places=0),
)


@given(machines, st.decimals("0.01", 20, places=2))
def test_the_break_even_is_the_first_volume_that_pays(machine: Machine, per_million: Decimal) -> None:
    volume = break_even(machine, per_million)
    if volume is None:
        assert machine.tokens_a_month * per_million / 10**6 <= machine.dollars_a_month
        return
    found = compare(volume, machine, per_million)
    assert found.host == pytest.approx(found.buy)
    for part in ("0.999", "0.9", "0.5", "0.1"):
        smaller = compare(volume * Decimal(part), machine, per_million)
        assert smaller.host > smaller.buy


def test_who_asks_too_much_of_a_machine_gets_more_of_them() -> None:
    found = compare(10 * H100.tokens_a_month + 1, H100, Decimal(1))
    assert found.machines == 11
    assert found.utilisation < H100.highest_utilisation
