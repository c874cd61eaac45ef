"""OpenAI's Responses API, ``/v1/responses``: create (whole or streamed), go on from one, get, delete.

Not there, and refused by the name of the field: tools that OpenAI hosts, background work, stored prompts and
conversations, truncation by the server.

Source: https://platform.openai.com/docs/api-reference/responses and the types of the ``openai`` SDK.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from wootz.core import NotFoundError, UnsupportedError
from wootz.core.wire import ChatChunk, ChatRequest, Count
from wootz.gateway.entrance import ANSWER_ERRORS, STREAM, router_with_key, set_out
from wootz.gateway.gateway import Gateway
from wootz.gateway.keys import Key
from wootz.gateway.limits.conversations import conversation_of
from wootz.gateway.surfaces.response_items import Item, items_of, to_messages
from wootz.gateway.surfaces.response_store import ResponseStore
from wootz.gateway.surfaces.response_telling import ResponseTelling
from wootz.gateway.surfaces.surface import chat_request, encode, tell

ROUTE = "/v1/responses"

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "truncation": ("disabled",),
    "background": (False,),
    "service_tier": ("auto", "default"),
    "stream_options": ({}, {"include_obfuscation": False}),
}
"""Fields that we lack, and their values that ask for nothing."""

INCLUDABLE = ("message.output_text.logprobs", "reasoning.encrypted_content")
"""Thoughts are in the items as they are, so who sends the items back needs no encrypted ones."""

Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class ResponseRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    model: str = Field(min_length=1, max_length=256)
    input: str | list[Item] = Field(min_length=1)
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = Field(default=None, description="Keep it to go on from, for 30 days. Default: yes.")
    stream: bool | None = None
    max_output_tokens: Count | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    metadata: Annotated[Metadata, Field(max_length=16)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def to_chat(self, before: list[Item]) -> ChatRequest:
        """What is asked of a model, which is told what was said ``before``. Raises `BadRequestError`."""
        self._refuse_what_we_lack()
        placed = [("previous_response_id", item) for item in before]
        placed += [(f"input[{number}]", item) for number, item in enumerate(items_of(self.input))]
        messages, origins = to_messages(placed)
        if self.instructions is not None:
            messages.insert(0, {"role": "system", "content": self.instructions})
            origins.insert(0, "instructions")
        wants_logprobs = "message.output_text.logprobs" in (self.include or ()) or self.top_logprobs is not None
        reasoning = self.reasoning or {}
        fields = {
            "model": self.model,
            "messages": messages,
            "stream": self.stream,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": wants_logprobs or None,
            "top_logprobs": self.top_logprobs,
            "tools": [_tool(tool, number) for number, tool in enumerate(self.tools or ())] or None,
            "tool_choice": _tool_choice(self.tool_choice) if self.tools else None,
            "parallel_tool_calls": self.parallel_tool_calls if self.tools else None,
            "response_format": _response_format(self.text or {}),
            "verbosity": (self.text or {}).get("verbosity"),
            "reasoning_effort": reasoning.get("effort"),
            "user": self.user,
            "safety_identifier": self.safety_identifier,
            "prompt_cache_key": self.prompt_cache_key,
        }
        return chat_request(fields, origins)

    def echo(self) -> dict[str, Any]:
        """The response's fields that repeat the request's."""
        return {
            "model": self.model,
            "instructions": self.instructions,
            "previous_response_id": self.previous_response_id,
            "store": self.store is not False,
            "max_output_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_logprobs": self.top_logprobs or 0,
            "tools": self.tools or [],
            "tool_choice": self.tool_choice or "auto",
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "text": self.text or {"format": {"type": "text"}},
            "reasoning": self.reasoning or {"effort": None, "summary": None},
            "truncation": "disabled",
            "metadata": self.metadata or {},
            "user": self.user,
            "service_tier": "default",
        }

    def _refuse_what_we_lack(self) -> None:
        for name, value in (self.model_extra or {}).items():
            if value is not None and value not in WITHOUT_EFFECT.get(name, ()):
                raise UnsupportedError(f'"{name[:60]}" is not supported', param=name[:60])
        for number, name in enumerate(self.include or ()):
            if name not in INCLUDABLE:
                raise UnsupportedError(f'"{name[:60]}" can\'t be included', param=f"include[{number}]")


class Responses:
    """Creates responses and keeps them."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.store = ResponseStore(gateway.database, gateway.kept)

    async def chat_of(self, key: Key | None, body: ResponseRequest) -> ChatRequest:
        """What is asked of a model."""
        before, first = await self.store.conversation(key, body.previous_response_id)
        chat = body.to_chat(before)
        chat.journey.conversation = first
        return chat

    def answer(
        self, key: Key | None, body: ResponseRequest, chat: ChatRequest, request_id: str
    ) -> tuple[AsyncGenerator[ChatChunk, None], ResponseTelling]:
        """The answer's chunks, and what tells them."""
        telling = ResponseTelling(body.echo(), summarize=bool((body.reasoning or {}).get("summary")))
        chat.journey.conversation = conversation_of(chat) or telling.id
        chunks = self.gateway.chat(key, chat, request_id=request_id, route=ROUTE)
        return (chunks if body.store is False else self._keep(chunks, telling, key, body)), telling

    async def _keep(
        self, chunks: AsyncGenerator[ChatChunk, None], telling: ResponseTelling, key: Key | None, body: ResponseRequest
    ) -> AsyncGenerator[ChatChunk, None]:
        """The chunks as they come; after the last, and before the client is told of the end, the response is kept."""
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
        telling.end()
        await self.store.save(key, telling.whole(), items_of(body.input), body.user)


