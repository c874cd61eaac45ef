"""What a request says about caches: the header ``cache-control``, or the field ``cache`` of its body.

The words are those of RFC 9111 (5.2.1). ``no-cache``: answer me anew, and keep that answer. ``no-store``: leave no
trace, neither read nor kept nor shared with an equal request under way. ``max-age=60``: nothing older than that. The
body's ``ttl`` shortens how long the answer is kept. Directives that we do not know are ignored, as the standard says;
no directive can make an answer kept that would not be, or reach another tenant's.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class CacheControl(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, alias_generator=lambda name: name.replace("_", "-")
    )

    no_cache: bool = False
    no_store: bool = False
    max_age: float | None = Field(default=None, ge=0, description="Seconds.")
    ttl: float | None = Field(default=None, gt=0, description="Seconds.")


NOTHING_SAID = CacheControl()
_MAX_AGE = re.compile(r'max-age="?(\d{1,9})"?')


def cache_control(header: str, body: CacheControl | None) -> CacheControl:
    """Both together; where they disagree the more careful one holds."""
    body = body or NOTHING_SAID
    if not header:
        return body
    said = [part.strip().lower() for part in header.split(",")]
    ages = [float(match[1]) for part in said if (match := _MAX_AGE.fullmatch(part))]
    ages += [body.max_age] if body.max_age is not None else []
    both: dict[str, Any] = {
        "no-cache": body.no_cache or "no-cache" in said,
        "no-store": body.no_store or "no-store" in said,
        "max-age": min(ages, default=None),
        "ttl": body.ttl,
    }
    return CacheControl(**both)
