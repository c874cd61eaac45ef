"""Gemini's ``generateContent`` as a `LanguageModel`, and its embeddings.

Its stream is a row of whole responses, each with the parts that are new: text, thoughts (text that says so), calls of
functions, which come whole. There is no last event; a stream in which a candidate did not finish was cut.

What is read from a cache is counted in ``promptTokenCount``, but thoughts beside ``candidatesTokenCount``; OpenAI's
``completion_tokens``, and so ours, include them.

Source: https://ai.google.dev/api/generate-content, and the types of the ``google-genai`` package.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

import msgspec
from pydantic_core import from_json

from wootz.core import LanguageModel, UnsupportedError, UpstreamError
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    FinishReason,
    TokenLogprob,
    TopLogprob,
    Usage,
    new_id,
    now,
)
from wootz.providers.capabilities import capabilities_of, check
from wootz.providers.endpoint import Endpoint
from wootz.providers.gemini_request import generate_request
from wootz.providers.http import Http
from wootz.providers.parts import refuse_rest
from wootz.providers.upstream_errors import error_from_event

FINISH_REASONS: Mapping[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "MODEL_ARMOR": "content_filter",
}

EMBEDDING = {"task_type": "taskType", "title": "title"}
"""What a text is embedded for ("RETRIEVAL_QUERY") and, of a document, its title."""

BROKEN = {"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "MALFORMED_RESPONSE"}
"""The model wrote something that Gemini could not read: no answer, and another try may bring one."""


class GeminiModel(LanguageModel):
    def __init__(self, endpoint: Endpoint) -> None:
        self.name = endpoint.name
        self.endpoint = endpoint
        self.capabilities = capabilities_of("gemini", endpoint.upstream_model)
        self._http = Http(endpoint, "x-goog-api-key", scheme="")
        self._path = f"models/{quote(endpoint.upstream_model, safe='')}"
        self.provider = self._http.host

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        return self._http.in_time(self._chat(request))

    async def count_tokens(self, request: ChatRequest) -> int:
        """Asks the endpoint, which does not charge for it."""
        body = {"model": f"models/{self.endpoint.upstream_model}", **generate_request(request, self.capabilities)}
        counted = await self._http.json(f"{self._path}:countTokens", {"generateContentRequest": body})
        try:
            return int(from_json(counted)["totalTokens"])
        except (ValueError, KeyError, TypeError):
            raise self._malformed() from None

    async def close(self) -> None:
        await self._http.close()

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """Gemini tells no usage of embeddings: it is recorded as zero."""
        texts = [request.input] if isinstance(request.input, str) else request.input
        refuse_rest(request.model_extra or {}, EMBEDDING, model=self.name)
        model = f"models/{self.endpoint.upstream_model}"
        size: dict[str, Any] = {"outputDimensionality": request.dimensions} if request.dimensions else {}
        size |= {EMBEDDING[name]: value for name, value in (request.model_extra or {}).items()}
        asked: list[dict[str, Any]] = []
        for text in texts:
            if not isinstance(text, str):
                raise UnsupportedError(f'model "{self.name}" takes texts, not token ids', param="input")
            asked.append({"model": model, "content": {"parts": [{"text": text}]}, **size})
        raw = await self._http.json(f"{self._path}:batchEmbedContents", {"requests": asked})
        try:
            vectors = [one["values"] for one in msgspec.json.decode(raw)["embeddings"]]
            form = _base64 if request.encoding_format == "base64" else list
            data = [Embedding(index=index, embedding=form(vector)) for index, vector in enumerate(vectors)]
        except (ValueError, KeyError, TypeError, struct.error):
            raise self._malformed() from None
        return EmbeddingResponse(data=data, model=self.name, usage=Usage())

    async def _chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        check(self.capabilities, request)
        body = generate_request(request, self.capabilities)
        answer = _Answer(self.name)
        async with aclosing(self._http.events(f"{self._path}:streamGenerateContent?alt=sse", body)) as events:
            async for data in events:
                try:
                    event = from_json(data, allow_inf_nan=False)
                    if event.get("error"):
                        raise error_from_event(event["error"], self.endpoint)
                    choices = answer.read(event)
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise self._malformed() from None
                if choices:
                    yield answer.chunk(choices)
        if answer.broken:
            message = f'model "{self.name}": the model wrote what its provider can\'t read ({answer.broken})'
            raise UpstreamError(message, code="upstream_malformed")
        if not answer.complete:
            raise UpstreamError(f'model "{self.name}": the endpoint cut its answer short', code="upstream_cut_off")
        yield answer.chunk([], usage=answer.usage)

    def _malformed(self) -> UpstreamError:
        message = f'model "{self.name}": what the endpoint answered is not Gemini\'s protocol'
        return UpstreamError(message, code="upstream_malformed")


class _Answer:
    """A response while it is told."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.id = new_id("chatcmpl")
        self.created = now()
        self.usage = Usage()
        self.broken: str | None = None
        self._num_calls: dict[int, int] = {}
        self._finished: dict[int, bool] = {}

    @property
    def complete(self) -> bool:
        return bool(self._finished) and all(self._finished.values())

    def chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)

    def read(self, event: Mapping[str, Any]) -> list[ChunkChoice]:
        """What an event adds for the user. Raises KeyError and its kind for what is not the protocol."""
        if said := event.get("usageMetadata"):
            self.usage = _usage(said)
        candidates = event.get("candidates") or []
        if not candidates and (event.get("promptFeedback") or {}).get("blockReason"):
            self._finished[0] = True
            return [ChunkChoice(delta=Delta(role="assistant", content=""), finish_reason="content_filter")]
        return [choice for candidate in candidates for choice in self._candidate(candidate)]

    def _candidate(self, candidate: Mapping[str, Any]) -> list[ChunkChoice]:
        index = candidate.get("index", 0)
        deltas = [self._delta(index, part) for part in (candidate.get("content") or {}).get("parts") or ()]
        choices = [ChunkChoice(index=index, delta=delta) for delta in deltas if delta is not None]
        if said := candidate.get("logprobsResult"):
            if not choices:
                choices.append(ChunkChoice(index=index, delta=Delta()))
            choices[0].logprobs = _logprobs(said)
        if reason := candidate.get("finishReason"):
            if reason in BROKEN:
                self.broken = reason
                return choices
            finish = FINISH_REASONS.get(reason, "stop")
            if finish == "stop" and self._num_calls.get(index):
                finish = "tool_calls"
            choices.append(ChunkChoice(index=index, delta=Delta(), finish_reason=finish))
        if choices and index not in self._finished:
            choices[0].delta.role = "assistant"
        self._finished[index] = self._finished.get(index, False) or reason is not None
        return choices

    def _delta(self, index: int, part: Mapping[str, Any]) -> Delta | None:
        signature = part.get("thoughtSignature")
        extra = {"google": {"thought_signature": signature}} if signature else None
        if (call := part.get("functionCall")) is not None:
            place = self._num_calls.get(index, 0)
            self._num_calls[index] = place + 1
            arguments = msgspec.json.encode(call.get("args") or {}).decode()
            function = {"name": call["name"], "arguments": arguments}
            told = {"index": place, "id": call.get("id") or new_id("call"), "type": "function", "function": function}
            return Delta(tool_calls=[told | ({"extra_content": extra} if extra else {})])
        text = part.get("text")
        if text is None and extra is None:
            return None  # Code that Gemini ran and the like, which nobody can have asked for.
        if part.get("thought"):
            return Delta(reasoning_content=text, extra_content=extra)
        return Delta(content=text, extra_content=extra)


def _logprobs(said: Mapping[str, Any]) -> ChoiceLogprobs:
    """Its two lists, the chosen tokens and at each of their steps the likeliest, as OpenAI's one."""
    chosen, top = said.get("chosenCandidates") or [], said.get("topCandidates") or []
    steps = [[_token(one) for one in step.get("candidates") or ()] for step in top] or [[] for _ in chosen]
    pairs = zip(chosen, steps, strict=True)
    return ChoiceLogprobs(content=[TokenLogprob(**dict(_token(one)), top_logprobs=step) for one, step in pairs])


def _token(said: Mapping[str, Any]) -> TopLogprob:
    token = said.get("token", "")
    return TopLogprob(token=token, logprob=said.get("logProbability", 0.0), bytes=list(token.encode()))


def _base64(vector: list[float]) -> str:
    """As OpenAI packs it: float32, the least significant byte first."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _usage(said: Mapping[str, Any]) -> Usage:
    thoughts = said.get("thoughtsTokenCount", 0)
    return Usage.count(
        said.get("promptTokenCount", 0) + said.get("toolUsePromptTokenCount", 0),
        said.get("candidatesTokenCount", 0) + thoughts,
        cached=said.get("cachedContentTokenCount", 0),
        reasoning=thoughts,
    )
