"""Any endpoint that speaks OpenAI's protocol as a `LanguageModel`: OpenAI, DeepSeek, DashScope's compatible mode, vLLM,
Ollama, another Wootz. How they differ is data, in `dialects.py`.

The request goes on as the user wrote it (fields we do not know included), under the endpoint's own name for the
model. We stream, also where the caller wants a whole answer, and fold: so a slow first token is seen, and it is known
what an answer that is given up had written, and cost. An account may say that it asks for whole answers instead
(``ask_whole``), which takes less of this machine's time.

Endpoints differ in the stream's last words: usage may come with the last content, with every chunk, alone, or never.
Here it always comes once, alone and last, as `LanguageModel` promises. An endpoint that never says its usage is
recorded with zero tokens: we cannot count for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, TypeVar

from jiter import from_json
from pydantic import ValidationError

from wootz.core import LanguageModel, UnsupportedError, UpstreamError
from wootz.core.media import MediaRequest, SpeechChunk
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
    Completion,
    CompletionRequest,
    EmbeddingRequest,
    EmbeddingResponse,
    RerankRequest,
    RerankResponse,
    SamplingFields,
    Usage,
)
from wootz.providers import openai_speech
from wootz.providers.capabilities import capabilities_of, check, check_native
from wootz.providers.counting import COUNTERS
from wootz.providers.dialects import adapt_choice, adapt_request, dialect_of, read_usage
from wootz.providers.endpoint import Endpoint
from wootz.providers.http import Http
from wootz.providers.joining import Joiner
from wootz.providers.prompt_cache import prepare_for
from wootz.providers.regions import check_region
from wootz.providers.upstream_errors import error_from_event

Chunk = TypeVar("Chunk", ChatChunk, Completion)
Whole = TypeVar("Whole", EmbeddingResponse, RerankResponse)


DONE = "[DONE]"


class OpenAICompatibleModel(LanguageModel):
    speech_formats = openai_speech.FORMATS

    def __init__(self, endpoint: Endpoint) -> None:
        self.name = endpoint.name
        self.endpoint = endpoint
        self.capabilities = capabilities_of(endpoint.kind, endpoint.upstream_model)
        self._dialect = dialect_of(endpoint.kind, self.capabilities)
        self._http = Http(endpoint)
        self.provider = self._http.host

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        return self._http.in_time(self._answer("chat/completions", request, ChatChunk))

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        return self._http.in_time(self._answer("completions", request, Completion))

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        return await self._ask("embeddings", request, EmbeddingResponse)

    async def rerank(self, request: RerankRequest) -> RerankResponse:
        return await self._ask("rerank", request, RerankResponse)

    def speak(self, request: MediaRequest) -> AsyncGenerator[SpeechChunk, None]:
        """Whether it speaks at all, the endpoint says."""
        check_native(self.capabilities, request.model)
        check_region(self.endpoint)
        return self._http.in_time(openai_speech.speak(self._http, request))

    async def count_tokens(self, request: ChatRequest) -> int:
        """Asks the endpoint, where its kind can be asked."""
        counting = COUNTERS.get(self.endpoint.kind)
        if counting is None:
            return await super().count_tokens(request)
        body = counting.body(request, self.endpoint.upstream_model)
        try:
            counted = from_json(await self._http.json(counting.path, body))
            return int(counted[counting.field])
        except UpstreamError as error:
            if error.code != "upstream_refused":
                raise
            # Much speaks OpenAI's chat and not this.
            message = f'the tokens of model "{self.name}" can\'t be counted beforehand: {error.message}'
            raise UnsupportedError(message, param="model") from None
        except (ValueError, KeyError, TypeError):
            raise self._malformed() from None

    async def close(self) -> None:
        await self._http.close()

    async def _ask(self, path: str, request: EmbeddingRequest | RerankRequest, answer_type: type[Whole]) -> Whole:
        check_region(self.endpoint)
        body = request.model_dump(exclude_unset=True) | {"model": self.endpoint.upstream_model}
        try:
            answer = answer_type.model_validate_json(await self._http.json(path, body))
        except ValidationError:
            raise self._malformed() from None
        answer.model = self.name
        return answer

    def _answer(self, path: str, request: SamplingFields, chunk_type: type[Chunk]) -> AsyncGenerator[Chunk, None]:
        thinks = (request.model_extra or {}).get("enable_thinking")  # DashScope's: streams only
        how = self._whole if self.endpoint.ask_whole and not request.stream and not thinks else self._stream
        return how(path, request, chunk_type)

    def _body(self, request: SamplingFields) -> dict[str, Any]:
        if isinstance(request, ChatRequest):
            check(self.capabilities, request)
            check_region(self.endpoint)
            request = prepare_for(request, self.endpoint)
        body = adapt_request(request.model_dump(exclude_unset=True), self._dialect)
        body["model"] = self.endpoint.upstream_model
        return body

    async def _stream(self, path: str, request: SamplingFields, chunk_type: type[Chunk]) -> AsyncGenerator[Chunk, None]:
        body = self._body(request)
        body["stream"] = True
        body["stream_options"] = (body.get("stream_options") or {}) | {"include_usage": True}
        joiner = Joiner(self._read, whole=not request.stream)
        last: Chunk | None = None
        usage: Usage | None = None
        finished = done = False
        async with self._http.batches(path, body, last=DONE) as batches:
            try:
                while batch := await batches.next():
                    if done := DONE in batch:
                        del batch[batch.index(DONE) :]
                    for event in joiner.add(batch):
                        last, said = self._chunk(event, chunk_type)
                        usage = said or usage
                        finished = finished or any(choice.finish_reason for choice in last.choices)
                        if last.choices:
                            yield last
                    if done:
                        break
                for event in joiner.rest():
                    last, _ = self._chunk(event, chunk_type)
                    yield last
            except (UpstreamError, ValueError) as error:
                for chunk in self._written(joiner, chunk_type):
                    yield chunk
                raise error if isinstance(error, UpstreamError) else self._malformed() from None
            if last is None or not (done or (finished and usage)):
                raise UpstreamError(f'model "{self.name}": the endpoint cut its answer short', code="upstream_cut_off")
            yield _last(last, usage)

    async def _whole(self, path: str, request: SamplingFields, chunk_type: type[Chunk]) -> AsyncGenerator[Chunk, None]:
        """As a stream of one event, and the usage."""
        body = self._body(request)
        body.pop("stream", None)
        body.pop("stream_options", None)
        try:
            answer = self._read(await self._http.json(path, body))
            for choice in answer.get("choices") or ():
                if "message" in choice:
                    choice["delta"] = delta = choice.pop("message")
                    for index, call in enumerate(delta.get("tool_calls") or ()):
                        call["index"] = index
            if answer.get("object") == "chat.completion":
                answer["object"] = "chat.completion.chunk"
            chunk, usage = self._chunk(answer, chunk_type)
        except (ValueError, TypeError, AttributeError):
            raise self._malformed() from None
        if not chunk.choices or not all(choice.finish_reason for choice in chunk.choices):
            raise UpstreamError(f'model "{self.name}": the endpoint cut its answer short', code="upstream_cut_off")
        yield chunk
        yield _last(chunk, usage)

    def _read(self, data: str | bytes) -> dict[str, Any]:
        event = from_json(data if isinstance(data, bytes) else data.encode(), allow_inf_nan=False)
        if not isinstance(event, dict):
            raise ValueError("an event that is no JSON object")
        if event.get("error"):
            raise error_from_event(event["error"], self.endpoint)
        event.pop("pieces", None)
        return event

    def _chunk(self, event: dict[str, Any], chunk_type: type[Chunk]) -> tuple[Chunk, Usage | None]:
        event["model"] = self.name
        event["choices"] = choices = event.get("choices") or []
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                adapt_choice(choice)
        said: Any = event.pop("usage", None)
        return chunk_type.model_validate(event), read_usage(said) if isinstance(said, dict) else None

    def _written(self, joiner: Joiner, chunk_type: type[Chunk]) -> list[Chunk]:
        """What was before an endpoint failed: it will be paid for."""
        with suppress(ValueError):
            return [self._chunk(event, chunk_type)[0] for event in joiner.rest()]
        return []

    def _malformed(self) -> UpstreamError:
        message = f'model "{self.name}": what the endpoint answered is not OpenAI\'s protocol'
        return UpstreamError(message, code="upstream_malformed")


def _last(chunk: Chunk, usage: Usage | None) -> Chunk:
    """With nothing but the usage."""
    if not chunk.choices:
        chunk.usage = usage or Usage()
        return chunk
    said = {**chunk.more, "id": chunk.id, "created": chunk.created, "model": chunk.model}
    return type(chunk)(**said, choices=[], usage=usage or Usage())
