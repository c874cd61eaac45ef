"""What a server's engine counted while it was under load: ``GET /metrics``, before, during and after.

A server that has no such metrics is measured from outside only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

GAUGES = ("running", "waiting", "blocks_used", "blocks_total", "parameters")
COUNTERS = (
    "steps", "prompt_tokens_computed", "prompt_tokens_cached", "tokens_generated", "requests_admitted", "prefix_hits",
    "preemptions", "wait_seconds",
)  # fmt: skip
POLL_SECONDS = 1.0
"""The server asks its engines as often."""


@dataclass
class EngineCounts:
    """Samples of one model's engine, ``{gauge or counter: value}`` each."""

    samples: list[dict[str, float]] = field(default_factory=list)

    def summary(self) -> dict[str, Any] | None:
        """Counters as they grew, gauges as they were on average; None where the server told nothing."""
        if len(self.samples) < 2:
            return None
        first, last = self.samples[0], self.samples[-1]
        grown = {name: last[name] - first[name] for name in COUNTERS}
        if min(grown.values()) < 0:
            return None  # The engine was started anew meanwhile.
        during = self.samples[1:]

        def mean(name: str) -> float:
            return sum(sample[name] for sample in during) / len(during)

        prompt = grown["prompt_tokens_computed"] + grown["prompt_tokens_cached"]
        return {
            **grown,
            "parameters": last["parameters"],
            "running": mean("running"),
            "waiting": mean("waiting"),
            "cache_utilisation": mean("blocks_used") / max(last["blocks_total"], 1),
            "prefix_hit_rate": grown["prompt_tokens_cached"] / prompt if prompt else 0.0,
            "queue_wait_seconds": grown["wait_seconds"] / max(grown["requests_admitted"], 1),
        }


@contextlib.asynccontextmanager
async def watch(client: httpx.AsyncClient, model: str) -> AsyncGenerator[EngineCounts, None]:
    """Sample while the block runs, and once before and after it, when the server has heard from its engine again."""
    counts = EngineCounts()

    async def sample() -> None:
        if (values := await _read(client, model)) is not None:
            counts.samples.append(values)

    async def poll() -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await sample()

    await sample()
    polling = asyncio.create_task(poll()) if counts.samples else None
    try:
        yield counts
    finally:
        if polling is not None:
            polling.cancel()
            await asyncio.sleep(1.2 * POLL_SECONDS)
            await sample()


async def _read(client: httpx.AsyncClient, model: str) -> dict[str, float] | None:
    try:
        response = await client.get("/metrics")
    except httpx.HTTPError:
        return None
    if response.status_code != 200:
        return None
    values: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(response.text):
            name = family.name.removeprefix("wootz_engine_")
            if name in (*GAUGES, *COUNTERS):
                for one in family.samples:
                    if one.labels.get("model") == model:
                        values[name] = one.value
    except ValueError:
        return None
    return values if values.keys() >= {*GAUGES, *COUNTERS} else None
