"""``POST /v1/feedback``: users rate their own answers, and nobody else's."""

from __future__ import annotations

import httpx
import pytest
from serving import ASK, CHAT, GatewayServer
from sqlalchemy import select

from wootz.telemetry.feedback import feedback


async def ratings(server: GatewayServer) -> dict[str, tuple[float, str | None]]:
    async with server.database.session() as session:
        return {row.request_id: (row.rating, row.label) for row in await session.execute(select(feedback))}


def test_the_last_rating_of_an_answer_counts(server: GatewayServer, http: httpx.Client) -> None:
    id = http.post(CHAT, json=ASK).headers["x-request-id"]
    for rating, label in ((1, None), (0.25, "too long")):
        answer = http.post("/v1/feedback", json={"request_id": id, "rating": rating, "label": label})
        assert (answer.status_code, answer.content) == (204, b"")
    assert server.call(ratings(server))[id] == (0.25, "too long")


def test_another_keys_answer_is_not_there(server: GatewayServer, http: httpx.Client, admin: httpx.Client) -> None:
    id = http.post(CHAT, json=ASK).headers["x-request-id"]
    other = server.call(server.keys.create("other"))[1]
    answers = [
        http.post("/v1/feedback", json={"request_id": id, "rating": 1}, headers={"authorization": f"Bearer {other}"}),
        http.post("/v1/feedback", json={"request_id": "nothing", "rating": 1}),
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json() == answers[1].json()
    assert id not in server.call(ratings(server))


@pytest.mark.parametrize(
    "body",
    [{"request_id": "x", "rating": 2}, {"request_id": "x", "rating": True}, {"request_id": "x\0", "rating": 1},
     {"request_id": "x", "rating": 1, "label": "<b>"}, {"request_id": "x", "rating": 1, "comment": "hi"},
     {"rating": 1}],
)  # fmt: skip
def test_bad_feedback_is_refused(http: httpx.Client, body: dict) -> None:
    assert http.post("/v1/feedback", json=body).status_code == 400
