"""Speech while it is made: the official SDKs are the clients, DashScope and OpenAI on other sockets the far ends."""

from __future__ import annotations

import base64
import io
import json
import re
import wave
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import dashscope
import httpx
import openai
import pytest
from dashscope.audio.qwen_tts import SpeechSynthesizer
from fakes.dashscope import KEY, FakeDashScope, Says
from fakes.far_end import SECRET
from fakes.openai import SPEECH_USAGE, OpenAI
from fastapi.responses import JSONResponse, Response
from serving import GatewayServer, ScriptedModel, Server

from wootz.core import PermissionError_, PriceConfig
from wootz.core.journey import Bounds
from wootz.core.media import MediaRequest
from wootz.gateway.identity import residency
from wootz.providers.dashscope import open_dashscope
from wootz.providers.endpoint import Endpoint
from wootz.providers.openai_compatible import OpenAICompatibleModel
from wootz.telemetry import UnderWay
from wootz.telemetry.explain import explain
from wootz.telemetry.price_book import PriceBook

SPEECH = "/v1/audio/speech"
NATIVE = "/api/v1/services/aigc/multimodal-generation/generation"
SAMPLES = b"\1\0\2\0\3\0"
ASK = {"input": "hello", "voice": "Cherry"}
PRICES = {
    "voice": PriceConfig(unit=Decimal("0.0001")),
    "cosy": PriceConfig(unit=Decimal("0.0002")),
    "by-token": PriceConfig(input=Decimal(1), output=Decimal(10)),
    "mini": PriceConfig(input=Decimal("0.6"), output=Decimal(12)),
    "tts": PriceConfig(unit=Decimal("0.000015")),
}
DASHSCOPE = {"voice": "qwen3-tts-flash", "cosy": "cosyvoice-v3-flash", "by-token": "qwen-tts"}
OPENAI = {"mini": "gpt-4o-mini-tts", "tts": "tts-1"}


@dataclass
class House:
    gateway: GatewayServer
    far_end: FakeDashScope
    openai: OpenAI
    sdk: openai.OpenAI

    def record(self, request_id: str) -> Any:
        return self.gateway.wait_for_record(request_id)

    def speak(self, **fields: Any) -> tuple[bytes, httpx.Headers]:
        with self.sdk.audio.speech.with_streaming_response.create(**{"model": "voice", **ASK, **fields}) as answer:
            return b"".join(answer.iter_bytes()), answer.headers

    def events(self, **fields: Any) -> tuple[list[dict[str, Any]], httpx.Headers]:
        body, headers = self.speak(stream_format="sse", **fields)
        assert headers["content-type"].startswith("text/event-stream")
        return [json.loads(data.removeprefix("data: ")) for data in body.decode().split("\n\n") if data], headers


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    far_end, openais = FakeDashScope(), OpenAI()
    with Server(far_end.app) as far, openais:

        def models() -> dict:
            theirs = {
                name: open_dashscope(Endpoint(name, f"{far.url}/api/v1", KEY, upstream_model=up, kind="dashscope"))
                for name, up in DASHSCOPE.items()
            }
            others = {
                name: OpenAICompatibleModel(Endpoint(name, f"{openais.url}/openai/v1", SECRET, upstream_model=up))
                for name, up in OPENAI.items()
            }
            return {"chatty": ScriptedModel("chatty"), **theirs, **others}

        with GatewayServer(tmp_path_factory.mktemp("speech"), models) as server:
            server.telemetry.prices = PriceBook(PRICES)
            sdk = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=30)
            yield House(server, far_end, openais, sdk)


@pytest.fixture
def house(houses: House, monkeypatch: pytest.MonkeyPatch) -> House:
    houses.far_end.says = Says()
    houses.far_end.left.clear()
    houses.openai.left.clear()
    houses.openai.answer = [b"some ", b"sound"]
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{houses.gateway.url}/api/v1")
    monkeypatch.setattr(dashscope, "api_key", houses.gateway.key)
    return houses


# --- OpenAI's surface ----------------------------------------------------------------------------------------------


