"""A question that means the same as one that was answered: nearest neighbour over unit vectors.

Compared are the last messages of requests that are equal in everything else (`keys.semantic_partition`): tenant,
permissions, model, parameters, system prompt, all earlier turns. The vectors of a partition are the rows of one matrix,
so a look-up is one product: exact, and under 2 ms for 10,000 questions of 384 numbers. Entries live in this process.

Encoders see how alike two texts are, not whether they mean the opposite: "enable" and "disable" are neighbours.
`guard.py` refuses such hits; the threshold is found from pairs of the workload (`tuning.py`).
"""

from __future__ import annotations

import base64
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wootz.core import LanguageModel, MissingExtraError, NotFoundError, WootzError
from wootz.core.sections import SemanticCacheConfig
from wootz.core.wire import ChatRequest, EmbeddingRequest
from wootz.gateway.caches.guard import difference
from wootz.gateway.caches.keys import user_of

try:
    import numpy as np
except ModuleNotFoundError:
    raise MissingExtraError("gateway.caches.semantic", "semcache", "numpy") from None
if TYPE_CHECKING:
    import numpy.typing as npt

MAX_SERVED = 10_000
"""Hits that can still be reported as false."""
MAX_CANDIDATES = 8
"""Neighbours that the guard looks at before the model is asked."""


@dataclass(frozen=True, slots=True)
class Question:
    partition: bytes
    model: str
    tenant: str
    user: str
    text: str
    vector_D: npt.NDArray[Any]
    """Of length 1."""


@dataclass(frozen=True, slots=True)
class Hit:
    body: bytes
    age: float
    cosine: float


@dataclass(slots=True, eq=False)
class _Kept:
    question: Question
    body: bytes
    kept_at: float
    expires_at: float


@dataclass(slots=True)
class _Partition:
    kept: list[_Kept] = field(default_factory=list)
    vectors_ND: Any = None


class SemanticCache:
    """``models`` holds the embedder under its name."""

    def __init__(
        self,
        config: SemanticCacheConfig,
        models: Mapping[str, LanguageModel],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.refused: Counter[str] = Counter()
        """Neighbours near enough that the guard did not let pass, by what they differed in."""
        self.false_hits: Counter[str] = Counter()
        """Reported, by model."""
        self._models = models
        self._clock = clock
        self._partitions: dict[bytes, _Partition] = {}
        self._oldest: OrderedDict[_Kept, None] = OrderedDict()
        self._served: OrderedDict[str, _Kept] = OrderedDict()

    @property
    def num_entries(self) -> int:
        return len(self._oldest)

    async def question(self, partition: bytes, request: ChatRequest) -> Question | None:
        """The request's last message with its vector; None, and a note on the journey, when the embedder fails."""
        text = request.messages[-1].text.strip()
        embedder = self._models.get(str(self.config.embedder))
        try:
            if embedder is None:
                raise NotFoundError(f'there is no model "{self.config.embedder}"')
            asked = EmbeddingRequest(model=embedder.name, input=[text])
            asked.journey.bounds = request.journey.bounds
            answer = await embedder.embed(asked)
            vector_D = unit_vector(answer.data[0].embedding)
        except (WootzError, ValueError, IndexError) as error:
            request.journey.notes.append(f"caches: no vector of the question: {error}"[:300])
            return None
        return Question(partition, request.model, request.journey.tenant, user_of(request), text, vector_D)

    def find(self, question: Question, request_id: str) -> Hit | None:
        """The nearest entry that is near enough and that the guard lets pass."""
        partition = self._partitions.get(question.partition)
        if partition is None:
            return None
        now = self._clock()
        for kept in [one for one in partition.kept if now >= one.expires_at]:
            self._drop(kept)
        if not partition.kept:
            return None
        cosines_N = partition.vectors_ND @ question.vector_D
        near = np.flatnonzero(cosines_N >= self.config.threshold)
        for place in near[np.argsort(-cosines_N[near])][:MAX_CANDIDATES]:
            kept, cosine = partition.kept[place], float(cosines_N[place])
            why = difference(kept.question.text, question.text) if self.config.guard else None
            if why is None:
                return self._serve(kept, cosine, now, request_id)
            self.refused[why] += 1
        return None

    def _serve(self, kept: _Kept, cosine: float, now: float, request_id: str) -> Hit:
        self._oldest.move_to_end(kept)
        self._served[request_id] = kept
        if len(self._served) > MAX_SERVED:
            self._served.popitem(last=False)
        return Hit(kept.body, now - kept.kept_at, cosine)

    def add(self, question: Question, body: bytes, ttl: float) -> None:
        """Keep an answer. The same question's older one gives way; of too many, the least recently used."""
        partition = self._partitions.setdefault(question.partition, _Partition())
        for kept in [one for one in partition.kept if one.question.text == question.text]:
            self._drop(kept)
        now = self._clock()
        kept = _Kept(question, body, now, now + ttl)
        partition = self._partitions.setdefault(question.partition, partition)
        partition.kept.append(kept)
        row_1D = question.vector_D[None]
        partition.vectors_ND = row_1D if len(partition.kept) == 1 else np.concatenate([partition.vectors_ND, row_1D])
        self._oldest[kept] = None
        while len(self._oldest) > self.config.max_entries:
            self._drop(next(iter(self._oldest)))

    def report_false_hit(self, request_id: str, tenant: str | None) -> None:
        """Forget the answer that this request got by meaning. ``tenant`` None is an administrator.

        Raises `NotFoundError`, in the same words for a request that had no such hit and for another tenant's.
        """
        kept = self._served.get(request_id)
        if kept is None or tenant not in (None, kept.question.tenant):
            raise NotFoundError(f'no answer by meaning is known of request "{request_id[:100]}"', param="request_id")
        for other in [one for one, served in self._served.items() if served is kept]:
            del self._served[other]
        self.false_hits[kept.question.model] += 1
        if kept in self._oldest:
            self._drop(kept)

    def purge(self, *, model: str | None = None, tenant: str | None = None, user: str | None = None) -> int:
        doomed = [
            kept
            for kept in self._oldest
            if model in (None, kept.question.model)
            and tenant in (None, kept.question.tenant)
            and user in (None, kept.question.user)
        ]
        for kept in doomed:
            self._drop(kept)
        return len(doomed)

    def _drop(self, kept: _Kept) -> None:
        del self._oldest[kept]
        partition = self._partitions[kept.question.partition]
        row = partition.kept.index(kept)
        del partition.kept[row]
        partition.vectors_ND = np.delete(partition.vectors_ND, row, axis=0)
        if not partition.kept:
            del self._partitions[kept.question.partition]


def unit_vector(embedding: list[float] | str) -> npt.NDArray[Any]:
    """Raises `ValueError` for what has no direction."""
    raw = np.frombuffer(base64.b64decode(embedding), np.float32) if isinstance(embedding, str) else embedding
    vector_D = np.asarray(raw, np.float32)
    length = float(np.linalg.norm(vector_D))
    if not (vector_D.ndim == 1 and np.isfinite(length) and length > 0):
        raise ValueError("the embedder gave a vector without a direction")
    return vector_D / length
