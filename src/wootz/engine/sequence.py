"""A request and its choices: what is asked, and each answer as far as it has grown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wootz.engine.cache import BlockTable
from wootz.engine.output import TextStream
from wootz.engine.protocol import SamplingParams

if TYPE_CHECKING:
    from wootz.engine.adapters import KnownAdapter
    from wootz.engine.answer import AnswerStream
    from wootz.engine.beam_search import BeamSearch
    from wootz.engine.grammar import Constraint
    from wootz.engine.scoring import PromptScores
    from wootz.engine.structure import AnswerPlan
    from wootz.engine.swap import Saved


@dataclass(eq=False)
class Request:
    """One prompt and how to continue it. ``id`` is the caller's; the engine knows a request by the object itself."""

    id: str
    prompt_token_ids: list[int]
    """With a prefix, places for its tokens come first."""
    params: SamplingParams
    seed: int
    """Of every random choice made for this request; drawn by the engine when ``params.seed`` is None."""
    end_token_ids: frozenset[int]
    """Tokens that end a choice: the model's own unless ``ignore_eos``, and ``stop_token_ids``."""
    max_len: int
    """Prompt and answer together end here."""
    continues_text: bool = False
    """Whether the answer goes on in the prompt's own text, rather than being a text of its own (a chat's)."""
    priority: int = 0
    """The lowest goes first."""
    user: str = ""
    """Whom its tokens are counted for, where users get equal shares."""
    plan: AnswerPlan | None = None
    """How its answers are constrained and read, where they are."""
    adapter: KnownAdapter | None = None
    arrival: int = -1
    """Place in the order of arrival; set when the request is submitted."""
    submitted_at: int = 0
    """The step before which it was submitted."""
    submitted_time: float = 0.0
    """Of `time.monotonic`."""
    cached_tokens: int | None = None
    """Prompt tokens found in the cache; None until the prompt is first admitted."""
    sequences: list[Sequence] = field(default_factory=list)
    """Its choices: the first from the start, the others from when the prompt is computed."""
    num_open: int = 0
    """Choices that have not ended. 0 before the request is submitted and once it is over."""
    prompt_scores: PromptScores | None = None
    """Log-probabilities of the prompt's own tokens, if they are asked for."""
    beams: BeamSearch | None = None
    """If the answer is searched for: ``sequences`` are then the beams."""

    @property
    def num_virtual_tokens(self) -> int:
        """Tokens of a prefix, which are neither text nor computed."""
        return self.adapter.num_virtual_tokens if self.adapter else 0

    @property
    def salt(self) -> str:
        """What its numbers in the cache depend on beside its tokens."""
        return self.adapter.salt if self.adapter else ""


@dataclass(eq=False)
class Sequence:
    """One choice of a request: prompt and answer in one run of tokens, and how much of it the cache holds.

    ``token_ids[:num_computed]`` have their keys and values in ``table``. A running sequence that has answered so far
    with k tokens is behind by exactly one: the last token is known, but not yet computed.
    """

    request: Request
    index: int
    token_ids: list[int]
    text: TextStream
    table: BlockTable = field(default_factory=BlockTable)
    num_computed: int = 0
    level: int = 0
    """The priority it was admitted with: its request's, improved by waiting."""
    num_passed: int = 0
    """Times that another was admitted in its turn, because more of its prompt was in the cache."""
    num_charged: int = 0
    """Tokens that its user has paid for."""
    admitted_at: int = 0
    """The step in which it last began to run."""
    num_preemptions: int = 0
    saved: Saved | None = None
    """Its part of the cache, if that was swapped out."""
    constraint: Constraint | None = None
    """Its place in the grammar that it has to follow."""
    answer: AnswerStream | None = None
    """Parts its text into what is said, thought and called."""

    @property
    def num_remaining(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def arrival(self) -> tuple[int, int]:
        return self.request.arrival, self.index

    @property
    def order(self) -> tuple[int, int, int]:
        """Among those that run, the smallest goes first."""
        return self.level, *self.arrival
