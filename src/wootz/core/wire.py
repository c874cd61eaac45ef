"""The OpenAI wire types: what a request, an answer and a stream are everywhere in Wootz.

Requests are strict on what we support (a string is not a number, a temperature is between 0 and 2) and
tolerant of fields we do not know: those are kept, so that a remote provider still receives them.
Answers are built here only, so they are plain.

Source: the OpenAI API reference for chat completions, completions and embeddings. Sampling fields that
OpenAI lacks (`top_k`, `min_p`, `repetition_penalty`, `stop_token_ids`, `ignore_eos`, `min_tokens`) use the names
that vLLM and others gave them.
"""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, model_validator

from wootz.core.cache_control import CacheControl
from wootz.core.tool_wire import (
    ModelRequest,
    Request,
    StructuredFields,
    ToolChoice,
    ToolDefinition,
    check_history,
    check_tools,
)

Count = Annotated[int, Field(ge=1, lt=2**31)]
"""At least one, and small enough for every integer type on the way to an engine or a remote endpoint."""

Guarantee = Literal["schema", "json", "prompted"]
"""What is certain of an answer that was to have a structure. ``schema``: it is what was asked for, by construction;
``json``: it is JSON, its schema was not enforced; ``prompted``: the model was asked, and what it wrote was read."""

LEAST_URGENT = 100

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


def new_id(prefix: str) -> str:
    """An unguessable identifier such as ``chatcmpl-3f…`` (32 hexadecimal digits)."""
    global _fresh
    while (digits := next(_fresh, None)) is None:
        _fresh = iter(os.urandom(16 * IDS_AT_ONCE).hex(" ", 16).split())
    return f"{prefix}-{digits}"


IDS_AT_ONCE = 64
"""The system is asked for randomness once for so many: a request needs several, and asking costs more than all else."""
_fresh: Iterator[str] = iter(())
"""Each is taken by one thread only."""


def _forget_fresh_ids() -> None:
    global _fresh
    _fresh = iter(())


os.register_at_fork(after_in_child=_forget_fresh_ids)  # Else a child would give out its parent's.


def now() -> int:
    return int(time.time())


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @property
    def more(self) -> dict[str, Any]:
        """What has no field here."""
        return self.__pydantic_extra__  # pyright: ignore[reportReturnType]

    def add(self, more: dict[str, Any]) -> None:
        """To `more`, what another answer has there; but what has a field here is told by the field alone."""
        if more:
            fields = type(self).model_fields
            self.more.update({name: value for name, value in more.items() if name not in fields})


OMIT_NONE: Any = Field(default=None, exclude_if=partial(operator.is_, None))
"""Left out of the JSON when None, as OpenAI does; fields that clients index (``finish_reason``) stay as null."""


# --- requests -------------------------------------------------------------------------------------------------


class ContentPart(Request):
    """One part of a message's content; only ``text`` has a field of its own, the rest is carried as it came."""

    type: str
    text: str | None = None

    @model_validator(mode="after")
    def _text_part_has_text(self) -> ContentPart:
        if self.type == "text" and self.text is None:
            raise ValueError('a part of type "text" needs the field "text"')
        return self


class FunctionCall(Request):
    name: str
    arguments: str


class ToolCall(Request):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Request):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The message's text, its text parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content if part.type == "text")
        return self.content or ""


class StreamOptions(Request):
    include_usage: bool = False


