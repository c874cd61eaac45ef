"""Tasks through the gateway: the official SDKs are the clients, a DashScope on another socket is the far end."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import dashscope
import httpx
import openai
import pytest
from fakes.dashscope import KEY, FakeDashScope, Says
from serving import GatewayServer, ScriptedModel, Server

from wootz.core import PriceConfig
from wootz.core.media import Pace
from wootz.gateway.tasks import Tasks
from wootz.providers.dashscope import open_dashscope
from wootz.providers.endpoint import Endpoint
from wootz.telemetry.price_book import PriceBook

IMAGES = "/api/v1/services/aigc/text2image/image-synthesis"
WAITING, RUNNING = {"task_status": "PENDING"}, {"task_status": "RUNNING"}
FAILED = {"task_status": "FAILED", "code": "InternalError.Algo", "message": "the brush broke"}
MODELS = {
    "pictures": "wanx2.1-t2i-turbo",
    "films": "wan2.5-t2v-plus",
    "voice": "qwen3-tts-flash",
    "voice-2": "cosyvoice-v3-flash",
    "ears": "paraformer-v2",
}


@dataclass
class House:
    gateway: GatewayServer
    far_end: FakeDashScope
    far_url: str

    def pictures(self, number: int = 2) -> dict[str, Any]:
        results = [{"url": f"{self.far_url}/made/{at}.png"} for at in range(number)]
        return {"task_status": "SUCCEEDED", "results": results, "usage": {"image_count": number}}

    def record(self, request_id: str) -> Any:
        return self.gateway.wait_for_record(request_id)


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    far_end = FakeDashScope()
    with Server(far_end.app) as far:

        def models() -> dict:
            media = {
                name: open_dashscope(
                    Endpoint(name, f"{far.url}/api/v1", KEY, upstream_model=upstream, kind="dashscope")
                )
                for name, upstream in MODELS.items()
            }
            return {"chatty": ScriptedModel("chatty"), **media}

        with GatewayServer(tmp_path_factory.mktemp("tasks"), models) as server:
            server.gateway.tasks.pace = Pace(first=0.02, longest=0.05)
            prices = {"pictures": "0.02", "films": "0.1", "voice": "0.0001", "ears": "0.00008"}
            server.telemetry.prices = PriceBook({name: PriceConfig(unit=Decimal(usd)) for name, usd in prices.items()})
            yield House(server, far_end, far.url)


@pytest.fixture
def house(houses: House, monkeypatch: pytest.MonkeyPatch) -> House:
    houses.far_end.says = Says()
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{houses.gateway.url}/api/v1")
    monkeypatch.setattr(dashscope, "api_key", houses.gateway.key)
    return houses


@pytest.fixture
def http(house: House) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {house.gateway.key}"}
    with httpx.Client(base_url=house.gateway.url, headers=headers, timeout=30) as client:
        yield client


def submit(http: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"model": "pictures", "input": {"prompt": "a cat"}, **fields}
    return http.post(IMAGES, json=body, headers={"x-dashscope-async": "enable"})


def until_it_is(http: httpx.Client, task_id: str, status: str) -> dict[str, Any]:
    for _ in range(500):
        answer = http.get(f"/api/v1/tasks/{task_id}").json()
        if answer["output"]["task_status"] == status:
            return answer
        asyncio.run(asyncio.sleep(0.02))
    raise AssertionError(answer)


def test_sdk_hands_a_task_in_and_asks_until_it_is_made_and_counted(house: House) -> None:
    house.far_end.says.task_states = [WAITING, RUNNING, house.pictures()]
    task = dashscope.ImageSynthesis.async_call("pictures", prompt="a cat", negative_prompt="a dog", n=2, size="512*512")
    assert task.output.task_status == "PENDING"
    path, body, headers = house.far_end.requests[-1]
    assert (path, headers["x-dashscope-async"]) == ("aigc/text2image/image-synthesis", "enable")
    assert body == {
        "model": "wanx2.1-t2i-turbo",
        "input": {"prompt": "a cat", "negative_prompt": "a dog"},
        "parameters": {"n": 2, "size": "512*512"},
    }
    assert task.output.task_id not in house.far_end.tasks  # Ours: theirs are known to all who share the account.
    done = dashscope.ImageSynthesis.wait(task)
    assert [one.url.rpartition("/")[2] for one in done.output.results] == ["0.png", "1.png"]
    assert (done.output.task_id, done.output.task_status, done.usage.image_count) == (
        task.output.task_id,
        "SUCCEEDED",
        2,
    )
    record = house.record(task.request_id)
    assert (record.route, record.status, record.cost) == (IMAGES, 200, Decimal("0.04"))
    assert (record.price, record.priced) == ("models.pictures.price", True)


def test_a_task_is_there_only_for_the_key_that_made_it(house: House, http: httpx.Client) -> None:
    house.far_end.says.task_states = [WAITING]
    task_id = submit(http).json()["output"]["task_id"]
    stranger = {"authorization": f"Bearer {house.gateway.call(house.gateway.keys.create('stranger'))[1]}"}
    missing = http.get("/api/v1/tasks/nobody-knows", headers=stranger)
    for answer in (
        http.get(f"/api/v1/tasks/{task_id}", headers=stranger),
        http.post(f"/api/v1/tasks/{task_id}/cancel", headers=stranger),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "TaskNotFound")
        assert answer.json()["message"].replace(task_id, "nobody-knows") == missing.json()["message"]
    assert http.get("/api/v1/tasks", headers=stranger).json()["total"] == 0
    admin = {"authorization": f"Bearer {house.gateway.admin_key}"}
    assert http.get(f"/api/v1/tasks/{task_id}", headers=admin).status_code == 404
    assert http.post(f"/api/v1/tasks/{task_id}/cancel").status_code == 200
    until_it_is(http, task_id, "CANCELED")


def test_sdk_lists_its_tasks_by_page_model_and_status(house: House, http: httpx.Client) -> None:
    key = house.gateway.call(house.gateway.keys.create("lister"))[1]
    http.headers["authorization"] = f"Bearer {key}"
    house.far_end.says.task_states = [house.pictures()]
    made = [submit(http).json()["output"]["task_id"] for _ in range(3)]
    for task_id in made:
        until_it_is(http, task_id, "SUCCEEDED")
    page = dashscope.ImageSynthesis.list(page_no=2, page_size=2, model_name="pictures", status="SUCCEEDED", api_key=key)
    assert (page.output["total"], page.output["total_page"]) == (3, 2)
    assert [(one["task_id"], one["model_name"], one["status"]) for one in page.output["data"]] == [
        (made[0], "pictures", "SUCCEEDED")
    ]
    assert dashscope.ImageSynthesis.list(status="FAILED", api_key=key).output["total"] == 0
    assert dashscope.ImageSynthesis.list(end_time="20230101000000", api_key=key).output["total"] == 0


def test_sdk_cancels_what_waits_and_not_what_is_at_work(house: House, http: httpx.Client) -> None:
    house.far_end.says.task_states = [WAITING]
    task = dashscope.ImageSynthesis.async_call("pictures", prompt="a cat")
    assert dashscope.ImageSynthesis.cancel(task).status_code == 200
    until_it_is(http, task.output.task_id, "CANCELED")
    assert house.record(task.request_id).cost == 0
    again = dashscope.ImageSynthesis.cancel(task)
    assert (again.status_code, again.code) == (400, "UnsupportedOperation")
    house.far_end.says.task_states = [RUNNING]
    working = submit(http).json()["output"]["task_id"]
    refused = http.post(f"/api/v1/tasks/{working}/cancel")
    assert (refused.status_code, refused.json()["code"]) == (400, "UnsupportedOperation")


def test_a_task_that_fails_says_why_and_costs_nothing(house: House, http: httpx.Client) -> None:
    house.far_end.says.task_states = [RUNNING, FAILED]
    answer = submit(http)
    output = until_it_is(http, answer.json()["output"]["task_id"], "FAILED")["output"]
    assert (output["code"], output["message"]) == ("InternalError.Algo", "the brush broke")
    record = house.record(answer.json()["request_id"])
    assert (record.error_code, record.cost, record.finish_reason) == ("task_failed", 0, "failed")


def test_films_transcripts_and_speech_are_counted_by_second_and_character(house: House, http: httpx.Client) -> None:
    film = {"video_url": "https://store/film.mp4", "usage": {"video_duration": 5, "video_count": 1}}
    house.far_end.says.task_states = [{"task_status": "SUCCEEDED", **film}]
    done = dashscope.VideoSynthesis.call("films", prompt="a cat runs")
    assert done.output.video_url == "https://store/film.mp4"
    text = {"results": [{"file_url": "f", "transcription_url": "https://store/t.json"}], "usage": {"duration": 30}}
    house.far_end.says.task_states = [{"task_status": "SUCCEEDED", **text}]
    heard = dashscope.Transcription.async_call("ears", file_urls=["https://store/f.wav"])
    assert dashscope.Transcription.wait(heard).output.results[0]["transcription_url"] == "https://store/t.json"
    spoken = dashscope.MultiModalConversation.call("voice", text="hello", voice="Cherry")
    assert spoken.output.audio.url.endswith("/made/speech.wav")
    by_http = dashscope.HttpSpeechSynthesizer.call("voice-2", text="hello", voice="longxiaochun")
    assert by_http.audio_url.endswith("/made/speech.wav")
    records = house.gateway.call(house.gateway.ledger.list(limit=20))
    costs = {record.model: record.cost for record in records if record.status == 200}
    assert {record.model: record.priced for record in records}["voice-2"] is False  # Nobody told its price.
    assert (costs["films"], costs["ears"], costs["voice"]) == (Decimal("0.5"), Decimal("0.0024"), Decimal("0.0005"))


def test_openais_sdk_gets_pictures_and_speech(house: House) -> None:
    sdk = openai.OpenAI(base_url=f"{house.gateway.url}/v1", api_key=house.gateway.key, max_retries=0)
    house.far_end.says.task_states = [WAITING, RUNNING, house.pictures()]
    answer = sdk.images.generate(model="pictures", prompt="a cat", n=2, size="1024x1024", extra_body={"seed": 7})
    assert [one.url.rpartition("/")[2] for one in answer.data] == ["0.png", "1.png"]
    assert house.far_end.body["parameters"] == {"n": 2, "size": "1024*1024", "seed": 7}
    house.far_end.says.task_states = [house.pictures(1)]
    answer = sdk.images.generate(model="pictures", prompt="a cat", response_format="b64_json")
    assert base64.b64decode(answer.data[0].b64_json) == b"bytes of 0.png"
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.images.generate(model="pictures", prompt="a cat", quality="hd")
    assert refused.value.param == "quality"
    house.far_end.says.task_states = [FAILED]
    with pytest.raises(openai.InternalServerError, match="the brush broke"):
        sdk.images.generate(model="pictures", prompt="a cat")
    speech = sdk.audio.speech.create(model="voice", input="hello", voice="Cherry", response_format="wav")
    assert (speech.content, speech.response.headers["content-type"]) == (b"bytes of speech.wav", "audio/wav")


def test_each_kind_of_model_does_its_own(house: House, http: httpx.Client) -> None:
    refused = submit(http, model="chatty")
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter")
    assert submit(http, model="gone").json()["code"] == "ModelNotFound"
    ask = {"model": "pictures", "messages": [{"role": "user", "content": "hi"}]}
    answer = http.post("/v1/chat/completions", json=ask)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    without = http.post(IMAGES, json={"model": "pictures", "input": {"prompt": "a cat"}})
    assert (without.status_code, "X-DashScope-Async" in without.json()["message"]) == (400, True)


def test_a_budget_holds_what_tasks_under_way_will_cost(house: House, http: httpx.Client) -> None:
    key = house.gateway.call(house.gateway.keys.create("thrifty", budget_usd="0.05", budget_period="never"))[1]
    http.headers["authorization"] = f"Bearer {key}"
    house.far_end.says.task_states = [WAITING]
    first = submit(http, parameters={"n": 2}).json()["output"]["task_id"]
    second = submit(http, parameters={"n": 2})
    assert (second.status_code, second.json()["code"]) == (429, "Throttling.AllocationQuota")
    http.post(f"/api/v1/tasks/{first}/cancel")
    until_it_is(http, first, "CANCELED")
    house.far_end.says.task_states = [house.pictures()]  # What was cancelled is free again.
    until_it_is(http, submit(http, parameters={"n": 2}).json()["output"]["task_id"], "SUCCEEDED")
    assert submit(http).status_code == 429


def test_what_the_endpoint_refuses_is_told_at_once(house: House, http: httpx.Client) -> None:
    house.far_end.says.failure = (400, "InvalidParameter", "size is wrong")
    answer = submit(http)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert "size is wrong" in answer.json()["message"]
    house.far_end.says.failure = (429, "Throttling.RateQuota", "slower")
    assert submit(http).json()["code"] == "Throttling.RateQuota"


def test_a_server_that_stops_leaves_its_tasks_to_the_next(house: House, http: httpx.Client) -> None:
    house.far_end.says.task_states = [RUNNING]
    answer = submit(http).json()
    task_id = answer["output"]["task_id"]
    gateway = house.gateway.gateway
    house.gateway.call(gateway.tasks.close())
    assert house.gateway.call(house.gateway.ledger.list(search=answer["request_id"])) == []
    (upstream,) = [task for task in house.far_end.tasks.values() if task["states"] == [RUNNING]][-1:]
    upstream["states"] = [house.pictures()]

    gateway.tasks = Tasks(gateway, house.gateway.database, gateway.tasks.pace)  # As a new process would begin.
    house.gateway.call(gateway.tasks.resume())
    until_it_is(http, task_id, "SUCCEEDED")
    assert house.record(answer["request_id"]).cost == Decimal("0.04")

    again = Tasks(gateway, house.gateway.database)  # Nothing is left to take up, or to count again.
    house.gateway.call(again.resume())
    rows = house.gateway.call(house.gateway.ledger.list(search=answer["request_id"]))
    assert len(rows) == 1
