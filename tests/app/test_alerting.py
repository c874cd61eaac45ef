"""Who is told, and over which ways: nothing that a receiver's address leads to is reached unless it is meant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from aiohttp import web

from wootz.app.alerting import Poster, Surroundings, receivers_of
from wootz.core import Config, ConfigError, UnavailableError
from wootz.telemetry.metrics import Metrics

SECRET = "s" * 24


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A receiver on this machine, and what it heard; ``/moved`` redirects to it."""
    heard: list[bytes] = []

    async def hear(request: web.Request) -> web.Response:
        heard.append(await request.read())
        return web.Response(status=204)

    async def moved(_: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect("/hear")

    app = web.Application()
    app.add_routes([web.post("/hear", hear), web.post("/moved", moved)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"127.0.0.1:{runner.addresses[0][1]}", heard
    await runner.cleanup()


async def test_private_addresses_are_reached_only_where_they_are_meant(receiver):
    place, heard = receiver
    port = place.rpartition(":")[2]
    async with Poster() as poster:
        assert await poster.post(f"http://{place}/hear", b"1", {}, True) == 204
        for host in ("127.0.0.1", "localhost", "[::1]", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]"):
            with pytest.raises(OSError):  # noqa: PT011
                await poster.post(f"http://{host}:{port}/hear", b"2", {}, False)
    assert heard == [b"1"]


async def test_redirects_are_not_followed(receiver):
    place, heard = receiver
    async with Poster() as poster:
        assert await poster.post(f"http://{place}/moved", b"1", {}, True) == 307
    assert heard == []


async def test_an_error_tells_no_address(receiver):
    async with Poster() as poster:
        with pytest.raises(OSError) as told:  # noqa: PT011
            await poster.post("http://127.0.0.1:1/T0KEN", b"", {}, True)
    assert "T0KEN" not in str(told.value)
    assert told.value.__cause__ is None


@pytest.mark.parametrize(
    "webhook",
    [
        {"url": "ftp://pager.test/T0KEN", "secret": SECRET},
        {"url": "http://pager.test/T0KEN", "secret": SECRET},
        {"url": "https://10.0.0.8/T0KEN", "secret": SECRET},
        {"url": "https://user:T0KEN@pager.test/", "secret": SECRET},
        {"url": "https://pager.test/T0KEN", "secret": "short"},
        {"url": "https://pager.test/T0KEN", "secret": "env:NOT_SET_ANYWHERE"},
    ],
)
def test_a_receiver_that_can_not_be_told_safely_is_refused_at_the_start(webhook):
    config = Config.model_validate({"alerts": {"webhooks": {"pager": webhook}}})
    with pytest.raises(ConfigError, match=r"alerts\.webhooks\.pager") as refused:
        receivers_of(config)
    assert "T0KEN" not in str(refused.value)


def test_receivers_come_from_references(monkeypatch):
    monkeypatch.setenv("PAGER", "https://pager.test/T0KEN")
    monkeypatch.setenv("PAGER_SECRET", SECRET)
    webhook = {"url": "env:PAGER", "secret": "env:PAGER_SECRET", "least_severity": "critical"}
    (receiver,) = receivers_of(Config.model_validate({"alerts": {"webhooks": {"pager": webhook}}}))
    assert (receiver.url, receiver.secret, receiver.private) == ("https://pager.test/T0KEN", SECRET.encode(), False)


async def test_what_an_outage_kept_from_being_noted_is_noted_after_it(tmp_path):
    metrics, noted, is_away = Metrics(), list[dict](), True

    class Noted:
        async def note_all(self, rows: list[dict]) -> None:
            if is_away:
                raise UnavailableError("the database is away")
            noted.extend(rows)

    gateway = SimpleNamespace(telemetry=SimpleNamespace(metrics=metrics), models={})
    surroundings = Surroundings(gateway, Config(home=tmp_path))  # type: ignore[arg-type]
    metrics.rows_lost.inc(3)
    with pytest.raises(UnavailableError):
        await surroundings.look(Noted())  # type: ignore[arg-type]
    is_away = False
    for _ in range(2):
        await surroundings.look(Noted())  # type: ignore[arg-type]
    assert noted == [{"kind": "rows_lost", "value": 3.0}]
