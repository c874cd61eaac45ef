"""``[telemetry]``: what is kept of each request, at what price it is counted, and where its spans go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from wootz.core.sections.section import Section


class TelemetryConfig(Section):
    otlp_endpoint: str | None = Field(
        default=None, description="OTLP/HTTP traces endpoint, e.g. http://localhost:4318/v1/traces"
    )
    service_name: str = "wootz"
    price_file: Path | None = Field(
        default=None, description="Prices of your own, in the price book's format; they go before the book's."
    )
    hash_key: str | None = Field(
        default=None, description="A reference to the key of prompt hashes. Default: one of this home's own."
    )
    store_bodies: bool = Field(
        default=False, description="Keep what was asked and answered, secrets and personal numbers blacked out."
    )
    body_days: int = Field(default=7, ge=1, description="Stored bodies are deleted after this many days.")
    body_bytes: int = Field(default=64 * 2**10, ge=1024, description="Of a request, and of an answer, at most.")
    latency_budget: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Milliseconds for a stage, by its name; see `wootz trace latency`."
    )
