"""The Alerts page: what is wrong, who is on it, and quiet for a while; for administrators."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from console_house import House

from wootz.telemetry.alerts import IncidentRow


async def open_incident(house: House, subject: str = "far.test") -> str:
    row = IncidentRow(
        id=f"inc-{subject}", rule="provider-errors", subject=subject, live=subject, state="open", severity="critical",
        value=0.5, worst=0.8, detail={"samples": 40, "culprit": {"key_id": "key-1", "user": "ann", "share": 0.91}},
        began_at=datetime.now(UTC), opened_at=datetime.now(UTC), action="fail_over", action_state="dry-run",
        action_detail={"what": "would ask it no more"},
    )  # fmt: skip
    async with house.database.session() as session:
        session.add(row)
    return row.id


async def test_an_incident_is_shown_taken_on_and_silenced(house, admin):
    assert "Nothing is wrong" in (await admin.get("/alerts")).text
    hostile = '<script>alert("x")</script>'
    incident = await open_incident(house, hostile.replace("/", ""))
    page = (await admin.get("/alerts")).text
    assert "provider-errors" in page
    assert "<script>alert" not in page
    path = re.search(r'<tr data-testid="incident-row">.*?href="([^"]+)"', page, re.DOTALL)[1]
    shown = (await admin.get(path)).text
    assert "would ask it no more" in shown
    assert "91%" in shown
    assert "nobody yet" in shown
    assert (await admin.submit(f"{path}/acknowledge")).status_code == 303
    assert '<dd data-testid="acknowledged-by">boss</dd>' in (await admin.get(path)).text
    assert (await admin.submit(f"{path}/silence", hours="4", why="known")).status_code == 303
    (silence,) = await house.gateway.incidents.silences()
    assert (silence.rule, silence.why, silence.created_by) == ("provider-errors", "known", "boss")
    assert (await admin.submit(f"/alerts/silences/{silence.id}/end")).status_code == 303
    assert await house.gateway.incidents.silences() == []
    assert incident


async def test_alerts_are_for_administrators(house, user):
    incident = await open_incident(house)
    assert 'data-testid="nav-alerts"' not in (await user.get("/models")).text
    assert (await user.get("/alerts")).status_code == 403
    assert (await user.get(f"/alerts/{incident}")).status_code == 403
    assert (await user.submit(f"/alerts/{incident}/acknowledge")).status_code == 403


async def test_a_forged_form_changes_nothing(house, admin):
    incident = await open_incident(house)
    assert (await admin.post(f"/alerts/{incident}/acknowledge", data={"csrf_token": "x"})).status_code == 403
    assert (await house.gateway.incidents.get(incident)).acknowledged_by is None
