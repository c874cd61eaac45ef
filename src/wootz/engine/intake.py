"""From what callers ask to a `Request` that can be served: rendered, tokenized, checked, planned.

Nothing is begun here, and nothing that steps change is read, so any thread may do this while another steps.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Many
from typing import TYPE_CHECKING, Any, cast

from wootz.core import BadRequestError
from wootz.engine.adapters import AdapterCache
from wootz.engine.beam_search import BeamSearch
from wootz.engine.cache import BlockPool
from wootz.engine.generation import Prompt
from wootz.engine.protocol import SamplingParams, ToolUse
from wootz.engine.scoring import PromptScores
from wootz.engine.sequence import Request
from wootz.engine.structure import Planner
from wootz.engine.validation import check_params, check_priority

if TYPE_CHECKING:
    from wootz.tokenization import Tokenizer


class Intake:
    """What an engine can serve: its vocabulary, how long a text and how many at a time, which adapters."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        planner: Planner | None,
        adapters: AdapterCache,
        pool: BlockPool,
        *,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        max_model_len: int,
        max_running: int,
    ) -> None:
        self.tokenizer, self.planner, self.adapters, self.pool = tokenizer, planner, adapters, pool
        self.vocab_size, self.eos_token_ids = vocab_size, eos_token_ids
        self.max_model_len, self.max_running = max_model_len, max_running

    def make_request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        id: str = "",
        priority: int = 0,
        user: str = "",
        tools: ToolUse | None = None,
        adapter: str | None = None,
    ) -> Request:
        """Tokenize and check; nothing is begun. Raises `BadRequestError` for what can never be served, `NotFoundError`
        for an adapter that is not known."""
        known = None if adapter is None else self.adapters.find(adapter)
        vocab_size = self.vocab_size
        check_params(params, vocab_size)
        check_priority(priority)
        token_ids, param = self._encode(prompt, tools)
        if not token_ids:
            raise BadRequestError("the prompt is empty", param=param)
        if not all(0 <= token < vocab_size for token in token_ids):
            raise BadRequestError(f"the prompt's token ids must be at least 0 and below {vocab_size}", param=param)
        if known is not None:
            token_ids = [0] * known.num_virtual_tokens + token_ids
        if len(token_ids) + (params.max_tokens != 0) > self.max_model_len:
            raise BadRequestError(
                f"the prompt has {len(token_ids)} tokens; prompt and answer together may have {self.max_model_len}",
                code="context_length_exceeded",
                param=param,
            )
        max_tokens = self.max_model_len if params.max_tokens is None else params.max_tokens
        if params.structured is not None and self.planner is None:
            raise BadRequestError("this engine has no tokenizer; it can't follow a grammar", param="structured")
        plan = self.planner and self.planner.plan(
            params.structured, tools, chat=param == "messages", prompt_ids=token_ids
        )
        if plan is not None and plan.grammar is not None and params.num_beams > 1:
            raise BadRequestError("a beam search follows no grammar; ask for one of the two", param="num_beams")
        request = Request(
            plan=plan,
            id=id,
            prompt_token_ids=token_ids,
            continues_text=param == "prompt",
            adapter=known,
            params=params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            end_token_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.eos_token_ids),
            max_len=min(len(token_ids) + max_tokens, self.max_model_len),
            priority=priority,
            user=user,
        )
        if params.prompt_logprobs is not None:
            request.prompt_scores = PromptScores(token_ids, params.prompt_logprobs)
        if params.num_beams > 1:
            self._check_beams_fit(request)
            request.beams = BeamSearch(request)
        return request

    def num_tokens(self, messages: Many[dict[str, Any]], tools: ToolUse | None, adapter: str | None) -> int:
        """Of the prompt that a chat would have."""
        known = None if adapter is None else self.adapters.find(adapter)
        return len(self._encode(messages, tools)[0]) + (known.num_virtual_tokens if known else 0)

    def _encode(self, prompt: Prompt, tools: ToolUse | None) -> tuple[list[int], str]:
        """The prompt's token ids, and what a user calls it."""
        if not isinstance(prompt, str) and not (prompt and isinstance(prompt[0], dict)):
            return list(cast(Many[int], prompt)), "prompt"
        if self.tokenizer is None:
            raise BadRequestError("this engine has no tokenizer; give token ids", param="prompt")
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt), "prompt"
        messages, shown_tools = cast(Planner, self.planner).prompt(cast(Many[dict[str, Any]], prompt), tools)
        return self.tokenizer.encode_chat(messages, tools=shown_tools), "messages"

    def _check_beams_fit(self, request: Request) -> None:
        """All beams of a search must find a place together, for none goes on before the others."""
        num_beams = request.params.num_beams
        blocks = num_beams * (-(-request.max_len // self.pool.block_size) + 1)
        if num_beams > self.max_running or blocks > self.pool.num_blocks:
            raise BadRequestError(
                f"{num_beams} beams of {request.max_len} tokens do not fit: there is room for "
                f"{self.max_running} answers at a time and {self.pool.num_blocks} blocks, of which they may "
                f"need {blocks}",
                param="num_beams",
                hint="ask for fewer beams or a smaller max_tokens",
            )
