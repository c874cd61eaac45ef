"""Grammars at work: compiled once, followed token by token, and turned into masks while the model computes.

Each step, every constrained sequence knows which tokens keep it a beginning of something that its grammar accepts; the
others' logits become minus infinity before one is chosen. llguidance (https://github.com/guidance-ai/llguidance) does
the parsing: an Earley parser over lexemes that are derivatives of regular expressions, and a trie of the vocabulary,
so tokens that span several symbols, or half a character, need no special case. `wootz.engine.reference_grammar` shows
the idea in little.

Three things make it cheap. A grammar's compiled form is kept by its text. The masks of a step depend only on tokens
that are known before the model runs, so a thread fills them meanwhile. And where the grammar leaves no choice, tokens
are appended without sampling, and are then computed as one chunk.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import llguidance
import torch
from torch import Tensor

from wootz.core import BadRequestError

if TYPE_CHECKING:
    from wootz.tokenization import Tokenizer

MAX_GRAMMARS = 256
"""Compiled grammars that are kept, the least recently used going first."""

log = logging.getLogger("wootz.engine")


@dataclass(frozen=True)
class CompiledGrammar:
    """``matcher`` stands at the grammar's beginning and is only copied. ``lazy``: free text is possible too, and stop
    strings are heeded in it."""

    matcher: llguidance.LLMatcher
    vocab_size: int
    guarantee: str
    lazy: bool = False

    def begin(self) -> Constraint:
        return Constraint(self.matcher.deep_copy(), self)


class Constraint:
    """One choice's place in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, grammar: CompiledGrammar) -> None:
        self.matcher, self.grammar = matcher, grammar
        self.forced: deque[int] = deque()
        """Tokens that must come next, and could not be appended yet."""

    def accept(self, token: int) -> None:
        """The choice has grown by this token."""
        if not self.matcher.consume_token(token):
            log.warning("a grammar became too complex to follow; the answer ends here")

    def next_forced(self) -> bool:
        """Whether there is a token that must come next; then it is the first of `forced`."""
        if not self.forced:
            self.forced.extend(self.matcher.compute_ff_tokens())
        return bool(self.forced)

    def guarantee(self, finish_reason: str | None) -> str | None:
        """What is certain of an answer that ended so: nothing of one that was cut off, or of free text."""
        whole = ("tool_calls",) if self.grammar.lazy else ("stop", "tool_calls")
        return self.grammar.guarantee if finish_reason in whole else None

    @property
    def is_whole(self) -> bool:
        """Whether the text so far may be all: the end token is allowed."""
        return self.matcher.is_accepting() and not self.matcher.is_error()

    @property
    def is_over(self) -> bool:
        """Whether nothing but the end token is left; also true once the grammar can't be followed any further."""
        return self.matcher.is_stopped()

    @property
    def may_stop(self) -> bool:
        """Whether stop strings are heeded here: only in free text. Inside a structure they are text like any other, for
        half a structure is of no use to anybody."""
        return self.grammar.lazy and self.is_whole