def router(gateway: Gateway) -> APIRouter:
    router = router_with_key(gateway, "inference", tags=["responses"])
    responses = Responses(gateway)
    store = responses.store

    @router.post(ROUTE, responses=STREAM | ANSWER_ERRORS)
    async def create_response(request: Request, body: ResponseRequest) -> Response:
        """An answer as a list of items, whole or as events."""
        chat = await responses.chat_of(request.state.key, body)
        set_out(request, chat)
        chunks, telling = responses.answer(request.state.key, body, chat, request.state.request_id)
        return tell(chunks, telling, stream=body.stream)

    @router.get(ROUTE + "/{response_id}")
    async def get_response(request: Request, response_id: str, stream: bool = False) -> Response:
        if stream:
            raise UnsupportedError("a kept response is given whole", param="stream")
        response, _ = await store.get(request.state.key, response_id)
        return Response(encode(response), media_type="application/json")

    @router.delete(ROUTE + "/{response_id}")
    async def delete_response(request: Request, response_id: str) -> dict[str, Any]:
        await store.delete(request.state.key, response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @router.get(ROUTE + "/{response_id}/input_items")
    async def list_input_items(
        request: Request,
        response_id: str,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: str = "desc",
        after: str | None = None,
    ) -> dict[str, Any]:
        """What the response's own request has said; newest first, unless ``order`` is "asc"."""
        _, items = await store.get(request.state.key, response_id)
        named = [{"id": f"{response_id}_{number}", **_as_item(item)} for number, item in enumerate(items)]
        if order != "asc":
            named.reverse()
        start = 0
        if after is not None:
            found = next((number for number, item in enumerate(named) if item["id"] == after), None)
            if found is None:
                raise NotFoundError(f'there is no item "{after[:100]}"', param="after")
            start = found + 1
        page = named[start : start + limit]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return {"object": "list", "data": page, **ends, "has_more": start + limit < len(named)}

    return router


def _as_item(item: Item) -> Item:
    """With the type that may be left out of a message, and its text as a part."""
    if "role" not in item or not isinstance(item.get("content"), str):
        return {"type": "message", **item} if "role" in item else item
    kind = "output_text" if item["role"] == "assistant" else "input_text"
    return {"type": "message", **item, "content": [{"type": kind, "text": item["content"]}]}


def _tool(tool: dict[str, Any], number: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        kind = str(tool.get("type"))[:60]
        message = f'a tool of type "{kind}" is not supported; only functions are'
        raise UnsupportedError(message, param=f"tools[{number}].type")
    function = {name: value for name, value in tool.items() if name != "type" and value is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        kind = str(choice.get("type"))[:60]
        raise UnsupportedError(f'a choice of type "{kind}" is not supported', param="tool_choice.type")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _response_format(text: dict[str, Any]) -> dict[str, Any] | None:
    form = text.get("format")
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: form[name] for name in form if name != "type"}}
