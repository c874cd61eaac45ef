"""The Models page in front of a real engine process, and of a remote endpoint."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from decimal import Decimal

from console_house import Browser, build_house
from tiny_model import write_tiny_model

from wootz.core import Config, ModelConfig, PriceConfig, UpstreamError
from wootz.core.sections import RouteConfig
from wootz.core.sections.routes import TargetConfig
from wootz.engine.client import EngineClient
from wootz.gateway.routing import Deployment, Route, Target
from wootz.providers import Endpoint, EngineModel, OpenAICompatibleModel


async def test_an_engine_shows_what_it_is_and_how_busy(tmp_path):
    socket = tmp_path / "engine.sock"
    house = await build_house(tmp_path, accounts=False)
    client = EngineClient(socket)
    house.models["tiny"] = EngineModel("tiny", client)
    client.start()
    async with Browser(house.app) as visitor:
        assert ">Starting<" in (await visitor.get("/models")).text

        path = write_tiny_model(tmp_path / "tiny")
        options = f'--name tiny --path {path} --socket {socket} --config {{"cache_bytes":8388608,"threads":1}}'
        engine = await asyncio.create_subprocess_exec(sys.executable, "-m", "wootz.engine.server", *options.split())
        try:
            async with asyncio.timeout(60):
                while not client.ready:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (await visitor.chat("hello", model="tiny", max_tokens=5)).status_code == 200
            page = (await visitor.get("/models")).text
        finally:
            engine.kill()
            await engine.wait()
            await client.close()
            await house.close()
    assert page.count(">Ready<") == 3
    for text in (">llama<", ">float32<", ">cpu<", "2,048 tokens", 'data-testid="gauge-running">0<', "blocks</span>"):
        assert text in page, text


async def test_a_remote_model_shows_where_it_is_and_what_it_costs(tmp_path):
    entry = ModelConfig(
        base_url="https://someone:secret@api.example.test/v1",
        upstream_model="their-name",
        price=PriceConfig(input=Decimal("0.25"), output=Decimal(2)),
    )
    house = await build_house(tmp_path, accounts=False, config=Config(models={"far": entry}))
    assert entry.base_url is not None
    model = OpenAICompatibleModel(Endpoint("far", str(entry.base_url), upstream_model="their-name"))
    house.models["far"] = model
    async with Browser(house.app) as visitor:
        page = (await visitor.get("/models")).text
    await model.close()
    await house.close()
    for text in ("api.example.test", "their-name", "$0.25", "$2.00"):
        assert text in page, text
    assert "secret" not in page


async def test_a_route_shows_its_models_and_their_breakers_to_admins(house, admin, user):
    members = [Deployment(house.models[name], time.monotonic) for name in ("scripted", "other")]
    for _ in range(5):
        members[1].failed(UpstreamError("gone"))
    config = RouteConfig(targets=[TargetConfig(model="scripted")], fallbacks=["other"])
    house.models["way"] = Route("way", config, [Target(deployment=members[0])], members[1:])
    page = (await admin.get("/models")).text
    rows = re.findall(r'data-testid="route-deployment">(.*?)</tr>', page, re.DOTALL)
    assert [("Closed" in row, "Open" in row) for row in rows] == [(True, False), (False, True)]
    assert "fallback" in rows[1]
    assert "upstream_error" in rows[1]
    assert "route-deployment" not in (await user.get("/models")).text