class SamplingFields(StructuredFields):
    """What chat and plain completion requests have in common. ``None`` means the model's own default."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(
        default=None, ge=-1, lt=2**31, description="Keep the k likeliest tokens; 0 or -1 keeps all."
    )
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=128)
    stop: str | list[str] | None = Field(default=None)
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    max_tokens: Count | None = None
    min_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    safety_identifier: str | None = None
    priority: int | None = Field(
        default=None,
        ge=-100,
        le=LEAST_URGENT,
        description="Lower goes first, as in vLLM. Below 0 is for administrators' keys.",
    )

    cache: CacheControl | None = Field(default=None, exclude=True, description="For our caches; never sent on.")

    @property
    def caller(self) -> str:
        """Whom the work is counted for: the key, where there is one, else what the request says of its user."""
        return self.journey.caller or self.safety_identifier or self.user or ""

    @property
    def urgency(self) -> int:
        """The engine's priority: lower goes first. The lanes where nobody waits give way to everybody."""
        return LEAST_URGENT if self.journey.lane != "interactive" else self.priority or 0

    @model_validator(mode="after")
    def _fields_fit_together(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError('"stream_options" is only allowed when "stream" is true')
        if isinstance(self.stop, list) and len(self.stop) > 16:
            raise ValueError('"stop" may hold at most 16 strings')
        if self.stop is not None and not all(self.stop_strings):
            raise ValueError('"stop" may not hold an empty string')
        for token in self.logit_bias or {}:
            if not token.isdecimal():
                raise ValueError(f'"logit_bias" maps token ids to a bias; {token[:40]!r} is not a token id')
        return self

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class ChatRequest(SamplingFields):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[ToolDefinition] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _logprobs_and_tools_fit_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError('"top_logprobs" needs "logprobs": true')
        if self.tools is not None or self.tool_choice is not None:
            check_tools(self.tools or (), self.tool_choice)
        check_history(self.messages)
        return self


class CompletionRequest(SamplingFields):
    """``POST /v1/completions``: continue a text, a list of texts, token ids, or a list of those."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(default=None, ge=0, lt=2**31, description="0, with echo, only scores the prompt.")
    echo: bool | None = None
    best_of: Count | None = None
    suffix: str | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _prompt_is_not_empty(self) -> CompletionRequest:
        if len(self.prompts) == 0 or any(len(prompt) == 0 for prompt in self.prompts):
            raise ValueError('"prompt" is empty')
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class EmbeddingRequest(ModelRequest):
    """``POST /v1/embeddings``."""

    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    cache: CacheControl | None = Field(default=None, exclude=True, description="For our caches; never sent on.")


class RerankDocument(Request):
    text: str


class RerankRequest(ModelRequest):
    """``POST /v1/rerank``, as Cohere and Jina have it: how relevant is each document to the query?"""

    query: str = Field(min_length=1)
    documents: list[str | RerankDocument] = Field(min_length=1)
    top_n: Count | None = None
    return_documents: bool | None = None
    cache: CacheControl | None = Field(default=None, exclude=True, description="For our caches; never sent on.")

    @property
    def texts(self) -> list[str]:
        return [document if isinstance(document, str) else document.text for document in self.documents]


# --- answers --------------------------------------------------------------------------------------------------


OMIT_ZERO: Any = Field(default=0, exclude_if=operator.not_)


class PromptTokensDetails(Answer):
    cached_tokens: int = 0
    cache_write_tokens: int = OMIT_ZERO
    """Of a provider that takes more for what it keeps (Anthropic)."""


class CompletionTokensDetails(Answer):
    reasoning_tokens: int = 0


class Usage(Answer):
    """``prompt_tokens`` include what was read from a cache or written to it, ``completion_tokens`` what was thought."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = OMIT_NONE
    completion_tokens_details: CompletionTokensDetails | None = OMIT_NONE

    @property
    def cached_tokens(self) -> int:
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else 0

    @property
    def cache_write_tokens(self) -> int:
        return self.prompt_tokens_details.cache_write_tokens if self.prompt_tokens_details else 0

    @property
    def reasoning_tokens(self) -> int:
        return self.completion_tokens_details.reasoning_tokens if self.completion_tokens_details else 0

    @classmethod
    def count(cls, prompt: int, completion: int, *, cached: int = 0, cache_write: int = 0, reasoning: int = 0) -> Usage:
        """Details are only told where there are some."""
        usage = cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
        if cached or cache_write:
            usage.prompt_tokens_details = PromptTokensDetails(cached_tokens=cached, cache_write_tokens=cache_write)
        if reasoning:
            usage.completion_tokens_details = CompletionTokensDetails(reasoning_tokens=reasoning)
        return usage


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob] = []


class ChoiceLogprobs(Answer):
    content: list[TokenLogprob] | None = None


class Delta(Answer):
    role: str | None = OMIT_NONE
    content: str | None = OMIT_NONE
    reasoning_content: str | None = OMIT_NONE
    thinking_blocks: list[dict[str, Any]] | None = OMIT_NONE
    """Whole blocks as Anthropic has them, each with its signature: a client that sends them back in the assistant's
    message lets the model go on thinking between tool calls. Their text was in ``reasoning_content`` already."""
    extra_content: dict[str, Any] | None = OMIT_NONE
    """What a provider wants back with this message, as Google has it: ``{"google": {"thought_signature": …}}``. A tool
    call may have its own."""
    tool_calls: list[dict[str, Any]] | None = OMIT_NONE


class ChunkChoice(Answer):
    index: int = 0
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = OMIT_NONE
    """The stop string or token that ended it, as in vLLM."""
    guarantee: Guarantee | None = OMIT_NONE


class ChatChunk(Answer):
    """One event of a streamed chat answer. The last one before the end carries ``usage`` and no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = Field(default_factory=now)
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = OMIT_NONE
    pieces: SkipValidation[Sequence[str]] = Field(default=(), exclude=True)
    """The texts of a remote endpoint's events that were joined into this one, if they were (`providers/joining.py`).
    Where it has a ``finish_reason`` the last one's event alone had; "" for one without a text."""

    @property
    def num_parts(self) -> int:
        """How many of its model's events it is."""
        return len(self.pieces) - (not self.pieces[-1]) if self.pieces else 1


class AnswerMessage(Answer):
    role: str = "assistant"
    content: str | None = None
    reasoning_content: str | None = OMIT_NONE
    thinking_blocks: list[dict[str, Any]] | None = OMIT_NONE
    extra_content: dict[str, Any] | None = OMIT_NONE
    tool_calls: list[dict[str, Any]] | None = OMIT_NONE
    incomplete_tool_calls: list[dict[str, Any]] | None = OMIT_NONE
    """Calls that the answer broke off in, which are none; only to be looked at."""


class ChatChoice(Answer):
    index: int = 0
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = OMIT_NONE
    guarantee: Guarantee | None = OMIT_NONE


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(default_factory=now)
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class CompletionLogprobs(Answer):
    """The older log-probability layout of ``/v1/completions``: parallel lists, one entry a token."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []


class CompletionChoice(Answer):
    index: int = 0
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    guarantee: Guarantee | None = OMIT_NONE


class Completion(Answer):
    """A whole text completion, and (the wire format is the same) one event of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(default_factory=now)
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = OMIT_NONE


class Embedding(Answer):
    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str


class EmbeddingResponse(Answer):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class RerankResult(Answer):
    index: int
    relevance_score: float
    """Between 0 and 1 from a cross-encoder; a cosine from a model that compares vectors."""
    document: RerankDocument | None = OMIT_NONE


class RerankResponse(Answer):
    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    """Most relevant first."""
    usage: Usage
