"""No path leads out of a key's regions: routes, fallbacks, retries, hedges, cascades, caches, embedders, adapters."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fresh_database import fresh_sqlite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wootz.core import Config, LanguageModel, NotFoundError, PermissionError_, UpstreamError, WootzError
from wootz.core.sections import MigrationsConfig
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    RerankRequest,
    Usage,
)
from wootz.gateway import Gateway, Key, KeyStore
from wootz.gateway.identity import residency
from wootz.gateway.identity.attributes import Attributes, Standing, may_use
from wootz.gateway.migration import Plan
from wootz.gateway.routing import open_routes
from wootz.store import Database
from wootz.telemetry import Ledger, PriceBook, Telemetry

REGIONS = ["eu", "us", "cn", None]
LEAVES = [f"m{number}" for number in range(4)]


@dataclass
class Leaf(LanguageModel):
    """Answers, fails, or hesitates, and remembers who asked."""

    name: str
    behaviour: str = "answer"
    provider: str = "leaf"
    asked: list[Any] = field(default_factory=list)

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        self.asked.append(request)
        if self.behaviour == "fail":
            raise UpstreamError("down")
        if self.behaviour == "slow":
            await asyncio.sleep(0.002)
        yield ChatChunk(id="1", model=self.name, choices=[ChunkChoice(delta=Delta(content=f"{self.name} says 3"))])
        yield ChatChunk(id="1", model=self.name, choices=[ChunkChoice(delta=Delta(), finish_reason="stop")])
        yield ChatChunk(
            id="1", model=self.name, choices=[], usage=Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
        )

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        self.asked.append(request)
        inputs = request.input if isinstance(request.input, list) else [request.input]
        data = [Embedding(index=number, embedding=[1.0, 0.5]) for number in range(len(inputs))]
        return EmbeddingResponse(model=self.name, data=data, usage=Usage(prompt_tokens=1, total_tokens=1))

    async def rerank(self, request: RerankRequest) -> Any:
        self.asked.append(request)
        raise UpstreamError("down")

    async def count_tokens(self, request: ChatRequest) -> int:
        self.asked.append(request)
        return 1


class House:
    """A gateway in Europe over leaves with these regions and behaviours."""

    numbers = itertools.count()

    def __init__(
        self,
        database: Database,
        regions: dict[str, str | None],
        behaviours: dict[str, str],
        sections: dict[str, Any],
        secret: tuple[str, ...] = (),
    ):
        self.number = next(self.numbers)
        models = {name: {"base_url": f"http://{name}.test/v1", "region": region} for name, region in regions.items()}
        for name in secret:  # These are approved for that class of data.
            models[name]["data_class"] = "secret"
        self.config = Config.model_validate(
            {"models": models, "server": {"region": "eu"}, **sections, "caches": sections.get("caches", {})}
        )
        self.leaves = {name: Leaf(name, behaviours.get(name, "answer")) for name in regions}
        self.regions = regions
        self.models: dict[str, LanguageModel] = dict(self.leaves)
        prices = PriceBook.of(self.config)
        residency.guard_all(self.config, self.models)
        self.models |= open_routes(self.config, self.models, prices)
        self.keys = KeyStore(database)
        self.telemetry = Telemetry(Ledger(database), prices)
        self.gateway = Gateway(self.config, self.models, self.keys, self.telemetry)

    async def ask(self, key: Key | None, model: str, text: str, number: int) -> str:
        request = ChatRequest.model_validate(
            {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        )
        chunks = self.gateway.chat(key, request, request_id=f"req-{self.number}-{number}")
        return "".join([choice.delta.content or "" async for chunk in chunks for choice in chunk.choices])

    def asked_outside(self, allowed: set[str]) -> list[str]:
        return [name for name, leaf in self.leaves.items() if leaf.asked and self.regions[name] not in allowed]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(fresh_sqlite(tmp_path / "wootz.db"))
    yield database
    await database.close()


async def bound(keys: KeyStore, name: str, regions: list[str] | None) -> Key:
    key, _ = await keys.create(name, attributes={"regions": regions} if regions else None)
    return key


@st.composite
def houses(draw: st.DrawFn) -> tuple[dict[str, str | None], dict[str, str], dict[str, Any]]:
    regions = {name: draw(st.sampled_from(REGIONS)) for name in LEAVES}
    behaviours = {name: draw(st.sampled_from(["answer", "answer", "fail", "slow"])) for name in LEAVES}
    some = st.lists(st.sampled_from(LEAVES), min_size=1, max_size=3, unique=True)
    inner, outer = draw(some), draw(some)
    fallbacks = [name for name in draw(some) if name not in inner]
    policy = draw(st.sampled_from(["order", "weights", "least-latency", "cheapest", "ab"]))
    routes: dict[str, Any] = {
        "inner": {
            "targets": inner,
            "fallbacks": fallbacks,
            "policy": policy,
            "hedge": draw(st.booleans()),
            "max_wait_seconds": 0,
        },
        "outer": {"targets": [*outer, "inner"], "retries": 0},
    }
    stages = draw(st.lists(st.sampled_from(LEAVES), min_size=2, max_size=3, unique=True))
    signal = draw(st.sampled_from(["self-rating", "agreement"]))
    cascade = {"signal": signal, "thresholds": [draw(st.sampled_from([0.2, 0.9]))] * (len(stages) - 1)}
    routes["cascade"] = {"targets": stages, "policy": "cascade", "cascade": cascade, "retries": 0}
    caches = {
        "exact": {"enabled": draw(st.booleans())},
        "semantic": {"models": ["outer"], "embedder": draw(st.sampled_from(LEAVES))},
    }
    return regions, behaviours, {"routes": routes, "caches": caches}


@given(house=houses(), allowed=st.sampled_from([["eu"], ["eu", "us"], ["eu", "cn"]]), first_free=st.booleans())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_path_leaves_the_region(database: Database, house: Any, allowed: list[str], first_free: bool) -> None:
    built = House(database, *house)
    key = await bound(built.keys, f"bound-{built.number}", allowed)
    free = await bound(built.keys, f"free-{built.number}", None)
    within = {f"{name} says 3" for name, region in built.regions.items() if region in allowed}
    for number, name in enumerate(["outer", "inner", "cascade", *LEAVES]):
        if first_free:  # Another key's answer may be in a cache by now.
            with suppress(WootzError):
                await built.ask(free, name, "hello", 1000 + number)
            for leaf in built.leaves.values():
                leaf.asked.clear()
        with suppress(WootzError):
            assert await built.ask(key, name, "hello", number) in within
        assert built.asked_outside(set(allowed)) == []
    await built.telemetry.close()


async def test_what_can_not_be_answered_inside_is_refused_in_clear_words(database: Database) -> None:
    routes = {"chat": {"targets": ["m0"], "fallbacks": ["m1"]}}
    house = House(database, {"m0": "us", "m1": None}, {}, {"routes": routes})
    key = await bound(house.keys, "bound", ["eu"])
    for model in ("chat", "m0", "m1"):
        with pytest.raises(PermissionError_, match="stay in eu") as refused:
            await house.ask(key, model, "hello", hash(model))
        assert (refused.value.status, refused.value.code) == (403, "outside_region")
    recorded = await house.telemetry.ledger.list()
    assert {record.error_code for record in recorded} == {"outside_region"}


async def test_a_fallback_inside_is_taken_and_one_outside_is_not(database: Database) -> None:
    routes = {"chat": {"targets": ["m0", "m1"], "fallbacks": ["m2"], "retries": 0}}
    house = House(database, {"m0": "us", "m1": "eu", "m2": "eu"}, {"m1": "fail"}, {"routes": routes})
    assert await house.ask(await bound(house.keys, "bound", ["eu"]), "chat", "hello", 1) == "m2 says 3"
    assert not house.leaves["m0"].asked
    assert await house.ask(await bound(house.keys, "free", None), "chat", "hello", 2) == "m0 says 3"


@pytest.mark.parametrize("here", ["us", None])
async def test_a_gateway_outside_serves_nothing_to_a_bound_key(database: Database, here: str | None) -> None:
    house = House(database, {"m0": "eu"}, {}, {"server": {"region": here}})
    _, token = await house.keys.create("bound", attributes={"regions": ["eu"]})
    with pytest.raises(PermissionError_, match="this gateway stands"):
        await house.gateway.authenticate(f"Bearer {token}")
    with pytest.raises(PermissionError_, match="this gateway stands"):  # As the console asks, which has sessions.
        await house.ask(await house.keys.get("bound"), "m0", "hello", 1)
    _, token = await house.keys.create("free")
    assert await house.gateway.authenticate(f"Bearer {token}")


async def test_a_key_is_bound_by_its_team_and_its_user_too(database: Database) -> None:
    house = House(database, {"m0": "eu"}, {}, {})
    await house.keys.create_account("team", "research")
    await house.keys.create_account("user", "ann")
    await house.keys.describe_account("team", "research", Attributes(regions=["eu", "us"]))
    await house.keys.describe_account("user", "ann", Attributes(regions=["eu", "cn"], data_class="internal"))
    key, _ = await house.keys.create("key", team="research", user="ann")
    assert key.standing.regions == {"eu"}
    key = await house.keys.update("key", attributes={"regions": ["us"]})
    assert key.standing.regions == frozenset()
    with pytest.raises(PermissionError_, match="no region is left"):
        await house.ask(key, "m0", "hello", 1)


async def test_a_model_that_comes_later_is_where_the_one_is_that_it_is_on(database: Database) -> None:
    house = House(database, {"m0": "us"}, {}, {})
    house.gateway.add_model(adapter := Leaf("adapter"), price_of="m0")
    with pytest.raises(PermissionError_):
        await house.ask(await bound(house.keys, "bound", ["eu"]), "adapter", "hello", 1)
    assert not adapter.asked


# --- data classes and teams ------------------------------------------------------------------------------------------

CLASSES = ["public", "internal", "secret"]


def classed(**models: dict[str, Any]) -> Config:
    plain = {name: {"base_url": "http://x.test/v1", **fields} for name, fields in models.items()}
    return Config.model_validate({"models": plain, "identity": {"data_classes": CLASSES}})


@pytest.mark.parametrize(
    ("approved", "handled", "may"),
    [
        ("internal", "public", True), ("internal", "internal", True), ("internal", "secret", False),
        (None, "public", True), (None, "internal", False), ("secret", None, True), ("internal", None, False),
        ("unheard of", "internal", False), ("internal", "unheard of", False),
    ],
)  # fmt: skip
def test_what_is_not_said_counts_against(approved: str | None, handled: str | None, may: bool) -> None:
    config = classed(m={"data_class": approved} if approved else {})
    standing = Standing.of([Attributes(data_class=handled)])
    assert may_use(config, "m", standing, ()) == may


@given(st.lists(st.sampled_from([*CLASSES, None]), min_size=1, max_size=3), st.sampled_from(CLASSES))
def test_a_narrower_attribute_never_widens(classes: list[str | None], more: str) -> None:
    before = Standing.of([Attributes(data_class=one) for one in classes])
    after = Standing.of([Attributes(data_class=one) for one in [*classes, more]])
    assert after.rank(CLASSES) <= before.rank(CLASSES)
    if any(classes):
        assert after.clearance(CLASSES) <= before.clearance(CLASSES)


async def test_models_of_other_teams_are_not_there(database: Database) -> None:
    models = {
        name: {"base_url": "http://x.test/v1", "teams": teams} for name, teams in (("m0", ["research"]), ("m1", []))
    }
    house = House(database, {"m0": None, "m1": None}, {}, {"models": models})
    await house.keys.create_account("team", "research")
    inside, _ = await house.keys.create("inside", team="research")
    outside, _ = await house.keys.create("outside", scopes=["admin"])
    assert house.gateway.visible_models(inside) == ["m0", "m1"]
    assert house.gateway.visible_models(outside) == ["m1"]
    with pytest.raises(NotFoundError):
        await house.ask(outside, "m0", "hello", 1)


async def test_a_route_passes_over_models_that_are_not_approved_for_the_data(database: Database) -> None:
    sections = {
        "identity": {"data_classes": ["public", "secret"]},
        "routes": {"chat": {"targets": ["m0", "m1"], "policy": "order", "retries": 0}},
    }
    house = House(database, {"m0": "eu", "m1": "eu"}, {}, sections, secret=("m1",))
    secret, _ = await house.keys.create("secret", attributes={"data_class": "secret"})
    public, _ = await house.keys.create("public", attributes={"data_class": "public"})
    assert await house.ask(secret, "chat", "hi", 0) == "m1 says 3"
    assert house.leaves["m0"].asked == []
    assert await house.ask(public, "chat", "hi", 1) == "m0 says 3"
    with pytest.raises(NotFoundError):
        await house.ask(secret, "m0", "hi", 2)


async def test_a_migration_stays_in_bounds_and_leaves_none_without_an_answer(database: Database) -> None:
    sections: dict[str, Any] = {"identity": {"data_classes": ["public", "secret"]}}
    house = House(database, {"m0": "eu", "m1": "eu", "m2": "us"}, {}, sections, secret=("m0", "m2"))
    migrations = house.gateway.migrations
    european, _ = await house.keys.create("eu", attributes={"regions": ["eu"], "data_class": "public"})
    secret, _ = await house.keys.create("secret", attributes={"data_class": "secret"})
    for new, answers in (("m1", {"eu": "m1", "secret": "m0"}), ("m2", {"eu": "m0", "secret": "m2"})):
        migration = await migrations.store.start(alias="m0", new=new, plan=Plan.of(MigrationsConfig()), actor="ann")
        for stage in ("canary", "ramp-5", "ramp-25", "ramp-50", "full"):
            migration = await migrations.store.move(migration, stage, actor="ann", why="test")
            assert migration is not None
        await migrations.reload()
        for number, key in enumerate((european, secret)):
            said = await house.ask(key, "m0", f"{new} {number}", number)
            assert said == f"{answers[key.name]} says 3"
        await migrations.store.move(migration, "rolled-back", actor="ann", why="test")
