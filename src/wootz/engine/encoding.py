"""An encoder behind the engine's socket: texts in, vectors or relevance out.

One thread computes. Whatever has been asked while it was busy is computed together, since a packed batch of short
texts costs hardly more than one of them; whose caller has left by then is not computed at all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from wootz.core import BadRequestError, UnsupportedError, WootzError
from wootz.engine import protocol
from wootz.engine.connection import Connection, failed
from wootz.engine.protocol import (
    Cancel,
    Encode,
    Encoded,
    GetStats,
    Hello,
    LoadAdapter,
    Sleep,
    Stats,
    Submit,
    UnloadAdapter,
    UpdateWeights,
    Wake,
)
from wootz.models.encoder import Encoder

if TYPE_CHECKING:
    from wootz.tokenization import Tokenizer

log = logging.getLogger("wootz.engine")

MOST_TOGETHER = 256
"""Requests of one pass."""


@dataclass
class Job:
    """A request, and its texts as token ids."""

    request: Encode
    connection: Connection
    texts: list[list[int]] = field(default_factory=list)
    token_types: list[list[int]] = field(default_factory=list)
    cancelled: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.texts))


class EncoderServer:
    """The event loop's side; must be made in it."""

    def __init__(self, model: Encoder, tokenizer: Tokenizer | None) -> None:
        self.encoding = Encoding(model, tokenizer)
        self.computing = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self.waiting: list[Job] = []
        self.busy: asyncio.Task[None] | None = None
        self.started = time.monotonic()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection's life."""
        connection = Connection(writer)
        jobs: dict[str, Job] = {}
        connection.send(self.encoding.hello())
        try:
            while True:
                match await protocol.read_message(reader, protocol.decode_to_engine):
                    case Encode() as request:
                        jobs[request.request_id] = Job(request, connection)
                        self.submit(jobs[request.request_id])
                    case Submit(request_id=id) | LoadAdapter(request_id=id) | UnloadAdapter(request_id=id):
                        error = UnsupportedError("this model is an encoder and cannot write", param="model")
                        connection.send(failed(id, error))
                    case Cancel(request_id=id):
                        if job := jobs.pop(id, None):
                            job.cancelled = True
                    case Sleep(request_id=id) | Wake(request_id=id) | UpdateWeights(request_id=id):
                        error = UnsupportedError("an encoder's weights stay where they are", param="model")
                        connection.send(failed(id, error))
                    case GetStats():
                        connection.send(self.stats())
        except (EOFError, OSError):
            pass
        except protocol.ProtocolError as error:
            log.warning("a caller broke the protocol: %s; its connection is closed", error)
        finally:
            for job in jobs.values():
                job.cancelled = True
            writer.close()

    def submit(self, job: Job) -> None:
        self.waiting.append(job)
        if self.busy is None:
            self.busy = asyncio.create_task(self.work())

    async def work(self) -> None:
        """Until nothing waits."""
        loop = asyncio.get_running_loop()
        while self.waiting:
            jobs = [job for job in self.waiting[:MOST_TOGETHER] if not job.cancelled]
            del self.waiting[:MOST_TOGETHER]
            answers = await loop.run_in_executor(self.computing, self.encoding.answer_all, jobs)
            for job, answer in zip(jobs, answers, strict=True):
                if isinstance(answer, WootzError):
                    job.connection.send(failed(job.request.request_id, answer))
                elif not job.cancelled:
                    job.connection.send(answer)
        self.busy = None

    def stats(self) -> Stats:
        counts = self.encoding
        return Stats(
            running=0 if self.busy is None else 1,
            waiting=len(self.waiting),
            blocks_total=0,
            blocks_used=0,
            steps=counts.num_passes,
            prompt_tokens_computed=counts.num_tokens,
            prompt_tokens_cached=0,
            tokens_generated=0,
            requests_finished=counts.num_finished,
            requests_cancelled=0,
            preemptions=0,
            uptime_seconds=time.monotonic() - self.started,
        )


