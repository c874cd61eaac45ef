"""The local engine as a `LanguageModel`: OpenAI's request in, the engine's message out, and back.

The engine process renders the chat template, tokenizes and detokenizes, so this side only translates. A sampling
setting that the request leaves open is the configured default, else the model's own (its ``generation_config.json``),
else OpenAI's.
What the engine cannot do yet is refused with the parameter's name; it is never dropped in silence.
"""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

from msgspec import structs

from wootz.core import BadRequestError, LanguageModel, UnavailableError, UnsupportedError
from wootz.core.sections import SamplingConfig
from wootz.core.wire import (
    ChatChunk,
    ChatMessage,
    ChatRequest,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    Delta,
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    FinishReason,
    Guarantee,
    PromptTokensDetails,
    RerankDocument,
    RerankRequest,
    RerankResponse,
    RerankResult,
    SamplingFields,
    Usage,
    new_id,
    now,
)
from wootz.engine.client import EngineClient
from wootz.engine.protocol import Encoded, Finished, Hello, Output, SamplingParams, TokenLogprob
from wootz.providers.logprobs import CompletionLogprobsWriter, chat_logprobs
from wootz.providers.merge import merge
from wootz.providers.structure import call_fragment, structured_output, tool_use

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for ``/v1/completions``; a chat answer may fill the model's context."""

MAX_PROMPTS = 1024
MAX_INPUTS = 2048
"""Of one embedding request; OpenAI's limit."""

REFUSED = ("functions", "function_call", "audio", "web_search_options")
REFUSED_PREFIX = "guided_"
"""Fields that `ChatRequest` does not know but that would change the answer if they were heeded."""


