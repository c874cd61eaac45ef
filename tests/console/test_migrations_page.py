"""The Migrations page: stages and gates are shown, administrators advance and roll back, and nobody else does."""

from __future__ import annotations

import re
from html import unescape

from console_house import Browser, House

from wootz.gateway.migration import Plan
from wootz.gateway.migration.plan import STAGES

PLAN = Plan(durations=dict.fromkeys(STAGES[:-1], 3600.0), margins={"errors": 0.02, "cost": 1.1}, min_samples=10)


async def test_a_migration_is_followed_advanced_and_rolled_back(house: House, admin: Browser) -> None:
    assert "No migrations yet" in (await admin.get("/migrations")).text
    store = house.gateway.migrations.store
    state = await store.start(alias="scripted", new="other", plan=PLAN, actor="ann")
    page = unescape((await admin.get("/migrations")).text)
    assert ">scripted → other<" in page
    assert re.findall(r'<li class="now"[^>]*><b>([^<]*)', page) == ["shadow"]
    assert page.count('data-testid="gate"') == 2
    assert "10 requests of each are needed" in page
    refused = await admin.submit(f"/migrations/{state.id}/advance")
    assert refused.status_code == 400
    assert (await admin.submit(f"/migrations/{state.id}/advance", force="1")).status_code == 303
    assert (await store.get(state.id)).stage == "canary"
    assert (await admin.submit(f"/migrations/{state.id}/rollback")).status_code == 303
    assert (await store.get(state.id)).stage == "rolled-back"
    (*_, last) = await store.steps(state.id)
    keys = {key.id: key.name for key in await house.keys.list()}
    assert keys[last.actor] == "boss"
    page = (await admin.get("/migrations")).text
    assert re.findall(r'<li class="back"[^>]*><b>([^<]*)', page) == ["canary"]
    assert "asked for on the console" in page


async def test_migrations_are_for_administrators(user: Browser) -> None:
    assert 'data-testid="nav-migrations"' not in (await user.get("/models")).text
    assert (await user.get("/migrations")).status_code == 403
    assert (await user.submit("/migrations/x/rollback")).status_code == 403
