"""The options that set limits, the same for keys, teams, users and tags."""

from __future__ import annotations

from typing import Annotated, Any

import typer

RequestsPerMinute = Annotated[int | None, typer.Option("--rpm", min=1, help="Most requests a minute.")]
TokensPerMinute = Annotated[int | None, typer.Option("--tpm", min=1, help="Most tokens a minute.")]
TokensPerDay = Annotated[int | None, typer.Option("--daily-tokens", min=1, help="Most tokens a day.")]
Concurrent = Annotated[int | None, typer.Option(min=1, help="Most requests at once.")]
Budget = Annotated[str | None, typer.Option(help="USD and how often it is full again: 5/daily, 100/monthly, 20/never.")]
Steps = Annotated[int | None, typer.Option("--conversation-steps", min=1, help="Most requests of a conversation.")]
StepsUSD = Annotated[str | None, typer.Option("--conversation-usd", help="What a conversation may cost, in USD.")]
ResetHour = Annotated[int, typer.Option(min=0, max=23, help="When a day begins, in the time zone.")]
TimeZone = Annotated[str, typer.Option("--zone", help="Of the day, week and month, for example Asia/Shanghai.")]


def limits_of(
    rpm: int | None,
    tpm: int | None,
    daily_tokens: int | None,
    concurrent: int | None,
    budget: str | None,
    reset_hour: int,
    zone: str,
    steps: int | None = None,
    steps_usd: str | None = None,
) -> dict[str, Any]:
    """The fields of `Limits`."""
    amount, _, period = (budget or "").partition("/")
    if budget and not period:
        raise typer.BadParameter(f'"{budget}": say when it is full again, for example {budget}/monthly')
    fields = {
        "requests_per_minute": rpm,
        "tokens_per_minute": tpm,
        "tokens_per_day": daily_tokens,
        "concurrent_requests": concurrent,
        "budget_usd": amount or None,
        "budget_period": period or None,
        "conversation_steps": steps,
        "conversation_usd": steps_usd,
    }
    set_fields = {name: value for name, value in fields.items() if value is not None}
    return (
        set_fields | ({"reset_hour": reset_hour} if reset_hour else {}) | ({"time_zone": zone} if zone != "UTC" else {})
    )


def shown(limits: dict[str, Any]) -> str:
    """Limits in a cell of a table: ``60 requests/min, 5 USD daily``."""
    words = {
        "requests_per_minute": "{} requests/min",
        "tokens_per_minute": "{} tokens/min",
        "tokens_per_day": "{} tokens/day",
        "concurrent_requests": "{} at once",
        "budget_usd": "{} USD " + str(limits.get("budget_period", "")),
        "conversation_steps": "{} requests a conversation",
        "conversation_usd": "{} USD a conversation",
    }
    return ", ".join(text.format(limits[name]) for name, text in words.items() if name in limits) or "none"