class EngineModel(LanguageModel):
    """``sampling`` overrides the model's own defaults, field by field.

    An adapter is a model too, with its ``parent``'s engine and under its own name.
    """

    def __init__(
        self,
        name: str,
        client: EngineClient,
        sampling: SamplingConfig | None = None,
        *,
        parent: EngineModel | None = None,
    ) -> None:
        self.name = name
        self.client = client
        self.parent = parent
        self._sampling = sampling.model_dump(exclude_none=True) if sampling else {}

    def adapter(self, name: str) -> EngineModel:
        """The adapter that the engine knows by this name."""
        adapted = EngineModel(name, self.client, parent=self)
        adapted._sampling = self._sampling
        return adapted

    @property
    def defaults(self) -> dict[str, Any]:
        """The sampling settings of a request that names none (``temperature``, ``top_p``, …), as far as any are set."""
        return (self.client.hello.defaults if self.client.hello else {}) | self._sampling

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        hello = self._hello()
        request.journey.arithmetic = hello.arithmetic
        _refuse_what_chat_lacks(request, hello)
        top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
        max_tokens = request.max_completion_tokens or request.max_tokens
        params = sampling_params(request, hello, self.defaults, max_tokens=max_tokens, logprobs=top_logprobs)
        messages = [_template_message(message, f"messages[{i}]") for i, message in enumerate(request.messages)]
        tools = tool_use(request)

        id, created, opened = new_id("chatcmpl"), now(), set[int]()
        finished: list[Finished] = []
        stream = self.client.generate(
            messages=messages,
            params=params,
            tools=tools,
            priority=request.urgency,
            user=request.caller,
            adapter=self._adapter,
        )
        async with aclosing(stream) as outputs:
            async for output in outputs:
                if isinstance(output, Finished):
                    finished.append(output)
                    continue
                role = None if output.index in opened else "assistant"
                logprobs = None if top_logprobs is None else chat_logprobs(output.logprobs, top_logprobs)
                parts = output.text or output.reasoning or output.tool_calls
                if not (parts or role or logprobs or output.finish_reason):
                    continue  # A token that is a part of a character: its text comes with a later one.
                opened.add(output.index)
                delta = Delta(
                    role=role,
                    content=output.text,
                    reasoning_content=output.reasoning or None,
                    tool_calls=[call_fragment(call) for call in output.tool_calls] or None,
                )
                choice = ChunkChoice(
                    index=output.index,
                    delta=delta,
                    logprobs=logprobs,
                    finish_reason=cast("FinishReason | None", output.finish_reason),
                    stop_reason=output.stop_reason,
                    guarantee=cast("Guarantee | None", output.guarantee),
                )
                yield ChatChunk(id=id, created=created, model=self.name, choices=[choice])
        yield ChatChunk(id=id, created=created, model=self.name, choices=[], usage=_usage(finished))

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        hello = self._hello()
        request.journey.arithmetic = hello.arithmetic
        _refuse_what_completion_lacks(request, hello)
        n = request.n or 1
        max_tokens = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        params = sampling_params(request, hello, self.defaults, max_tokens=max_tokens, logprobs=request.logprobs)
        by_token = request.logprobs is not None or not all(isinstance(prompt, str) for prompt in request.prompts)
        if request.echo and (by_token or max_tokens == 0):
            params = structs.replace(params, prompt_logprobs=request.logprobs or 0)
        echoed = dict[int, list[TokenLogprob]]()

        priority, user = request.urgency, request.caller
        id, created = new_id("cmpl"), now()
        finished: list[Finished] = []
        writers: dict[int, CompletionLogprobsWriter] = {}
        seen = set[int]()
        streams = [self._generate(prompt, params, priority=priority, user=user) for prompt in request.prompts]
        async with aclosing(merge(streams)) as outputs:
            async for which, output in outputs:
                if isinstance(output, Finished):
                    finished.append(output)
                    continue
                index = which * n + output.index
                text, prompt = output.text, request.prompts[which] if request.echo else ""
                if output.prompt_logprobs is not None:
                    echoed[which] = output.prompt_logprobs
                if not isinstance(prompt, str):
                    prompt = b"".join(token.token for token in echoed.get(which, [])).decode(errors="replace")
                if is_first := index not in seen:
                    text = prompt + text
                seen.add(index)
                reason = cast("FinishReason | None", output.finish_reason)
                choice = CompletionChoice(
                    index=index, text=text, finish_reason=reason, guarantee=cast("Guarantee | None", output.guarantee)
                )
                if request.logprobs is not None:
                    writer = writers.setdefault(index, CompletionLogprobsWriter(request.logprobs))
                    choice.logprobs = CompletionLogprobs()
                    if is_first and request.echo:
                        writer.add_prompt(choice.logprobs, echoed.get(which, []), prompt)
                    writer.add(choice.logprobs, output.logprobs)
                yield Completion(id=id, created=created, model=self.name, choices=[choice])
        yield Completion(id=id, created=created, model=self.name, choices=[], usage=_usage(finished))

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        self._hello(writes=False)
        texts = embedding_inputs(request)
        encoded = await self.client.encode(texts, dimensions=request.dimensions)
        as_text = request.encoding_format == "base64"
        data = [
            Embedding(index=index, embedding=base64.b64encode(vector).decode() if as_text else _floats(vector))
            for index, vector in enumerate(encoded.vectors)
        ]
        return EmbeddingResponse(data=data, model=self.name, usage=_prompt_usage(encoded))

    async def rerank(self, request: RerankRequest) -> RerankResponse:
        self._hello(writes=False)
        if len(request.documents) > MAX_INPUTS:
            raise BadRequestError(f'"documents" may hold at most {MAX_INPUTS}', param="documents")
        texts = request.texts
        encoded = await self.client.encode([*texts], query=request.query, truncate=True)
        ranked = sorted(range(len(texts)), key=lambda index: (-encoded.scores[index], index))
        results = [
            RerankResult(
                index=index,
                relevance_score=encoded.scores[index],
                document=RerankDocument(text=texts[index]) if request.return_documents else None,
            )
            for index in ranked[: request.top_n]
        ]
        return RerankResponse(id=new_id("rerank"), model=self.name, results=results, usage=_prompt_usage(encoded))

    async def count_tokens(self, request: ChatRequest) -> int:
        """Exact: the engine renders its chat template and counts."""
        _refuse_what_chat_lacks(request, self._hello())
        messages = [_template_message(message, f"messages[{i}]") for i, message in enumerate(request.messages)]
        return await self.client.count_tokens(messages, tool_use(request), self._adapter)

    async def ready(self) -> bool:
        return self.client.ready

    async def close(self) -> None:
        if self.parent is None:
            await self.client.close()

    @property
    def _adapter(self) -> str | None:
        return self.name if self.parent else None

    def _hello(self, *, writes: bool = True) -> Hello:
        """What the engine said about itself. Raises `UnsupportedError` if it does the other kind of work."""
        hello = self.client.hello
        if hello is None:
            raise UnavailableError(f'model "{self.name}" is still loading', hint="try again shortly")
        if writes and hello.embedding_size is not None:
            raise UnsupportedError(
                f'model "{self.name}" is an encoder: it embeds texts and cannot write', param="model"
            )
        if not writes and hello.embedding_size is None:
            raise UnsupportedError(f'model "{self.name}" has no embeddings: it writes', param="model")
        return hello

    def _generate(
        self, prompt: str | list[int], params: SamplingParams, *, priority: int, user: str
    ) -> AsyncGenerator[Output | Finished, None]:
        if isinstance(prompt, str):
            return self.client.generate(text=prompt, params=params, priority=priority, user=user, adapter=self._adapter)
        return self.client.generate(
            token_ids=prompt, params=params, priority=priority, user=user, adapter=self._adapter
        )