def test_openais_sdk_hears_pcm_and_it_is_counted_once(house: House) -> None:
    sound, headers = house.speak(response_format="pcm", extra_body={"language_type": "English"})
    assert (sound, headers["content-type"]) == (SAMPLES, "audio/pcm")
    service, body, sent = house.far_end.requests[-1]
    assert (service, sent["x-dashscope-sse"]) == ("aigc/multimodal-generation/generation", "enable")
    assert body == {
        "model": "qwen3-tts-flash",
        "input": {"text": "hello", "voice": "Cherry", "language_type": "English"},
        "parameters": {},
    }
    record = house.record(headers["x-request-id"])
    assert (record.route, record.status, record.stream, record.cost) == (SPEECH, 200, True, Decimal("0.0005"))
    assert (record.priced, record.completion_tokens, record.time_to_first_token is None) == (True, 0, False)
    told = dict(explain(record, house.gateway.telemetry.prices, {}))
    assert told["asked"] == f"voice at {SPEECH}, streamed, interactive lane"
    assert told["cost"] == "voice at models.voice.price: 5 x 0.0001 = 0.0005"
    assert "note" not in told


def test_sound_arrives_while_the_model_still_speaks_and_who_leaves_stops_it(house: House) -> None:
    house.far_end.says.sound = [b"\1\0", ...]
    named = {"x-request-id": "leaver"}
    create = house.sdk.audio.speech.with_streaming_response.create
    with create(model="voice", response_format="pcm", extra_headers=named, **ASK) as answer:
        sound = answer.iter_bytes()  # Without a name it would be closed at once, and the connection with it.
        assert next(sound) == b"\1\0"
        assert not house.far_end.left.is_set()
    assert house.far_end.left.wait(20)
    record = house.record("leaver")
    assert (record.status, record.client_disconnected) == (499, True)
    assert record.cost == Decimal("0.0005"), "all was ordered, and nobody tells how much of it was spoken"


def test_wav_is_streamed_where_that_is_asked_for_and_else_whole(house: House) -> None:
    sound, headers = house.speak(response_format="wav", stream_format="audio")
    assert headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(sound)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        assert file.readframes(file.getnframes()) == SAMPLES
    assert house.speak(stream_format="audio")[0] == sound, "MP3 is OpenAI's default, and this model makes none"
    assert house.speak(response_format="wav")[0] == b"bytes of speech.wav"


def test_events_are_as_openai_documents_them(house: House) -> None:
    events, headers = house.events(response_format="pcm")
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert [base64.b64decode(event["audio"]) for event in deltas] == [SAMPLES[:4], SAMPLES[4:]]
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "characters": 5}
    assert done == {"type": "speech.audio.done", "usage": usage}
    assert house.record(headers["x-request-id"]).cost == Decimal("0.0005")


def test_a_format_that_does_not_stream_is_sent_whole_or_refused(house: House) -> None:
    sound, headers = house.speak(response_format="mp3", stream_format="audio")
    assert (sound, headers["content-type"]) == (b"bytes of speech.wav", "audio/mpeg")
    with pytest.raises(openai.BadRequestError, match="streams pcm, wav") as refused:
        house.events(response_format="mp3")
    assert refused.value.param == "response_format"
    with pytest.raises(openai.BadRequestError, match="one speed"):
        house.speak(response_format="pcm", speed=2)


def test_cosyvoice_is_asked_in_its_words_and_streams_mp3(house: House) -> None:
    house.far_end.says.sound = [b"ID3 one", b" two"]
    sound, headers = house.speak(model="cosy", response_format="mp3", speed=1.5, instructions="gently")
    assert (sound, headers["content-type"]) == (b"ID3 one two", "audio/mpeg")
    service, body, _ = house.far_end.requests[-1]
    assert service == "audio/tts/SpeechSynthesizer"
    words = {"format": "mp3", "sample_rate": 24000, "rate": 1.5, "instruction": "gently"}
    assert body["input"] == {"text": "hello", "voice": "Cherry"} | words


def test_speech_that_is_billed_by_the_token_is_counted_so(house: House) -> None:
    told = {"input_tokens": 20, "output_tokens": 100, "total_tokens": 120}
    house.far_end.says.speech_usage = told
    events, headers = house.events(model="by-token", response_format="pcm")
    assert events[-1]["usage"] == told
    for request_id in (headers["x-request-id"], house.speak(model="by-token")[1]["x-request-id"]):
        record = house.record(request_id)
        assert (record.prompt_tokens, record.completion_tokens) == (20, 100)
        assert (record.cost, record.priced) == (Decimal("0.00102"), True)


def test_a_model_that_does_not_speak_is_refused(house: House) -> None:
    with pytest.raises(openai.BadRequestError):
        house.events(model="chatty")
    with pytest.raises(openai.NotFoundError):
        house.events(model="gone")


