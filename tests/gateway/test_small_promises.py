"""Promises of routes, batches and reservations that are each a few lines."""

from __future__ import annotations

import gc
import time
from decimal import Decimal
from typing import Any

import openai
import pytest
from fakes import faulty
from serving import ScriptedModel
from test_batches import line, results, run, sdk  # noqa: F401  (a fixture)
from test_faults import Gate, gate, house  # noqa: F401  (fixtures)

from wootz.core import Config, LanguageModel
from wootz.core.wire import ChatRequest, Usage
from wootz.gateway.limits.estimate import dearest
from wootz.gateway.routing import open_routes
from wootz.gateway.surfaces import batches
from wootz.telemetry import PriceBook

QUESTION = ChatRequest.model_validate({"model": "r", "messages": [{"role": "user", "content": "hi"}]})


def test_a_503_that_says_when_to_come_back_is_not_asked_before(gate: Gate) -> None:  # noqa: F811
    gate.faulty.fault = faulty.status("503 Service Unavailable", retry_after="30")
    for _ in range(3):
        assert gate.ask("pair", stream=False).text == "Hello"
    assert (len(gate.faulty.requests), len(gate.sound.requests)) == (1, 3)
    alone = gate.ask("alone", stream=False)
    assert (alone.status, len(gate.faulty.requests)) == (503, 1)
    assert alone.error == "model_unavailable", "it is not that we ask too much"


@pytest.mark.parametrize("model", ["alone", "pair"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_forgotten_with_its_answer(gate: Gate, model: str, stream: bool) -> None:  # noqa: F811
    """Nothing of it goes in a circle: else it fills the memory until the collector comes by."""
    gate.faulty.fault = gate.sound.fault
    gc.collect()
    gc.disable()
    try:
        before = _num_requests()
        for _ in range(9):
            assert gate.ask(model, stream=stream).text == "Hello"
        deadline = time.monotonic() + 10
        while _num_requests() > before + 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _num_requests() <= before + 1
    finally:
        gc.enable()


def _num_requests() -> int:
    return sum(isinstance(one, ChatRequest) for one in gc.get_objects())


class Counting(ScriptedModel):
    def __init__(self, name: str, count: int | Exception | None) -> None:
        super().__init__(name)
        self.count = count

    async def count_tokens(self, request: ChatRequest) -> int:
        if self.count is None:
            return await LanguageModel.count_tokens(self, request)
        if isinstance(self.count, Exception):
            raise self.count
        return self.count


def routes(models: dict[str, Any], **sections: Any) -> dict[str, Any]:
    entries = {name: {"base_url": "http://there/v1"} for name in models}
    config = Config.model_validate({"models": entries, "routes": sections})
    return open_routes(config, models, PriceBook({}))


async def test_a_route_counts_tokens_by_the_first_that_can() -> None:
    models = {"cannot": Counting("cannot", None), "can": Counting("can", 17), "dear": Counting("dear", 23)}
    cascade = {"targets": ["can", "dear"], "policy": "cascade", "cascade": {"signal": "logprob", "thresholds": [0.5]}}
    opened = routes(models, r={"targets": ["cannot", "can"]}, none={"targets": ["cannot"]}, c=cascade)
    assert await opened["r"].count_tokens(QUESTION) == 17
    assert await opened["c"].count_tokens(QUESTION) == 23
    with pytest.raises(Exception, match="can't be counted"):
        await opened["none"].count_tokens(QUESTION)


@pytest.mark.parametrize(
    ("route", "usd"),
    [
        ({"targets": ["a", "b"]}, "30"),
        ({"targets": ["a", "b"], "hedge": True}, "40"),
        ({"targets": ["b"], "hedge": True}, "30"),
        ({"targets": ["a", "b"], "policy": "cascade", "cascade": {"signal": "logprob", "thresholds": [0.5]}}, "33"),
        ({"targets": ["a", "b"], "policy": "cascade", "cascade": {"signal": "self-rating", "thresholds": [0.5]}}, "36"),
        ({"targets": ["a", "b"], "policy": "cascade",
          "cascade": {"thresholds": [0.5], "signal": "agreement", "samples": 5}}, "45"),
    ],
)  # fmt: skip
def test_what_several_models_may_cost_together_is_held(route: dict[str, Any], usd: str) -> None:
    prices = {"a": {"input": "1", "output": "2"}, "b": {"input": "10", "output": "20"}}
    models = {name: {"base_url": "http://there/v1", "price": price} for name, price in prices.items()}
    config = Config.model_validate({"models": models, "routes": {"r": route}})
    book = PriceBook.of(config)
    opened = open_routes(config, {name: ScriptedModel(name) for name in models}, book)
    usage = Usage.count(10**6, 10**6)
    assert dearest(opened["r"], usage, book, 1.8e9, "interactive") == Decimal(usd)


def test_a_batch_tells_the_tokens_of_all_its_answers(sdk: openai.OpenAI, model: ScriptedModel) -> None:  # noqa: F811
    batch = run(sdk, [line("a"), line("b"), line("c", model="gone")])
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    assert batch.usage.model_dump() == {
        "input_tokens": 14, "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 6, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 20,
    }  # fmt: skip
    asked = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": "scripted", "input": "hi"}}
    assert run(sdk, [asked], "/v1/responses").usage.total_tokens == 10


def test_lines_that_a_batch_has_no_time_for_say_so(
    sdk: openai.OpenAI,  # noqa: F811
    model: ScriptedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "WINDOW_SECONDS", -1)
    batch = run(sdk, [line("a"), line("b")])
    assert (batch.status, batch.request_counts.failed, batch.output_file_id) == ("expired", 2, None)
    assert {one["error"]["code"] for one in results(sdk, batch.error_file_id).values()} == {"batch_expired"}
    assert model.asked == []
