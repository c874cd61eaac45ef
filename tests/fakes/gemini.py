"""Gemini's ``streamGenerateContent`` as far as its documentation tells: requests must be of the types of the
``google-genai`` package, which forbid what they don't know.

The responses are those of https://ai.google.dev/gemini-api/docs (text, function calling, thinking), shortened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from fastapi import Request
from google.genai import types
from pydantic import ValidationError

from fakes.far_end import SECRET, FarEnd


class Gemini(FarEnd):
    def check(self, request: Request, body: dict[str, Any]) -> None:
        assert request.headers.get("x-goog-api-key") == SECRET, "no key"
        if request.url.path.endswith(":batchEmbedContents"):
            assert [one["content"]["parts"][0]["text"] for one in body["requests"]], "nothing to embed"
            for one in body["requests"]:
                more = {name: value for name, value in one.items() if name not in ("model", "content")}
                types.EmbedContentConfig.model_validate(more)
            return
        if request.url.path.endswith(":countTokens"):
            body = body["generateContentRequest"]
            assert body["model"].startswith("models/"), "no model"
        else:
            assert request.url.path.endswith(":streamGenerateContent"), request.url.path
            assert request.query_params.get("alt") == "sse", "a JSON array, not events"
        try:
            for content in [*body["contents"], *filter(None, [body.get("systemInstruction")])]:
                types.Content.model_validate(content)
            for tool in body.get("tools", []):
                types.Tool.model_validate(tool)
            types.ToolConfig.model_validate(body.get("toolConfig", {}))
            types.GenerationConfig.model_validate(body.get("generationConfig", {}))
        except ValidationError as error:
            raise AssertionError(str(error)) from None
        if "gemini-3" in request.url.path:
            calls = [next((p for p in content["parts"] if "functionCall" in p), {}) for content in body["contents"]]
            missing = [call for call in calls if call and "thoughtSignature" not in call]
            assert not missing, "Function call is missing a thought_signature"

    def encode(self, events: list[dict[str, Any]]) -> Iterable[str]:
        return (f"data: {json.dumps(event)}\r\n\r\n" for event in events)


USAGE = {"promptTokenCount": 40, "candidatesTokenCount": 7, "totalTokenCount": 47}


def response(
    *parts: dict[str, Any], finish: str | None = None, index: int | None = None, **usage: int
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}}
    if finish:
        candidate["finishReason"] = finish
    if index is not None:
        candidate["index"] = index
    return {
        "candidates": [candidate], "usageMetadata": {**USAGE, **usage},
        "modelVersion": "gemini-3-flash", "responseId": "mAitaLmkHPPlz7IPvtfUqQ4",
    }  # fmt: skip


def call(name: str, args: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """``thoughtSignature`` stands beside the call, ``id`` in it."""
    beside = {key: fields.pop(key) for key in ("thoughtSignature",) if key in fields}
    return {"functionCall": {"name": name, **({"args": args} if args is not None else {}), **fields}, **beside}


HELLO = [response({"text": "Hello"}), response({"text": "!"}, finish="STOP", index=0)]

TOOLS = [
    response({"text": "**Checking**", "thought": True}, thoughtsTokenCount=20),
    response(
        call("get_weather", {"location": "Paris"}, id="fc-1", thoughtSignature="c2lnbmF0dXJl"),
        call("get_time"),
        thoughtsTokenCount=20,
    ),
    response({"text": ""}, finish="STOP", thoughtsTokenCount=20, cachedContentTokenCount=32),
]

THINKING = [
    response({"text": "27 x 453", "thought": True}),
    response({"text": "12,231"}),
    response({"text": "", "thoughtSignature": "c2lnMg=="}, finish="STOP", thoughtsTokenCount=30),
]

BLOCKED = [{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 5}}]


def likelihoods(*tokens: tuple[str, float], others: Iterable[tuple[str, float]] = ()) -> dict[str, Any]:
    """``logprobsResult``: the chosen tokens, and at each step itself and the others."""

    def told(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "tokenId": len(token), "logProbability": logprob}

    return {
        "chosenCandidates": [told(*token) for token in tokens],
        "topCandidates": [{"candidates": [told(*token), *(told(*other) for other in others)]} for token in tokens],
    }