# --- what goes wrong -----------------------------------------------------------------------------------------------

REFUSED = (400, "InvalidParameter", "Voice cherry is not supported")


@pytest.mark.parametrize(("says", "status", "words"), [
    (Says(failure=REFUSED), 400, "Voice cherry is not supported"),
    (Says(failure=(429, "Throttling.RateQuota", "slower")), 429, "rate limit"),
    (Says(failure=(401, "InvalidApiKey", f"no {KEY}")), 502, "credentials"),
    (Says(sound=[], late_failure=("InvalidParameter", "no such voice")), 400, "no such voice"),
    (Says(sound=["A!QAC"]), 502, "upstream_malformed"),
    (Says(sound=[]), 502, "made no sound"),
    (Says(sound=[], stops=False), 502, "cut its speech short"),
    (Says(sound=[ConnectionError()]), 502, "cut its answer short"),
])  # fmt: skip
def test_what_fails_before_the_first_sound_has_its_status(house: House, says: Says, status: int, words: str) -> None:
    house.far_end.says = says
    for fields in ({}, {"stream_format": "sse"}):
        with pytest.raises(openai.APIStatusError, match=words) as failed:
            house.speak(response_format="pcm", **fields)
        assert (failed.value.status_code, KEY in str(failed.value)) == (status, False)
        assert house.record(failed.value.response.headers["x-request-id"]).status == status


@pytest.mark.parametrize(("says", "status"), [
    (Says(late_failure=("InternalError", "the voice broke")), 502),
    (Says(sound=[SAMPLES, ConnectionError()]), 502),
    (Says(sound=[SAMPLES, "not base64!"]), 502),
    (Says(stops=False), 502),
])  # fmt: skip
def test_what_fails_later_never_ends_in_silence(house: House, says: Says, status: int) -> None:
    house.far_end.says = says
    with pytest.raises(httpx.RemoteProtocolError):
        house.speak(response_format="pcm", extra_headers={"x-request-id": "cut"})
    *deltas, last = house.events(response_format="pcm")[0]
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == SAMPLES
    assert set(last) == {"error"}
    *heard, failed = dashscope.MultiModalConversation.call("voice", text="hello", voice="Cherry", stream=True)
    assert (heard[-1].status_code, failed.status_code, failed.code) == (200, status, "InternalError")
    record = house.gateway.call(house.gateway.ledger.list(search="cut"))[0]
    assert (record.status, record.error_code is None, record.cost) == (status, False, Decimal("0.0005"))


def test_a_budget_is_held_while_it_is_spoken_and_settled_once(house: House) -> None:
    """Each may cost 0.0005, which is all there is; what comes is 0.0002."""
    house.far_end.says = Says(sound=[SAMPLES, ...], speech_usage={"characters": 2})
    key = house.gateway.call(house.gateway.keys.create("thrifty", budget_usd="0.0006", budget_period="never"))[1]
    thrifty = house.sdk.with_options(api_key=key)
    create = thrifty.audio.speech.with_streaming_response.create
    asked = {"model": "voice", "response_format": "pcm", **ASK}
    with create(**asked, extra_headers={"x-request-id": "holder"}) as answer:
        next(answer.iter_bytes())
        with pytest.raises(openai.RateLimitError, match="budget"):
            thrifty.audio.speech.create(**asked)
    assert house.record("holder").cost == Decimal("0.0005")
    with pytest.raises(openai.RateLimitError):
        thrifty.audio.speech.create(**asked)

    house.far_end.says = Says(speech_usage={"characters": 2})
    key = house.gateway.call(house.gateway.keys.create("frugal", budget_usd="0.0006", budget_period="never"))[1]
    frugal = house.sdk.with_options(api_key=key)
    assert frugal.audio.speech.create(**asked).content == SAMPLES
    with pytest.raises(openai.RateLimitError):  # 0.0004 are left of it, and this may take 0.0005.
        frugal.audio.speech.create(**asked)
    assert frugal.audio.speech.create(**{**asked, "input": "hell"}).content == SAMPLES


def test_tokens_of_speech_are_held_too(house: House) -> None:
    key = house.gateway.call(house.gateway.keys.create("few tokens", tokens_per_minute=100))[1]
    few = house.sdk.with_options(api_key=key)
    assert few.audio.speech.create(model="voice", response_format="pcm", **ASK).content == SAMPLES
    with pytest.raises(openai.BadRequestError, match="tokens"):
        few.audio.speech.create(model="by-token", response_format="pcm", input="hello, hello", voice="Cherry")


