"""What the engine process and its callers say to each other.

One Unix stream socket per engine process; each message is a 4-byte big-endian length and that many bytes of
MessagePack holding one of the tagged structs below. The engine side renders chat templates, tokenizes,
samples and detokenizes, so a caller needs neither tokenizer nor PyTorch. This module imports neither.

A request's life on the wire: `Submit` -> any number of `Output` (one per step that produced text for a choice)
-> one `Finished`; or `Encode` -> `Encoded`, from an encoder; or `Failed` at any point. An order (`Sleep`, `Wake`,
`UpdateWeights`) -> `Done` or `Failed`. `Cancel` may come at any time;
nothing follows it for that request.
When the connection ends, the engine cancels every request that came over it, and the caller fails all it
had in flight with a retryable error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec


class Watermark(msgspec.Struct, frozen=True, kw_only=True):
    """A green-list watermark (arXiv 2301.10226); see `wootz.engine.watermark`. Names are transformers'."""

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863


class StructuredOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer has to be: exactly one of these is given. ``choice`` is one of some texts; ``grammar`` is Lark,
    in llguidance's dialect, or GBNF; ``regex`` is Rust's and matches the whole answer."""

    json_schema: dict[str, Any] | bool | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    param: str = "structured"
    """What the caller knows it by, for errors."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose the next token, and when to stop. Names and meanings are vLLM's.

    ``temperature=0`` is greedy. ``max_tokens=None`` means until the model's context is full. ``seed`` makes a
    request's tokens depend on nothing but its own prompt and parameters, whatever else is in the batch.
    ``logprobs=None`` returns none; ``logprobs=k`` the chosen token's and those of the k likeliest (0 is allowed).
    Penalties: ``repetition_penalty`` (over prompt and output; CTRL, arXiv 1909.05858) divides positive logits,
    ``presence_penalty`` and ``frequency_penalty`` (over output; OpenAI) are subtracted.

    ``prompt_logprobs=k`` returns as much of each prompt token; then ``max_tokens`` may be 0, for a prompt that is only
    to be scored. ``num_beams`` above 1 is beam search, with ``length_penalty`` and ``early_stopping`` as transformers
    defines them; it takes no chances, so ``temperature`` is 0.
    """

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    """True ends with ``num_beams`` finished beams; False when no running one looks better; "never" when none can be."""
    watermark: Watermark | None = None
    structured: StructuredOutput | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    """A chosen token: its id, its bytes, its log-probability before penalties, and the likeliest alternatives."""

    token_id: int
    token: bytes
    logprob: float
    top: list[tuple[int, bytes, float]] = []
    """``(token id, bytes, logprob)``, likeliest first."""


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """The tools a chat may call, as OpenAI's wire has them (functions only). ``choice`` is "auto" (the model decides),
    "required" (at least one call), or "none"; ``name`` makes it that one. ``parallel`` allows several calls."""

    tools: list[dict[str, Any]]
    choice: str = "auto"
    name: str | None = None
    parallel: bool = True


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A part of call number ``index``: first its id and name, then pieces of its arguments' JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    incomplete: bool = False
    """The answer ended inside this call, which is none."""


# --- caller to engine -----------------------------------------------------------------------------------------


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Generate. Exactly one of ``messages`` (rendered by the chat template), ``text`` and ``token_ids`` is given."""

    request_id: str
    params: SamplingParams
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    priority: int = 0
    """The lowest goes first, as in vLLM."""
    user: str = ""
    """Users get equal shares of the engine while several of them wait."""
    tools: ToolUse | None = None
    """With ``messages`` only."""
    adapter: str | None = None
    """By the name it was loaded under; None for the model alone."""


class LoadAdapter(msgspec.Struct, frozen=True, tag="load_adapter"):
    """Let requests name the adapter in the folder ``path``. Answered by `Done` or `Failed`."""

    request_id: str
    name: str
    path: str


class UnloadAdapter(msgspec.Struct, frozen=True, tag="unload_adapter"):
    """Requests cannot name it any more. Answered by `Done` or `Failed`."""

    request_id: str
    name: str


class Encode(msgspec.Struct, frozen=True, tag="encode"):
    """Embed each text (as text, or as token ids); or, with a ``query``, say how relevant each is to it."""

    request_id: str
    texts: list[str | list[int]]
    query: str | None = None
    dimensions: int | None = None
    """Keep this many numbers of each vector, and make it one of length 1 again (Matryoshka, arXiv 2205.13147)."""
    truncate: bool = False
    """Cut what is too long, instead of refusing it."""


class CountTokens(msgspec.Struct, frozen=True, tag="count_tokens"):
    """How long is the prompt that the chat template makes of this? Answered by `Counted` or `Failed`."""

    request_id: str
    messages: list[dict[str, Any]]
    tools: ToolUse | None = None
    adapter: str | None = None


class Prefill(msgspec.Struct, frozen=True, tag="prefill"):
    """From another engine process: compute this prompt, and send its cache blocks but for the first ``num_blocks``.
    Answered by any number of `CacheBlocks`, then `Finished`. See `wootz.engine.handover`."""

    request_id: str
    token_ids: list[int]
    num_blocks: int
    fingerprint: str


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    request_id: str


class Sleep(msgspec.Struct, frozen=True, tag="sleep"):
    """Give memory back until `Wake`: 1, the weights go to host memory; 2, they go. Requests wait meanwhile."""

    request_id: str
    level: int = 1


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    request_id: str


