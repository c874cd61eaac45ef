"""Routes as users meet them: a name in the config, an answer over HTTP, headers that say who gave it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from routing_house import Turns
from serving import GatewayServer, ScriptedModel
from starlette.testclient import TestClient

from wootz.app.http import create_app
from wootz.core import Config, ConfigError, UnavailableError, load_config
from wootz.gateway.routing import open_routes
from wootz.gateway.routing.breaker import FAILURES
from wootz.telemetry import PriceBook

CONFIG: dict[str, Any] = {
    "models": {name: {"base_url": "http://unused/v1"} for name in ("small-2026-01", "middle", "large", "sick")},
    "routes": {
        "small": {"targets": ["small-2026-01"]},
        "shared": {
            "targets": [{"model": "small-2026-01", "weight": 3}, {"model": "middle", "weight": 1}],
            "policy": "weights",
        },
        "safe": {"targets": ["sick"], "fallbacks": ["shared"], "retries": 0},
        "frugal": {
            "targets": ["small-2026-01", "large"],
            "policy": "cascade",
            "cascade": {"signal": "verifier", "verify": {"max": 50}, "thresholds": [0.5]},
        },
        "picky": {"targets": ["middle", "large"], "rules": [{"to": ["large"], "contains": ["prove"]}]},
    },
}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    with GatewayServer(tmp_path_factory.mktemp("routes"), dict) as server:
        config = Config.model_validate({"home": server.config.home, **CONFIG})
        models: dict[str, Any] = {
            "small-2026-01": Turns("small-2026-01", ["it is ", "42"]),
            "middle": Turns("middle", ["middle"]),
            "large": Turns("large", ["large"]),
            "sick": Turns("sick", [UnavailableError("restarting")]),
        }
        server.gateway.models = models | open_routes(config, models, PriceBook())
        yield server


@pytest.fixture
def client(gate: GatewayServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gate.url, headers={"authorization": f"Bearer {gate.key}"}) as client:
        yield client


def ask(client: httpx.Client, model: str, text: str = "hi", **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("stream", [False, True])
def test_an_alias_says_which_dated_model_answered(client: httpx.Client, stream: bool) -> None:
    answer = ask(client, "small", stream=stream)
    assert answer.status_code == 200
    assert (answer.headers["x-wootz-model"], answer.headers["x-wootz-attempts"]) == ("small-2026-01", "1")
    assert '"model":"small-2026-01"' in answer.text


def test_the_official_client_sees_a_model_like_any_other(gate: GatewayServer) -> None:
    with openai.OpenAI(base_url=f"{gate.url}/v1", api_key=gate.key) as sdk:
        assert {"small", "shared", "safe", "frugal"} <= {model.id for model in sdk.models.list()}
        answer = sdk.chat.completions.create(model="safe", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content in ("it is 42", "middle")


def test_a_key_for_the_route_is_enough_and_opens_nothing_else(gate: GatewayServer) -> None:
    _, token = gate.call(gate.keys.create("only-small", models=["small"]))
    with httpx.Client(base_url=gate.url, headers={"authorization": f"Bearer {token}"}) as client:
        assert ask(client, "small").status_code == 200
        assert ask(client, "small-2026-01").status_code == 404
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["small"]


def test_shares_and_a_route_as_another_ones_fallback(gate: GatewayServer, client: httpx.Client) -> None:
    answers = [ask(client, "safe") for _ in range(40)]
    assert all(answer.status_code == 200 for answer in answers)
    assert {answer.headers["x-wootz-model"] for answer in answers} == {"small-2026-01", "middle"}
    sick = gate.gateway.models["sick"]
    assert isinstance(sick, Turns)
    assert len(sick.asked) == FAILURES  # Then its breaker was open, and it was asked no more.
    assert answers[-1].headers["x-wootz-attempts"] == "1"


def test_a_cascade_asks_the_dear_model_only_when_the_check_fails(gate: GatewayServer, client: httpx.Client) -> None:
    answer = ask(client, "frugal", stream=True)
    assert (answer.headers["x-wootz-model"], answer.headers["x-wootz-attempts"]) == ("small-2026-01", "1")
    assert "42" in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    small = gate.gateway.models["small-2026-01"]
    assert isinstance(small, Turns)
    small.turns = [["it is ", "4200"]]
    answer = ask(client, "frugal")
    assert answer.json()["choices"][0]["message"]["content"] == "large"
    assert (answer.headers["x-wootz-model"], answer.headers["x-wootz-attempts"]) == ("large", "2")
    small.turns = [["it is ", "42"]]


def test_rules_are_data(client: httpx.Client) -> None:
    assert ask(client, "picky").headers["x-wootz-model"] == "middle"
    assert ask(client, "picky", "Prove Fermat's last theorem").headers["x-wootz-model"] == "large"


def test_readiness_is_of_what_users_call(gate: GatewayServer, client: httpx.Client) -> None:
    large, middle = gate.gateway.models["large"], gate.gateway.models["middle"]
    assert isinstance(large, ScriptedModel)
    assert isinstance(middle, ScriptedModel)
    assert client.get("/readyz").status_code == 200
    middle.loaded = False  # "shared" and "picky" go on without it.
    assert client.get("/readyz").status_code == 200
    large.loaded = False
    assert client.get("/readyz").json()["waiting_for"] == ["large", "frugal", "picky"]
    large.loaded = middle.loaded = True


def test_the_toml_of_the_docs_and_what_is_wrong_with_one(tmp_path: Path) -> None:
    file = tmp_path / "wootz.toml"
    file.write_text('[models.a]\nbase_url = "http://x/v1"\n[routes.r]\ntargets = ["a", "b"]\n')
    with pytest.raises(ConfigError, match='route "r" names "b", which is no model'):
        load_config(cwd=tmp_path, environ={"WOOTZ_HOME": str(tmp_path)})
    file.write_text('[models.a]\nbase_url = "http://x/v1"\n[routes.a]\ntargets = ["a"]\n')
    with pytest.raises(ConfigError, match='called "a"'):
        load_config(cwd=tmp_path, environ={"WOOTZ_HOME": str(tmp_path)})
    file.write_text('[models.a]\nbase_url = "http://x/v1"\n[routes.r]\ntargets = ["a"]\npolicy = "fastest"\n')
    with pytest.raises(ConfigError, match=r"routes\.r\.policy"):
        load_config(cwd=tmp_path, environ={"WOOTZ_HOME": str(tmp_path)})


def test_the_whole_application_opens_the_routes_of_its_config(tmp_path: Path) -> None:
    tree = {
        "home": tmp_path,
        "providers": {"near": {"base_url": "http://127.0.0.1:9/v1", "region": "cn-beijing"}},
        "models": {"a": {"base_url": "http://127.0.0.1:9/v1"}, "b": {"provider": "near"}},
        "routes": {"way": {"targets": ["a", "b"], "policy": "cheapest", "regions": ["cn-beijing"], "retries": 0}},
    }
    application = create_app(Config.model_validate(tree), {}, accounts=False)
    with TestClient(application, base_url="http://127.0.0.1") as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["a", "b", "way"]
        answer = client.post(
            "/v1/chat/completions", json={"model": "way", "messages": [{"role": "user", "content": "x"}]}
        )
        assert (answer.status_code, answer.headers["x-wootz-attempts"]) == (502, "2")
        assert '"a"' in answer.json()["error"]["message"]  # "b" is in the preferred region, so it was asked first.