def test_it_stays_in_the_regions_of_the_key(house: House) -> None:
    model = open_dashscope(Endpoint("far", "http://127.0.0.1:9/api/v1", KEY, upstream_model="qwen3-tts-flash"))
    residency.guard(model, "cn")
    request = MediaRequest(model="far", input={"text": "hello", "format": "pcm"}, stream=True)
    request.journey.bounds = Bounds(frozenset({"eu"}))
    with pytest.raises(PermissionError_):
        model.speak(request)  # type: ignore[attr-defined]


def test_a_server_that_is_killed_leaves_a_record_of_it(house: House, tmp_path: Path) -> None:
    """A task goes on under its id when the next server starts; this does not."""
    telemetry, folder = house.gateway.telemetry, tmp_path / "under_way"
    telemetry.under_way = UnderWay(folder)
    try:
        house.far_end.says.sound = [b"\1\0", ...]
        create = house.sdk.audio.speech.with_streaming_response.create
        with create(model="voice", response_format="pcm", extra_headers={"x-request-id": "killed"}, **ASK) as answer:
            next(answer.iter_bytes())
            (file,) = folder.glob("*.jsonl")
            assert "killed" in file.read_text()
        house.record("killed")
    finally:
        telemetry.under_way.close()
        telemetry.under_way = None


# --- DashScope's surface -------------------------------------------------------------------------------------------


def test_dashscopes_sdk_hears_it_as_from_dashscope(house: House) -> None:
    *pieces, last = dashscope.MultiModalConversation.call(
        "voice", text="hello", voice="Cherry", language_type="English", stream=True
    )
    assert b"".join(base64.b64decode(piece.output.audio.data) for piece in pieces) == SAMPLES
    assert {piece.output.finish_reason for piece in pieces} == {"null"}
    assert (last.output.finish_reason, last.output.audio.expires_at, last.usage.characters) == ("stop", 1, 5)
    assert last.output.audio.url.endswith("/made/speech.wav")
    assert house.far_end.body["input"] == {"text": "hello", "voice": "Cherry", "language_type": "English"}
    record = house.record(last.request_id)
    assert (record.route, record.status, record.stream, record.cost) == (NATIVE, 200, True, Decimal("0.0005"))
    again = [*SpeechSynthesizer.call("voice", text="hello", voice="Cherry", stream=True)]
    assert base64.b64decode(again[0].output.audio["data"]) == SAMPLES[:4]


def test_dashscopes_synthesizer_hears_sentences(house: House) -> None:
    call = dashscope.HttpSpeechSynthesizer.call
    *pieces, last = call("cosy", text="hello", voice="longanyang", audio_format="mp3", stream=True)
    assert b"".join(piece.audio_data for piece in pieces) == last.audio_data == SAMPLES
    assert last.audio_url.endswith("/made/speech.wav")
    words = {"text": "hello", "voice": "longanyang", "format": "mp3", "sample_rate": 24000}
    assert house.far_end.body["input"] == words, "as the client wrote it"
    assert house.record(last.request_id).cost == Decimal("0.001")


def test_the_first_event_comes_while_the_model_still_speaks(house: House) -> None:
    house.far_end.says.sound = [SAMPLES, ...]
    stream = dashscope.MultiModalConversation.call("voice", text="hello", voice="Cherry", stream=True)
    first = next(stream)
    assert base64.b64decode(first.output.audio.data) == SAMPLES
    stream.close()
    with suppress(StopIteration):
        next(stream)


def test_a_refusal_is_dashscopes(house: House) -> None:
    house.far_end.says.failure = REFUSED
    (refused,) = dashscope.MultiModalConversation.call("voice", text="hello", voice="cherry", stream=True)
    assert (refused.status_code, refused.code) == (400, "InvalidParameter")
    assert "Voice cherry is not supported" in refused.message
    for model, code in (("gone", "ModelNotFound"), ("chatty", "InvalidParameter")):
        (refused,) = dashscope.MultiModalConversation.call(model, text="hello", voice="Cherry", stream=True)
        assert refused.code == code


