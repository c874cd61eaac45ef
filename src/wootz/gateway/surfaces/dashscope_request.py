"""DashScope's native requests, and what they are in OpenAI's words.

``{"model", "input", "parameters"}``: most parameters have OpenAI's names and go on as they are, also those that we
don't know. A message's parts are ``{"text": …}``, ``{"image": URL}``, ``{"video": URL or frames}``, ``{"audio": URL}``.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wootz.core import BadRequestError
from wootz.core.media import MediaRequest
from wootz.core.tool_wire import ModelRequest
from wootz.core.wire import ChatRequest, EmbeddingRequest, RerankRequest
from wootz.gateway.errors import bad_request
from wootz.gateway.surfaces.surface import chat_request

Asked = TypeVar("Asked", bound=ModelRequest)


class Native(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class Body(Native):
    model: str = Field(min_length=1, max_length=256)


class Message(Native):
    role: str
    content: str | list[dict[str, Any]] | None = None


class GenerationInput(Native):
    messages: list[Message] | None = None
    prompt: str | None = None


class GenerationParameters(Native):
    """What is about the answer's form; the rest, in ``model_extra``, is about the answer."""

    result_format: Literal["text", "message"] | None = None
    incremental_output: bool = False


class GenerationBody(Body):
    input: GenerationInput
    parameters: GenerationParameters = Field(default_factory=GenerationParameters)

    @property
    def wants_text(self) -> bool:
        """A text is the default, but for what a text can't tell. Raises `BadRequestError` when it has to."""
        extra = self.parameters.model_extra or {}
        needs = [name for name in ("tools", "enable_thinking", "logprobs") if extra.get(name)]
        if extra.get("n") not in (None, 1):
            needs.append("n")
        if self.parameters.result_format == "text" and needs:
            raise BadRequestError(
                f'"parameters.{needs[0]}" needs "result_format": "message"', param="parameters.result_format"
            )
        return self.parameters.result_format != "message" and not needs

    def to_chat(self, *, stream: bool) -> ChatRequest:
        messages = [*(self.input.messages or [])]
        if self.input.prompt is not None:
            messages.append(Message(role="user", content=self.input.prompt))
        if not messages:
            raise BadRequestError('"input" needs "messages" or "prompt"', param="input.messages")
        fields: dict[str, Any] = {**(self.parameters.model_extra or {})}
        stop = fields.get("stop")
        if isinstance(stop, list) and stop and all(isinstance(one, int) for one in stop):
            fields["stop_token_ids"] = fields.pop("stop")
        fields |= {"model": self.model, "stream": stream}
        fields["messages"] = [_message(message, f"input.messages[{at}]") for at, message in enumerate(messages)]
        return chat_request(fields, [f"input.messages[{at}]" for at in range(len(messages))])

    @property
    def is_spoken(self) -> bool:
        """It has a text to speak, and nothing to answer."""
        return "text" in (self.input.model_extra or {}) and self.input.messages is None and self.input.prompt is None

    def to_media(self) -> MediaRequest:
        return MediaRequest(
            model=self.model,
            input=self.input.model_dump(exclude_unset=True),
            parameters=self.parameters.model_dump(exclude_unset=True),
            service="aigc/multimodal-generation/generation",
        )


class EmbeddingInput(Native):
    texts: list[str] = Field(min_length=1)


class EmbeddingBody(Body):
    input: EmbeddingInput
    parameters: dict[str, Any] = {}

    def to_embedding(self) -> EmbeddingRequest:
        fields = {**self.parameters}
        dimension = fields.pop("dimension", None)
        return _valid(
            EmbeddingRequest, fields | {"model": self.model, "input": self.input.texts, "dimensions": dimension}
        )


class RerankInput(Native):
    query: str
    documents: list[str]


class RerankBody(Body):
    input: RerankInput
    parameters: dict[str, Any] = {}

    def to_rerank(self) -> RerankRequest:
        given = {"model": self.model, "query": self.input.query, "documents": self.input.documents}
        return _valid(RerankRequest, self.parameters | given)


def wants_events(request: Request) -> bool:
    return request.headers.get("x-dashscope-sse", "").lower() == "enable"


def _valid(request_type: type[Asked], fields: dict[str, Any]) -> Asked:
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return request_type.model_validate(given)
    except ValidationError as error:
        raise bad_request([{**one, "loc": ("body", *one["loc"])} for one in error.errors()], given) from None


def _message(message: Message, where: str) -> dict[str, Any]:
    told: dict[str, Any] = {**(message.model_extra or {}), "role": message.role}
    if not told.get("tool_calls"):
        told.pop("tool_calls", None)  # The SDK hands an answer's message back with an empty list.
    if isinstance(message.content, list):
        told["content"] = [_part(part, f"{where}.content[{at}]") for at, part in enumerate(message.content)]
    else:
        told["content"] = message.content
    return told


def _part(part: dict[str, Any], where: str) -> dict[str, Any]:
    match part:
        case {"text": str(text), **hints}:
            return {"type": "text", "text": text, **hints}
        case {"image": str(url), **hints}:
            return {"type": "image_url", "image_url": {"url": url}, **hints}
        case {"video": str(url), **hints}:
            return {"type": "video_url", "video_url": {"url": url}, **hints}
        case {"video": list(frames), **hints}:
            return {"type": "video", "video": frames, **hints}
        case {"audio": str(url), **hints}:
            return {"type": "input_audio", "input_audio": {"data": url}, **hints}
    raise BadRequestError(f'"{where}" has neither "text" nor "image", "video" or "audio"', param=where)
