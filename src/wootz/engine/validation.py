"""What a user can get wrong in a request, each refused with the name of the parameter."""

from __future__ import annotations

from wootz.core import BadRequestError
from wootz.engine.protocol import SamplingParams

MAX_CHOICES = 128
MAX_LOGPROBS = 1024
PRIORITIES = range(-100, 101)


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Raise `BadRequestError` for a value out of range."""

    def check(name: str, is_right: bool, rule: str) -> None:
        if not is_right:
            value = repr(getattr(params, name))[:80]
            raise BadRequestError(f'"{name}" must be {rule}, not {value}', param=name)

    def are_tokens(ids) -> bool:
        return all(0 <= id < vocab_size for id in ids)

    least = 1 if params.prompt_logprobs is None else 0
    check("max_tokens", params.max_tokens is None or params.max_tokens >= least, f"at least {least}")
    check("min_tokens", params.min_tokens >= 0, "at least 0")
    check("temperature", 0 <= params.temperature < float("inf"), "at least 0 and finite")
    check("top_k", params.top_k >= -1, "at least 1, or 0 or -1 for all tokens")
    check("top_p", 0 < params.top_p <= 1, "above 0 and at most 1")
    check("min_p", 0 <= params.min_p <= 1, "between 0 and 1")
    check("repetition_penalty", 0 < params.repetition_penalty < float("inf"), "above 0 and finite")
    check("presence_penalty", abs(params.presence_penalty) <= 2, "between -2 and 2")
    check("frequency_penalty", abs(params.frequency_penalty) <= 2, "between -2 and 2")
    check("logit_bias", are_tokens(params.logit_bias), f"keyed by token ids below {vocab_size}")
    check("logit_bias", all(abs(bias) <= 100 for bias in params.logit_bias.values()), "between -100 and 100 each")
    check("seed", params.seed is None or -(2**63) <= params.seed < 2**63, "a 64-bit integer")
    check("n", 1 <= params.n <= MAX_CHOICES, f"between 1 and {MAX_CHOICES}")
    check("stop", all(params.stop), "made of strings that are not empty")
    check("stop_token_ids", are_tokens(params.stop_token_ids), f"made of token ids below {vocab_size}")
    check("logprobs", params.logprobs is None or 0 <= params.logprobs <= MAX_LOGPROBS, f"between 0 and {MAX_LOGPROBS}")
    few = params.prompt_logprobs is None or 0 <= params.prompt_logprobs <= MAX_LOGPROBS
    check("prompt_logprobs", few, f"between 0 and {MAX_LOGPROBS}")
    if params.num_beams != 1:
        check("num_beams", 1 <= params.num_beams <= MAX_CHOICES, f"between 1 and {MAX_CHOICES}")
        check("n", params.n <= params.num_beams, "at most num_beams")
        check("temperature", params.temperature == 0, "0 for beam search")
        for name in ("stop", "logprobs", "prompt_logprobs"):
            check(name, getattr(params, name) in (None, ()), "left out for beam search")
        check("length_penalty", abs(params.length_penalty) < float("inf"), "finite")
        check("early_stopping", params.early_stopping in (True, False, "never"), 'true, false or "never"')
    if params.watermark is not None:
        check("watermark", 0 < params.watermark.greenlist_ratio < 1, "with a greenlist_ratio between 0 and 1")
        check("watermark", abs(params.watermark.bias) < float("inf"), "with a finite bias")


def check_priority(priority: int) -> None:
    """Raise `BadRequestError` for one so far from the others that nobody would live to see it improve."""
    if priority not in PRIORITIES:
        raise BadRequestError(
            f'"priority" must be between {PRIORITIES[0]} and {PRIORITIES[-1]}, not {priority}', param="priority"
        )