def embedding_inputs(request: EmbeddingRequest) -> list[str | list[int]]:
    """The inputs one by one. Raises `BadRequestError` for one that is empty, and for too many."""
    given = request.input
    inputs: list[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    if not inputs or not all(inputs):
        raise BadRequestError('"input" is empty, or has an empty text', param="input")
    if len(inputs) > MAX_INPUTS:
        raise BadRequestError(f'"input" may hold at most {MAX_INPUTS} texts', param="input")
    return inputs


def _floats(vector: bytes) -> list[float]:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _prompt_usage(encoded: Encoded) -> Usage:
    return Usage(prompt_tokens=encoded.prompt_tokens, total_tokens=encoded.prompt_tokens)


def sampling_params(
    request: SamplingFields, hello: Hello, defaults: Mapping[str, Any], *, max_tokens: int | None, logprobs: int | None
) -> SamplingParams:
    """The request's settings, where it has none the model's own, where that has none OpenAI's."""

    def setting(name: str, otherwise: Any) -> Any:
        value = getattr(request, name)
        return defaults.get(name, otherwise) if value is None else value

    if max_tokens is not None and (request.min_tokens or 0) > max_tokens:
        raise BadRequestError('"min_tokens" is more than the most tokens allowed', param="min_tokens")
    params = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens or 0,
        temperature=float(setting("temperature", 1.0)),
        top_k=max(setting("top_k", 0), 0),
        top_p=float(setting("top_p", 1.0)),
        min_p=float(setting("min_p", 0.0)),
        repetition_penalty=float(setting("repetition_penalty", 1.0)),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias={
            _token_id(token, hello, f"logit_bias.{token}"): bias for token, bias in (request.logit_bias or {}).items()
        },
        seed=request.seed,
        n=request.n or 1,
        stop=tuple(request.stop_strings),
        stop_token_ids=tuple(_token_id(token, hello, "stop_token_ids") for token in request.stop_token_ids or ()),
        ignore_eos=request.ignore_eos or False,
        logprobs=logprobs,
        structured=structured_output(request),
    )
    return _with_beams(params, request.model_extra or {})


def _with_beams(params: SamplingParams, extra: Mapping[str, Any]) -> SamplingParams:
    """``use_beam_search`` as vLLM has it: ``n`` is how many beams there are, and all of them are the answer."""
    if not extra.get("use_beam_search"):
        return params
    length_penalty, early_stopping = extra.get("length_penalty", 1.0), extra.get("early_stopping", False)
    if isinstance(length_penalty, bool) or not isinstance(length_penalty, int | float):
        raise BadRequestError('"length_penalty" must be a number', param="length_penalty")
    if not isinstance(early_stopping, bool | str):
        raise BadRequestError('"early_stopping" must be true, false or "never"', param="early_stopping")
    return structs.replace(
        params,
        num_beams=params.n,
        temperature=0.0,
        length_penalty=float(length_penalty),
        early_stopping=early_stopping,
    )


def _token_id(token: int | str, hello: Hello, param: str) -> int:
    if len(str(token)) > len(str(hello.vocab_size)) or not 0 <= int(token) < hello.vocab_size:
        raise BadRequestError(
            f"token id {str(token)[:20]} is not in the model's vocabulary (0 to {hello.vocab_size - 1})",
            param=param[:100],
        )
    return int(token)


def _template_message(message: ChatMessage, where: str) -> dict[str, Any]:
    """The message as chat templates know it: its text in one piece, "developer" under its older name."""
    if isinstance(message.content, list):
        for position, part in enumerate(message.content):
            if part.type != "text":
                raise UnsupportedError(
                    f'this model reads text only, not a part of type "{part.type[:40]}"',
                    param=f"{where}.content[{position}]",
                )
    told = message.model_dump(include={"name", "tool_calls", "tool_call_id"}, exclude_none=True)
    for call in told.get("tool_calls", ()):  # templates write them as JSON themselves
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return {"role": "system" if message.role == "developer" else message.role, "content": message.text, **told}


def _refuse_what_chat_lacks(request: ChatRequest, hello: Hello) -> None:
    if not hello.has_chat_template:
        raise UnsupportedError(
            f'model "{request.model}" has no chat template', param="model", hint="use /v1/completions"
        )
    _refuse_unknown(request)


def _refuse_what_completion_lacks(request: CompletionRequest, hello: Hello) -> None:
    if request.suffix:
        raise UnsupportedError("filling in before a suffix is not supported by this model", param="suffix")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise UnsupportedError('"best_of" other than "n" is not supported by this model', param="best_of")
    if len(request.prompts) > MAX_PROMPTS:
        raise BadRequestError(f'"prompt" may hold at most {MAX_PROMPTS} prompts', param="prompt")
    for prompt in request.prompts:
        if not isinstance(prompt, str):
            for token in prompt:
                _token_id(token, hello, "prompt")
    if request.max_tokens == 0 and not request.echo:
        raise BadRequestError('"max_tokens" may be 0 only with "echo": true', param="max_tokens")
    _refuse_unknown(request)


def _refuse_unknown(request: SamplingFields) -> None:
    for name, value in (request.model_extra or {}).items():
        if value and (name in REFUSED or name.startswith(REFUSED_PREFIX)):
            raise UnsupportedError(f'"{name}" is not supported by this model', param=name)


def _usage(finished: Sequence[Finished]) -> Usage:
    prompt_tokens = sum(one.prompt_tokens for one in finished)
    completion_tokens = sum(one.completion_tokens for one in finished)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(one.cached_tokens for one in finished)),
    )