def test_the_example_of_the_page_plays(house: House) -> None:
    page = (Path(__file__).parents[2] / "docs" / "dashscope.md").read_text()
    (example,) = re.findall(r"### Speech\n\n```python\n(.*?)```", page, re.DOTALL)
    speaker = io.BytesIO()
    exec(example, {"client": house.sdk, "dashscope": dashscope, "base64": base64, "speaker": speaker})
    assert speaker.getvalue() == 2 * SAMPLES


# --- endpoints that speak OpenAI's protocol ------------------------------------------------------------------------


def test_an_openai_endpoint_that_bills_by_the_token_is_asked_for_events(house: House) -> None:
    sound, headers = house.speak(model="mini", instructions="gently")
    assert (sound, headers["content-type"]) == (b"some sound", "audio/mpeg")
    asked = {"model": "gpt-4o-mini-tts", "stream_format": "sse", "response_format": "mp3", "instructions": "gently"}
    assert house.openai.asked[-1] == ASK | asked
    record = house.record(headers["x-request-id"])
    assert (record.prompt_tokens, record.completion_tokens, record.cost) == (14, 101, Decimal("0.0012204"))
    *deltas, done = house.events(model="mini", response_format="opus")[0]
    assert [base64.b64decode(event["audio"]) for event in deltas] == [b"some ", b"sound"]
    assert done["usage"] == SPEECH_USAGE | {"characters": 5}


def test_another_is_asked_for_sound_and_counted_by_its_characters(house: House) -> None:
    sound, headers = house.speak(model="tts", response_format="flac")
    assert (sound, headers["content-type"]) == (b"some sound", "audio/flac")
    assert house.openai.asked[-1] == ASK | {"model": "tts-1", "response_format": "flac"}
    assert house.record(headers["x-request-id"]).cost == Decimal("0.000075")
    *deltas, done = house.events(model="tts")[0]
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == b"some sound"
    assert done["usage"]["characters"] == 5


@pytest.mark.parametrize("model", ["mini", "tts"])
def test_an_openai_endpoint_is_heard_at_once_left_and_cut(house: House, model: str) -> None:
    house.openai.answer = [b"sound", ...]
    named = {"x-request-id": f"leaver-{model}"}
    with house.sdk.audio.speech.with_streaming_response.create(model=model, extra_headers=named, **ASK) as answer:
        assert next(answer.iter_bytes()) == b"sound"
    assert house.openai.left.wait(20)
    record = house.record(f"leaver-{model}")
    assert (record.status, record.cost > 0) == (499, True)
    house.openai.answer = [b"sound", ConnectionError()]
    with pytest.raises(httpx.RemoteProtocolError):
        house.speak(model=model)
    *_, last = house.events(model=model)[0]
    assert last["error"]["code"] == "upstream_cut_off"
    deltas = [{"type": "speech.audio.delta", "audio": said} for said in ("AQAC", "A!QAC")]
    good, bad = (f"data: {json.dumps(delta)}\n\n" for delta in deltas)
    for said, code in ((good, "upstream_cut_off"), (good + bad, "upstream_malformed")):
        house.openai.answer = Response(said, media_type="text/event-stream")
        first, last = house.events(model=model)[0]
        assert (first["audio"], last["error"]["code"]) == ("AQAC", code)
    house.openai.answer = JSONResponse({"error": {"message": "no such voice", "param": "voice", "code": None}}, 400)
    with pytest.raises(openai.BadRequestError, match="no such voice"):
        house.speak(model=model)


def test_dashscopes_sdk_hears_an_openai_endpoint(house: House) -> None:
    *pieces, last = dashscope.MultiModalConversation.call("mini", text="hello", voice="alloy", stream=True)
    assert b"".join(base64.b64decode(piece.output.audio.data) for piece in pieces) == b"some sound"
    assert (last.output.finish_reason, last.usage.output_tokens) == ("stop", 101)
    assert house.openai.asked[-1]["response_format"] == "pcm"
    whole = dashscope.MultiModalConversation.call("mini", text="hello", voice="alloy")
    assert (whole.status_code, "only in a stream" in whole.message) == (400, True)
    *pieces, last = dashscope.HttpSpeechSynthesizer.call("tts", text="hello", voice="alloy", stream=True, rate=1.5)
    assert last.audio_data == b"some sound"
    assert house.openai.asked[-1] == {
        "model": "tts-1", "input": "hello", "voice": "alloy", "response_format": "wav", "speed": 1.5,
    }  # fmt: skip
