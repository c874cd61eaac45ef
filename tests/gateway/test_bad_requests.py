"""Whatever is wrong with a request, the answer is OpenAI's error body with the right status, `param` and `code`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import ASK, CHAT, GatewayServer, ScriptedModel

from wootz.core import BadRequestError, UnavailableError
from wootz.gateway import strict_json

USER = {"role": "user", "content": "hi"}


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    return body["error"]


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"model": 5}, "model", "invalid_type"),
        ({"model": ""}, "model", "empty_string"),
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [USER, "hi"]}, "messages[1]", "invalid_type"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "pope", "content": "hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
         "messages[0].content[0].text", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]},
         "messages[0].content[0].type", "missing_required_parameter"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
        ({"temperature": -1}, "temperature", "integer_below_min_value"),
        ({"top_p": 0}, "top_p", "integer_below_min_value"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 1.0}, "n", "invalid_type"),
        ({"n": True}, "n", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_completion_tokens": "10"}, "max_completion_tokens", "invalid_type"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"stop": ["a", 5]}, "stop[1]", "invalid_type"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 1000}}, "logit_bias.5", "integer_above_max_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"seed": 2**70}, "seed", "integer_above_max_value"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(http: httpx.Client, change: dict[str, Any], param: str, code: str) -> None:
    response = http.post(CHAT, json=ASK | change)
    error = error_of(response)
    assert response.status_code == 400
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_a_missing_field_is_named(http: httpx.Client) -> None:
    response = http.post(CHAT, json={"model": "scripted"})
    assert response.status_code == 400
    assert (error_of(response)["param"], error_of(response)["code"]) == ("messages", "missing_required_parameter")


def test_all_types_of_a_field_are_named(http: httpx.Client) -> None:
    message = error_of(http.post(CHAT, json=ASK | {"messages": [{"role": "user", "content": 5}]}))["message"]
    assert (
        message == 'invalid type for "messages[0].content": expected a string or an array, but got an integer instead'
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "extra": Infinity}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "extra": 1e999}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "scripted", "model": "other", "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "scripted", "messages": [{"role": "user", "role": "system", "content": "hi"}]}',
        b'{"model": "scripted", "extra": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b'{"model": "scripted", "extra": ' + b"9" * 10_000 + b"}",
        b"\xef\xbb\xbf{}",
    ],
)
def test_a_bad_body_is_a_bad_request(http: httpx.Client, body: bytes) -> None:
    response = http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert error_of(response)["code"] in ("invalid_json", "invalid_type", "missing_required_parameter")


def test_json_of_another_content_type_is_refused_with_a_hint(http: httpx.Client) -> None:
    response = http.post(CHAT, content=json.dumps(ASK), headers={"content-type": "application/x-www-form-urlencoded"})
    assert response.status_code == 400
    assert "Content-Type: application/json" in error_of(response)["message"]


@pytest.mark.parametrize("body", [b'{"a": [1.5, -2e3, {"b": null}], "c": "\\u00e9\\ud83d\\ude00"}', b" [true] "])
def test_good_json_reads_as_python_reads_it(body: bytes) -> None:
    assert strict_json.loads(body) == json.loads(body)


def test_an_unknown_model_is_not_found(http: httpx.Client) -> None:
    for response in (http.post(CHAT, json=ASK | {"model": "gone"}), http.get("/v1/models/gone")):
        assert response.status_code == 404
        assert error_of(response)["code"] == "model_not_found"
        assert error_of(response)["param"] == "model"


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    missing = http.post("/v1/nothing/here")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "unknown_url")
    wrong = http.get(CHAT)
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_a_body_too_large_is_refused_before_it_is_read(http: httpx.Client, model: ScriptedModel) -> None:
    big = json.dumps(ASK | {"messages": [{"role": "user", "content": "x" * 70_000}]}).encode()

    def chunked() -> Iterator[bytes]:
        for start in range(0, len(big), 10_000):
            yield big[start : start + 10_000]

    for content in (big, chunked()):
        response = http.post(CHAT, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"
    assert model.asked == []
    assert http.post(CHAT, json=ASK).status_code == 200


def test_a_model_without_embeddings_says_so(http: httpx.Client) -> None:
    response = http.post("/v1/embeddings", json={"model": "scripted", "input": "hi"})
    assert response.status_code == 400
    assert (error_of(response)["param"], error_of(response)["code"]) == ("model", "unsupported_parameter")


def test_what_the_model_refuses_keeps_its_status(http: httpx.Client, model: ScriptedModel) -> None:
    model.script = [BadRequestError("the prompt is too long", code="context_length_exceeded", param="messages")]
    for stream in (False, True):
        response = http.post(CHAT, json=ASK | {"stream": stream})
        assert response.status_code == 400
        assert error_of(response)["code"] == "context_length_exceeded"
    model.script = [UnavailableError("restarting")]
    assert http.post(CHAT, json=ASK).status_code == 503


def test_an_unforeseen_failure_tells_nothing_but_the_request_id(
    http: httpx.Client, server: GatewayServer, model: ScriptedModel
) -> None:
    model.script = [KeyError("/secret/path")]
    response = http.post(CHAT, json=ASK)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in error_of(response)["message"]
    record = server.call(server.ledger.get(response.headers["x-request-id"]))
    assert (record.status, record.error_code) == (500, "internal_error")


def test_a_failure_outside_of_a_model_is_also_a_bare_500(
    http: httpx.Client, server: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.gateway, "visible_models", lambda key: 1 / 0)
    response = http.get("/v1/models")
    assert response.status_code == 500
    assert response.headers["x-request-id"] in error_of(response)["message"]