class Encoding:
    """The encoder, its tokenizer, and what has been asked of them."""

    def __init__(self, model: Encoder, tokenizer: Tokenizer | None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.num_passes = self.num_tokens = self.num_finished = 0

    def hello(self) -> Hello:
        config = self.model.config
        return Hello(
            family=config.family,
            num_parameters=self.model.num_parameters,
            vocab_size=config.vocab_size,
            max_model_len=config.max_length,
            dtype=str(self.model.dtype).removeprefix("torch."),
            device=str(self.model.device),
            has_chat_template=False,
            embedding_size=config.hidden_size,
        )

    def answer_all(self, jobs: list[Job]) -> list[Encoded | WootzError]:
        """An answer for each job; what is wrong with one does not touch the others."""
        ready, answers = [], dict[int, Encoded | WootzError]()
        for job in jobs:
            try:
                self._tokenize(job)
                ready.append(job)
            except WootzError as error:
                answers[id(job)] = error
        for together in ([job for job in ready if self._scores(job)], [job for job in ready if not self._scores(job)]):
            if together:
                answers |= self._compute(together)
        return [answers[id(job)] for job in jobs]

    def _compute(self, jobs: list[Job]) -> dict[int, Encoded | WootzError]:
        texts = [text for job in jobs for text in job.texts]
        try:
            if self._scores(jobs[0]):
                types = [types for job in jobs for types in job.token_types]
                results = self.model.score(texts, types, truncate=True)
            else:
                results = self.model.embed(texts, truncate=True)
        except Exception:
            log.exception("encoding failed")
            error = WootzError("the engine failed while it worked on this request")
            return {id(job): error for job in jobs}
        ends = accumulate((len(job.texts) for job in jobs), initial=0)
        self.num_passes += 1
        self.num_tokens += sum(map(len, texts))
        self.num_finished += len(jobs)
        return {
            id(job): self._answer(job, results[start:end])
            for job, (start, end) in zip(jobs, pairwise(ends), strict=True)
        }

    def _answer(self, job: Job, results: torch.Tensor) -> Encoded:
        """``results`` are a cross-encoder's logits ``(N, labels)``, or vectors ``(N, D)``, the query's last."""
        request, num_tokens = job.request, job.num_tokens
        if request.query is None:
            if request.dimensions is not None:
                results = F.normalize(results[:, : request.dimensions], dim=-1)
            vectors = [vector.numpy().astype("<f4").tobytes() for vector in results]
            return Encoded(request.request_id, num_tokens, vectors=vectors)
        if self._scores(job):
            relevance = results[:, 0].sigmoid() if results.shape[1] == 1 else results.softmax(-1)[:, -1]
        else:
            relevance = F.cosine_similarity(results[:-1], results[-1:], dim=-1)
        return Encoded(request.request_id, num_tokens, scores=relevance.tolist())

    def _scores(self, job: Job) -> bool:
        """Whether a head judges query and text together; a model without one compares their vectors."""
        return job.request.query is not None and self.model.config.num_labels is not None

    def _tokenize(self, job: Job) -> None:
        """Raises `BadRequestError` for what cannot be encoded, by the place it has in the request."""
        request, size, longest = job.request, self.model.config.hidden_size, self.model.config.max_length
        if request.dimensions is not None and request.dimensions > size:
            raise BadRequestError(f"this model's vectors have {size} dimensions", param="dimensions")
        texts: list[str | list[int]] = [*request.texts]
        if request.query is not None and not self._scores(job):
            texts.append(request.query)
        for number, text in enumerate(texts):
            if self._scores(job):
                ids, types = self._tokenizer.encode_pair(request.query or "", str(text))
                job.token_types.append(types)
            else:
                ids = self._tokenizer.encode(text, control="text") if isinstance(text, str) else text
            if not ids or min(ids) < 0 or max(ids) >= self.model.config.vocab_size:
                raise BadRequestError(f"text {number} has no tokens, or some outside of the vocabulary", param="input")
            if len(ids) > longest and not request.truncate:
                raise BadRequestError(
                    f"text {number} has {len(ids)} tokens, and this model reads at most {longest}",
                    code="context_length_exceeded",
                    param="input",
                )
            job.texts.append(ids)

    @property
    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UnsupportedError("this model has no tokenizer; give token ids", param="input")
        return self.tokenizer
