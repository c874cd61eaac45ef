"""What an answer's headers say of its way: out of which cache, which model answered, after how many attempts, and what
is left of limits."""

from __future__ import annotations

from wootz.core.journey import Journey


def headers_of(journey: Journey) -> dict[bytes, str]:
    headers = {name.encode("latin-1"): value for name, value in journey.answer_headers.items()}
    if journey.cache != "off":
        headers[b"x-wootz-cache"] = journey.cache
    if journey.cache_age is not None:
        headers[b"age"] = str(int(journey.cache_age))
    if (attempt := journey.answered_by) is None:
        return headers
    headers[b"x-wootz-attempts"] = str(len(journey.attempts))
    if attempt.error_code is None and attempt.deployment.isascii() and attempt.deployment.isprintable():
        headers[b"x-wootz-model"] = attempt.deployment
    return headers