class GrammarCompiler:
    """One engine's grammars. Threads may share it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_token_ids: Iterable[int]) -> None:
        self._tokenizer, self._vocab_size, self._end_token_ids = tokenizer, vocab_size, sorted(end_token_ids)
        self._kept: OrderedDict[bytes, llguidance.LLMatcher | str] = OrderedDict()
        self._lock = threading.Lock()
        self.num_compiled = self.num_reused = 0

    def compile(self, grammar: str, *, param: str) -> llguidance.LLMatcher:
        """A matcher at the beginning of a grammar (llguidance's JSON, or Lark). Raises `BadRequestError`, naming
        ``param``, for one that is not understood."""
        key = blake2b(grammar.encode()).digest()
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                self.num_compiled += 1
                matcher = llguidance.LLMatcher(self.vocabulary, grammar, log_level=0, limits=_LIMITS)
                found = _reason(matcher.get_error()) if matcher.is_error() else matcher
            else:
                self.num_reused += 1
            self._kept[key] = found
            self._kept.move_to_end(key)
            if len(self._kept) > MAX_GRAMMARS:
                self._kept.popitem(last=False)
        if isinstance(found, str):
            raise BadRequestError(f'"{param}" can\'t be enforced: {found}', param=param, code="unsupported_grammar")
        return found

    @cached_property
    def vocabulary(self) -> llguidance.LLTokenizer:
        """The vocabulary as a trie: laid out when first needed."""
        size = max(self._vocab_size, self._tokenizer.vocab_size)
        end = self._end_token_ids or [size]  # without an end token, one that nothing can sample
        size = max(size, *(token + 1 for token in end))
        vocabulary: Any = _Vocabulary(self._tokenizer, size, end[0])  # what llguidance asks of its own wrapper, too
        return llguidance.LLTokenizer(vocabulary, n_vocab=size, eos_token=end)


_LIMITS = llguidance.LLParserLimits(verbose_errors=False)


class _Vocabulary:
    """Our tokenizer as llguidance asks for one: every token's bytes, and the canonical tokens of a text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.tokens = [tokenizer.token_bytes(id) for id in range(size)]
        self.special_token_ids = sorted(tokenizer.special_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        """Of a text that goes on from another. SentencePiece puts a space before a text, so a mark is put before it
        that is a token of its own, and is taken away with all before it."""
        text = text.decode() if isinstance(text, bytes) else text
        tokenizer = self._tokenizer
        if not tokenizer.strips_leading_space:
            return tokenizer.encode(text, add_special_tokens=False)
        ids = tokenizer.encode(f"\x02{text}", add_special_tokens=False)
        place = next((n for n, id in enumerate(ids) if tokenizer.token_bytes(id) == b"\x02"), None)
        return ids[place + 1 :] if place is not None else tokenizer.encode(text, add_special_tokens=False)


def _reason(error: str) -> str:
    """llguidance's message in one line."""
    return " ".join(error.split())[:300] or "it is not understood"


# --- masks ----------------------------------------------------------------------------------------------------


class Masks:
    """Fills the masks of a step in a thread of its own, while the model computes the logits."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")

    @cached_property
    def _executor(self) -> llguidance.LLExecutor:
        return llguidance.LLExecutor()

    def begin(self, constraints: Mapping[int, Constraint | None]) -> StepMasks | None:
        """For rows of a step; None when no row is constrained."""
        matchers = {row: constraint.matcher for row, constraint in constraints.items() if constraint is not None}
        if not matchers:
            return None
        num_words = -(-max(c.grammar.vocab_size for c in constraints.values() if c is not None) // 32)
        return StepMasks([*matchers], self._thread.submit(self._fill, [*matchers.values()], num_words))

    def _fill(self, matchers: list[llguidance.LLMatcher], words: int) -> Tensor:
        mask_RW = torch.zeros(len(matchers), words, dtype=torch.int32)
        places = [(matcher, row) for row, matcher in enumerate(matchers)]
        self._executor.unsafe_compute_mask_ptr(places, mask_RW.data_ptr(), words * 4, len(matchers))
        return mask_RW


@dataclass(frozen=True)
class StepMasks:
    rows: list[int]
    future: Future[Tensor]

    def forbidding(self, rows: Sequence[int]) -> Callable[[Tensor], None] | None:
        """What forbids, in logits ``(S, V)`` whose row ``i`` came from row ``rows[i]`` of the step, all that the
        grammars do not allow; None if none of them is constrained."""
        place = {row: n for n, row in enumerate(self.rows)}
        targets = [n for n, row in enumerate(rows) if row in place]
        sources = [place[rows[n]] for n in targets]
        if not targets:
            return None

        def forbid(logits_SV: Tensor) -> None:
            mask_RW = self.future.result()[sources].to(logits_SV.device)
            rows_R = torch.tensor(targets, device=logits_SV.device)
            logits_SV[rows_R] = logits_SV[rows_R].masked_fill(~unpack(mask_RW, logits_SV.shape[-1]), float("-inf"))

        return forbid


def unpack(mask_RW: Tensor, vocab_size: int) -> Tensor:
    """Bit ``i % 32`` of word ``i // 32`` as an element of its own, ``(R, V)`` bool."""
    shift_32 = torch.arange(32, dtype=torch.int32, device=mask_RW.device)
    return ((mask_RW.unsqueeze(-1) >> shift_32) & 1).bool().flatten(1)[:, :vocab_size]
