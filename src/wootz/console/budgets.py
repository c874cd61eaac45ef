"""Limits as bars for the Keys page: what is used, what requests under way hold, and what is left."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from wootz.console.formats import cents, count, usd
from wootz.gateway.limit_routes import LimitState

WORDS = {
    "requests_per_minute": "Requests a minute",
    "tokens_per_minute": "Tokens a minute",
    "tokens_per_day": "Tokens a day",
    "concurrent_requests": "Requests at once",
    "budget_exceeded": "Budget",
    "conversation_steps": "Requests of a conversation",
    "conversation_budget": "Budget of a conversation",
}
NEARLY = Decimal("0.8")


@dataclass(frozen=True)
class LimitBar:
    kind: str
    name: str
    what: str
    used: str
    held: str
    """Empty when nothing is."""
    of: str
    exact: str
    """Every digit of a budget's money."""
    used_share: float
    """0 to 1, and so the next."""
    held_share: float
    level: str
    full_again: datetime | None


def bars(states: list[LimitState]) -> list[LimitBar]:
    return [_bar(state) for state in states]


def _bar(state: LimitState) -> LimitBar:
    is_money = state.limit in ("budget_exceeded", "conversation_budget")

    def words(amount: Decimal) -> str:
        return cents(amount) if is_money else count(int(amount))

    of = state.of or Decimal(1)  # A budget of nothing is used up.
    used, taken = min(state.used / of, Decimal(1)), (state.used + state.held) / of
    return LimitBar(
        kind=state.subject,
        name=state.name,
        what=WORDS[state.limit],
        used=words(state.used),
        held=words(state.held) if state.held else "",
        of=usd(state.of) if is_money else words(state.of),
        exact=f"{usd(state.used)} used, {usd(state.held)} reserved, of {usd(state.of)}" if is_money else "",
        used_share=float(used),
        held_share=float(min(taken, Decimal(1)) - used),
        level="bad" if taken >= 1 or not state.of else "warn" if taken >= NEARLY else "good",
        full_again=state.full_again,
    )