class UpdateWeights(msgspec.Struct, frozen=True, tag="update_weights"):
    """Go on with the weights of the checkpoint at ``path``, of the same architecture. Requests in flight keep their
    tokens so far."""

    request_id: str
    path: str


class GetStats(msgspec.Struct, frozen=True, tag="get_stats"):
    """Ask for one `Stats`."""


# --- engine to caller -----------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message on a connection, sent once the weights are loaded."""

    family: str
    num_parameters: int
    vocab_size: int
    max_model_len: int
    dtype: str
    device: str
    has_chat_template: bool
    defaults: dict[str, Any] = {}
    """Sampling defaults from the model's ``generation_config.json`` (temperature, top_p, …), where it has them."""
    embedding_size: int | None = None
    """Of an encoder, which answers `Encode` and nothing else; None of a model that writes."""
    tool_format: str | None = None
    """How the model writes tool calls (`wootz.tokenization.tool_formats`)."""
    arithmetic: str | None = None
    """What its log-probabilities are worth (`wootz.engine.arithmetic`)."""


class Output(msgspec.Struct, frozen=True, tag="output"):
    """New text (possibly empty) and tokens of one choice; ``finish_reason`` is set on the choice's last one."""

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    """``stop`` (end token, end of the grammar, stop string or stop id), ``length``, or ``tool_calls``."""
    stop_reason: str | int | None = None
    """The stop string or stop token id that matched; None for the end token."""
    prompt_logprobs: list[TokenLogprob] | None = None
    """Of every prompt token, with the first output of choice 0. The first token is given: 0, without alternatives."""
    score: float | None = None
    """Of a choice of beam search: the sum of its log-probabilities, by its length to the power of the penalty."""
    reasoning: str = ""
    """New text of the model's thoughts, which is no part of ``text``."""
    tool_calls: list[ToolCallDelta] = []
    guarantee: str | None = None
    """With the ``finish_reason``, what is certain of a whole answer: ``schema`` (it is what the schema, expression or
    grammar says), ``json`` (it is JSON). None: nothing was asked for, or the answer is not whole."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """All choices are done. ``cached_tokens`` of the prompt were not computed again."""

    request_id: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Encoded(msgspec.Struct, frozen=True, tag="encoded"):
    """A vector for each text, as little-endian float32; or of a query's texts each one's relevance."""

    request_id: str
    prompt_tokens: int
    vectors: list[bytes] = []
    scores: list[float] = []


class Counted(msgspec.Struct, frozen=True, tag="counted"):
    request_id: str
    num_tokens: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """What was asked for has been done: an `Order` carried out."""

    request_id: str


class CacheBlocks(msgspec.Struct, frozen=True, tag="cache_blocks"):
    """Neighbouring full blocks of a prompt, from block ``first`` on: of each, what every layer keeps, as it lies in
    memory."""

    request_id: str
    first: int
    blocks: list[list[bytes]]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The request could not be run; fields are those of `wootz.core.WootzError`."""

    request_id: str
    status: int
    message: str
    code: str | None = None
    param: str | None = None


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """Counters since start, and gauges. The engine counts; telemetry exports."""

    running: int
    waiting: int
    blocks_total: int
    blocks_used: int
    steps: int
    prompt_tokens_computed: int
    prompt_tokens_cached: int
    tokens_generated: int
    requests_finished: int
    requests_cancelled: int
    preemptions: int
    uptime_seconds: float
    requests_admitted: int = 0
    """Requests that have begun to be computed."""
    prefix_hits: int = 0
    """Those of them that found a part of their prompt in the cache."""
    swapped_out: int = 0
    swapped_in: int = 0
    swap_blocks: int = 0
    swap_blocks_used: int = 0
    asleep: int = 0
    parameters: int = 0
    """The model's."""
    wait_seconds: float = 0.0
    """Of all admitted requests together, from being submitted to being admitted."""
    drafts: int = 0
    """Speculation: drafts that were checked, the tokens they had, and how many of those were right."""
    draft_tokens: int = 0
    draft_tokens_accepted: int = 0
    grammars_compiled: int = 0
    grammars_reused: int = 0
    tokens_forced: int = 0
    """Of those generated: appended without sampling, because a grammar left no choice."""


Order = Sleep | Wake | UpdateWeights | LoadAdapter | UnloadAdapter
ToEngine = Submit | Encode | CountTokens | Prefill | Cancel | Order | GetStats
FromEngine = Hello | Output | Finished | Encoded | Counted | CacheBlocks | Done | Failed | Stats

MAX_MESSAGE_BYTES = 256 * 2**20

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode


# --- framing --------------------------------------------------------------------------------------------------

Message = TypeVar("Message")


class ProtocolError(Exception):
    """The other side sent something that is no message."""


def frame(message: ToEngine | FromEngine) -> bytes:
    """The message as it goes over the socket."""
    data = encode(message)
    return len(data).to_bytes(4, "big") + data


async def read_message(reader: asyncio.StreamReader, decode: Callable[[bytes], Message]) -> Message:
    """The next message. Raises EOFError at the end of the connection, and `ProtocolError`."""
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {length} bytes")
    try:
        return decode(await reader.readexactly(length))
    except msgspec.DecodeError as error:
        raise ProtocolError(str(error)) from None
