"""The Keys page says how much of each limit is used and held, and so does the administrators' route."""

from __future__ import annotations

import re
from decimal import Decimal

from markupsafe import escape

from wootz.core import PriceConfig
from wootz.core.wire import ChatRequest
from wootz.telemetry import PriceBook

HOSTILE = '<img src=x onerror="alert(1)">'


def rows(page: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(whose, limit) -> (used, reserved)"""
    whose, limit = r'limit-row" data-subject="([^"]*)"', r"<td>([^<]*)</td>"
    used, held = r'data-testid="limit-used">([^<]*)<', r'data-testid="limit-held">([^<]*)<'
    found = re.findall(".*?".join((whose, limit, used, held)), page, re.DOTALL)
    return {(whose, limit): (used, held) for whose, limit, used, held in found}


async def test_what_is_used_and_what_is_reserved(house, admin):
    house.telemetry.prices = PriceBook({"scripted": PriceConfig(input=Decimal(1000), output=Decimal(1000))})
    await house.keys.create_account("team", "research", budget_usd="2", budget_period="monthly")
    await house.keys.create_account("user", "idle", tokens_per_day=500)
    key, token = await house.keys.create("agent", team="research", requests_per_minute=3, concurrent_requests=2)
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
    headers = {"authorization": f"Bearer {token}"}
    answer = await admin.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200
    cost = Decimal(answer.json()["usage"]["total_tokens"]) / 1000

    body["messages"][0]["content"] = "forever"
    running = house.gateway.chat(key, ChatRequest.model_validate(body), request_id="r", route="/")
    await anext(running)
    table = rows((await admin.get("/keys")).text)
    assert table["key agent", "Requests a minute"] == ("2", "–")
    assert table["key agent", "Requests at once"] == ("0", "1")
    assert table["user idle", "Tokens a day"] == ("0", "–")
    spent, reserved = table["team research", "Budget"]
    assert spent == f"${cost.normalize():f}"
    assert Decimal(reserved.removeprefix("$")) >= Decimal("0.1")
    admin_key = await house.key("other-boss", scopes=("admin",))
    listed = await admin.get("/admin/limits", headers={"authorization": f"Bearer {admin_key}"})
    (budget,) = [one for one in listed.json()["data"] if one["limit"] == "budget_exceeded"]
    assert (budget["subject"], budget["name"], Decimal(budget["used"]), budget["of"]) == ("team", "research", cost, "2")
    assert Decimal(budget["held"]) >= Decimal("0.1")
    await running.aclose()


async def test_a_period_nobody_has_asked_for_is_what_the_ledger_says(house, admin):
    """As after a restart; and names are text."""
    await house.keys.create_account("tag", f"a={HOSTILE}", budget_usd="0", budget_period="never")
    page = (await admin.get("/keys")).text
    assert rows(page)[str(escape(f"tag a={HOSTILE}")), "Budget"] == ("$0.00", "–")
    assert HOSTILE not in page


async def test_limits_are_for_administrators(house, user):
    token = await house.key("plain")
    assert (await user.get("/admin/limits", headers={"authorization": f"Bearer {token}"})).status_code == 403
    assert (await user.get("/keys")).status_code == 403
