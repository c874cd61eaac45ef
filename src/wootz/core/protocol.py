"""`LanguageModel`: the one interface between everything that makes answers and everything that wants them.

The local engine, every remote provider, a cascade, a cache, a replay of recorded traffic: each is one.
Callers take a `LanguageModel` and never ask which. A model always streams; `collect_chat` folds the
stream into a whole answer for those who want one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from wootz.core.errors import UnsupportedError, UpstreamError
from wootz.core.wire import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ChoiceLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    EmbeddingRequest,
    EmbeddingResponse,
    RerankRequest,
    RerankResponse,
    Usage,
)

Chunk = TypeVar("Chunk")
Whole = TypeVar("Whole")


class LanguageModel(Protocol):
    """What can answer. Subclass it explicitly to inherit the refusals for what you cannot do.

    Contract of `chat` and `complete`:

    - The stream yields content chunks, each choice's last one carrying its ``finish_reason``, then exactly one
      chunk with ``usage`` and no choices. Callers who did not ask for usage drop it; a record always needs it.
    - Closing the iterator early cancels the work behind it at once.
    - Failures are raised as `WootzError`, before the first chunk or in the middle of the stream; a stream that
      ends without the usage chunk has failed.
    """

    name: str
    """The name users call it by in ``request.model``."""

    provider: str = "wootz"
    """Who computes the answer, for the record: us, or the host of a remote endpoint."""

    parent: LanguageModel | None = None
    """The model that this one, an adapter, is on."""

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        raise UnsupportedError(f'model "{self.name}" cannot chat', param="model")

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        raise UnsupportedError(f'model "{self.name}" cannot continue plain text', param="model")

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        raise UnsupportedError(f'model "{self.name}" has no embeddings', param="model")

    async def rerank(self, request: RerankRequest) -> RerankResponse:
        raise UnsupportedError(f'model "{self.name}" cannot rank documents', param="model")

    async def count_tokens(self, request: ChatRequest) -> int:
        """How many tokens the model would read; nothing is computed."""
        raise UnsupportedError(f'the tokens of model "{self.name}" can\'t be counted beforehand', param="model")

    async def ready(self) -> bool:
        """Whether a request sent now would be worked on (the engine is up, its weights are loaded)."""
        return True

    async def close(self) -> None:
        """Give back connections. The model is not used afterwards."""


async def collect_chat(chunks: AsyncIterable[ChatChunk]) -> ChatCompletion:
    """Fold a chat stream into one whole answer; choices come in order of their index. Fields that we do not know are
    the answer's too: of messages what comes in pieces is put together, of all else what was said last holds.

    Raises `UpstreamError` for a stream that broke off: one without a last chunk that tells the usage.
    """
    return await _collect(chunks, fold_chat)


async def fold_chat(chunks: AsyncIterator[ChatChunk]) -> ChatCompletion:
    """The same, as soon as the last chunk is there. What the model still puts away then is the caller's to wait for, by
    reading on."""
    first: ChatChunk | None = None
    usage: Usage | None = None
    more: dict[str, Any] = {}
    choices: dict[int, ChatChoice] = {}
    texts: dict[int, list[str]] = {}
    tool_calls: dict[tuple[int, int], dict[str, Any]] = {}
    async for chunk in chunks:
        first = first or chunk
        more |= chunk.more
        for part in chunk.choices:
            if (choice := choices.get(part.index)) is None:
                choice = choices[part.index] = ChatChoice(index=part.index, message=AnswerMessage(content=""))
                texts[part.index] = []
            message, delta = choice.message, part.delta
            if delta.content:
                texts[part.index].append(delta.content)
            if delta.reasoning_content is not None:
                message.reasoning_content = (message.reasoning_content or "") + delta.reasoning_content
            if delta.thinking_blocks is not None:
                message.thinking_blocks = [*(message.thinking_blocks or []), *delta.thinking_blocks]
            if delta.extra_content:
                message.extra_content = delta.extra_content
            for fragment in delta.tool_calls or []:
                place = (part.index, fragment.get("index", 0))
                if place not in tool_calls:
                    tool_calls[place] = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
                    message.tool_calls = [*(message.tool_calls or []), tool_calls[place]]
                _extend_tool_call(tool_calls[place], fragment)
            if part.logprobs is not None and part.logprobs.content is not None:
                choice.logprobs = choice.logprobs or ChoiceLogprobs(content=[])
                choice.logprobs.content = (choice.logprobs.content or []) + part.logprobs.content
            if part.finish_reason is not None:
                choice.finish_reason = part.finish_reason
            if part.stop_reason is not None:
                choice.stop_reason = part.stop_reason
            if part.guarantee is not None:
                choice.guarantee = part.guarantee
            if part.more:
                choice.add(part.more)
            if delta.more:
                message.add(_joined(message.more, delta.more))
        if (usage := chunk.usage) is not None:
            break
    if first is None or usage is None:
        raise UpstreamError("the answer broke off before its end", hint="try again")
    in_order = [choices[index] for index in sorted(choices)]
    for choice in in_order:
        choice.message.content = "".join(texts[choice.index])
        _set_incomplete_calls_apart(choice.message)
        if choice.message.tool_calls and not choice.message.content:
            choice.message.content = None
    return ChatCompletion(id=first.id, created=first.created, model=first.model, choices=in_order, usage=usage, **more)


async def _collect(chunks: AsyncIterable[Chunk], fold: Callable[[AsyncIterator[Chunk]], Awaitable[Whole]]) -> Whole:
    each = aiter(chunks)
    answer = await fold(each)
    async for _ in each:
        pass
    return answer


def _joined(before: dict[str, Any], pieces: dict[str, Any]) -> dict[str, Any]:
    """As OpenAI streams a ``refusal`` (pieces of a text) and ``annotations`` (items of a list)."""
    joined: dict[str, Any] = {}
    for name, piece in pieces.items():
        match before.get(name), piece:
            case (str() as text, str()):
                joined[name] = text + piece
            case (list() as items, list()):
                joined[name] = [*items, *piece]
            case (known, None):
                joined[name] = known
            case _:
                joined[name] = piece
    return joined


def _extend_tool_call(call: dict[str, Any], fragment: dict[str, Any]) -> None:
    """Tool calls stream in fragments: the first of an index names the function, later ones extend its arguments."""
    function = fragment.get("function") or {}
    call["id"] = fragment.get("id") or call["id"]
    for extra in ("incomplete", "extra_content"):
        if fragment.get(extra):
            call[extra] = fragment[extra]
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""


def _set_incomplete_calls_apart(message: AnswerMessage) -> None:
    """A call that the answer broke off in is never handed out as one."""
    if not (calls := message.tool_calls):
        return
    incomplete = [call for call in calls if call.pop("incomplete", False)]
    if incomplete:
        message.incomplete_tool_calls = incomplete
        message.tool_calls = [call for call in calls if call not in incomplete] or None


async def collect_completion(chunks: AsyncIterable[Completion]) -> Completion:
    """Fold a streamed text completion into one whole answer, as `collect_chat` does."""
    return await _collect(chunks, fold_completion)


async def fold_completion(chunks: AsyncIterator[Completion]) -> Completion:
    """As `fold_chat`."""
    answer: Completion | None = None
    choices: dict[int, CompletionChoice] = {}
    async for chunk in chunks:
        if answer is None:
            answer = Completion(id=chunk.id, created=chunk.created, model=chunk.model, choices=[])
        answer.add(chunk.more)
        for part in chunk.choices:
            choice = choices.setdefault(part.index, CompletionChoice(index=part.index, text=""))
            choice.text += part.text
            choice.finish_reason = part.finish_reason or choice.finish_reason
            choice.guarantee = part.guarantee or choice.guarantee
            choice.add(part.more)
            if part.logprobs is not None:
                whole = choice.logprobs = choice.logprobs or CompletionLogprobs()
                whole.tokens += part.logprobs.tokens
                whole.token_logprobs += part.logprobs.token_logprobs
                whole.top_logprobs += part.logprobs.top_logprobs
                whole.text_offset += part.logprobs.text_offset
        if chunk.usage is not None:
            answer.usage = chunk.usage
            break
    if answer is None or answer.usage is None:
        raise UpstreamError("the answer broke off before its end", hint="try again")
    answer.choices = [choices[index] for index in sorted(choices)]
    return answer
