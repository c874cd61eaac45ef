"""Rent machines or buy tokens: what decides is how busy the machines are, so that is what is shown.

Rules of thumb ("a billion tokens a month") forget it: a billion a month is 380 tokens a second, which keeps a large GPU
at a fraction of what it can do, and a machine costs the same when it waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

HOURS_A_MONTH = 730
SECONDS_A_MONTH = HOURS_A_MONTH * 3600
MILLION = 10**6


@dataclass(frozen=True, kw_only=True)
class Machine:
    """``tokens_a_second`` are input and output together, at full load, in the mix that is asked for."""

    dollars_an_hour: Decimal
    tokens_a_second: Decimal
    highest_utilisation: Decimal = Decimal("0.7")
    """Beyond it, answers get late; so one more machine is rented."""
    engineering_a_month: Decimal = Decimal(0)
    """What looking after it costs, however many there are."""

    @property
    def dollars_a_month(self) -> Decimal:
        return self.dollars_an_hour * HOURS_A_MONTH

    @property
    def tokens_a_month(self) -> Decimal:
        """The most that one is given to do."""
        return self.tokens_a_second * self.highest_utilisation * SECONDS_A_MONTH

    def per_million(self, utilisation: Decimal) -> Decimal:
        """Dollars, when it is so busy all month."""
        return self.dollars_an_hour / 3600 / (self.tokens_a_second * utilisation) * MILLION


@dataclass(frozen=True)
class Comparison:
    """Of one volume: what each way costs a month, in dollars."""

    tokens_a_month: Decimal
    buy: Decimal
    host: Decimal
    machines: int
    utilisation: Decimal

    @property
    def host_per_million(self) -> Decimal:
        return self.host / self.tokens_a_month * MILLION


def blended(input_price: Decimal, output_price: Decimal, output_share: Decimal) -> Decimal:
    """Dollars per million tokens of a mix."""
    return input_price * (1 - output_share) + output_price * output_share


def compare(tokens_a_month: Decimal, machine: Machine, price_per_million: Decimal) -> Comparison:
    machines = max(1, int((tokens_a_month / machine.tokens_a_month).to_integral_value(ROUND_CEILING)))
    return Comparison(
        tokens_a_month=tokens_a_month,
        buy=tokens_a_month * price_per_million / MILLION,
        host=machines * machine.dollars_a_month + machine.engineering_a_month,
        machines=machines,
        utilisation=tokens_a_month / (machines * machine.tokens_a_second * SECONDS_A_MONTH),
    )


def break_even(machine: Machine, price_per_million: Decimal) -> Decimal | None:
    """The smallest volume (tokens a month) at which renting costs no more; None when it never does.

    With the fewest machines that can do it: n of them cost as much as some volume bought, and pay where they can
    compute as much as that.
    """
    earned = machine.tokens_a_month * price_per_million / MILLION
    surplus = earned - machine.dollars_a_month
    if surplus < 0 or (surplus == 0 and machine.engineering_a_month):
        return None
    needed = machine.engineering_a_month / surplus if surplus else Decimal(0)
    machines = max(1, int(needed.to_integral_value(ROUND_CEILING)))
    return (machines * machine.dollars_a_month + machine.engineering_a_month) / price_per_million * MILLION


def break_even_utilisation(machine: Machine, price_per_million: Decimal) -> Decimal:
    """How busy one machine must be all month to cost what the API does; above 1 it never will be."""
    return machine.per_million(Decimal(1)) / price_per_million
