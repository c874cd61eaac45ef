"""From tokens to what callers see: `Writer` appends what was sampled and says what it brings.

Text comes whole (`wootz.engine.output`), split into thoughts, answer and tool calls where the request has a plan for
them (`wootz.engine.answer`), and with the log-probabilities that were asked for. Whether a choice ends is decided here
and nowhere else: by an end token, a stop string, a grammar that is over, or its length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from wootz.engine.answer import Parts
from wootz.engine.output import NoText, TextStream
from wootz.engine.protocol import Output, TokenLogprob
from wootz.engine.sampler import Sampled
from wootz.engine.sequence import Request, Sequence
from wootz.tokenization import StreamDecoder

if TYPE_CHECKING:
    from wootz.tokenization import Tokenizer


class Writer:
    """Without a tokenizer there is no text, only token ids."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer

    def append(self, sequence: Sequence, sampled: Sampled) -> Output:
        """Append the token; say what text it brings, and whether the choice ends here."""
        request, params, token = sequence.request, sequence.request.params, sampled.token_id
        if params.max_tokens == 0:  # the prompt was to be scored, and that is all
            output = Output(request.id, sequence.index, "", [], finish_reason="length")
            return self._with_prompt_logprobs(output, sequence)
        constraint, answer = sequence.constraint, sequence.answer
        ends = token in request.end_token_ids and (constraint is None or constraint.is_whole)
        if constraint is not None:
            constraint.accept(token)
        sequence.token_ids.append(token)
        text, finish_reason, stop_reason = "", None, None
        if ends:
            finish_reason, stop_reason = "stop", token if token in params.stop_token_ids else None
        else:
            may_stop = constraint is None or constraint.may_stop
            text = sequence.text.push(token, may_stop=may_stop and sequence.num_output_tokens >= params.min_tokens)
            if constraint is not None and constraint.is_over:
                finish_reason = "stop" if constraint.is_whole else "length"
            elif len(sequence.token_ids) == request.max_len:
                finish_reason = "length"
        if finish_reason:
            text += sequence.text.finish()
        if sequence.text.stopped_by is not None:
            finish_reason, stop_reason = "stop", sequence.text.stopped_by
        parts = answer.parts(text, over=finish_reason is not None) if answer is not None else Parts(text)
        if finish_reason == "stop" and answer is not None and answer.has_called:
            finish_reason = "tool_calls"
        output = Output(
            request_id=request.id,
            index=sequence.index,
            text=parts.text,
            token_ids=[token],
            logprobs=self._logprobs(sampled),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            reasoning=parts.reasoning,
            tool_calls=parts.tool_calls,
            guarantee=constraint.guarantee(finish_reason) if constraint is not None else None,
        )
        return self._with_prompt_logprobs(output, sequence)

    def text(self, request: Request) -> TextStream:
        decoder = NoText()
        if self.tokenizer is not None:
            shown_ids = request.plan.shown_ids if request.plan else frozenset()
            decoder = StreamDecoder(self.tokenizer, continues_text=request.continues_text, shown_ids=shown_ids)
        return TextStream(decoder, request.params.stop)

    def _logprobs(self, sampled: Sampled) -> list[TokenLogprob] | None:
        if sampled.logprob is None:
            return None
        return [self._spelt(sampled.token_id, sampled.logprob, sampled.top)]

    def _with_prompt_logprobs(self, output: Output, sequence: Sequence) -> Output:
        """The request's first output brings what was found out about the prompt."""
        scores = sequence.request.prompt_scores
        if scores is None or sequence.index or sequence.num_output_tokens > 1:
            return output
        (first, *others), found = scores.token_ids, [score for score in scores.found if score is not None]
        of_others = (self._spelt(token, *score) for token, score in zip(others, found, strict=True))
        return structs.replace(output, prompt_logprobs=[self._spelt(first, 0.0, []), *of_others])

    def _spelt(self, token: int, logprob: float, top: list[tuple[int, float]]) -> TokenLogprob:
        spell = self.tokenizer.token_bytes if self.tokenizer else lambda _: b""
        return TokenLogprob(token, spell(token), logprob, [(id, spell(id), value) for id, value in top])
