"""A load generator for any OpenAI-compatible server: N requests at a fixed concurrency, timed as a client sees them.

Closed loop: ``concurrency`` clients each send their next request when the last one ended. Time to first token (TTFT)
runs from sending to the first chunk that carries text; inter-token latency (ITL) is the gap between such chunks; tokens
are the server's own ``usage``. Prompts are random common words, so no two share a prefix that a cache could reuse
beyond the chat template. Definitions follow vLLM's and NVIDIA's GenAI-Perf: a request that fails counts in nothing
but ``failed``.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from wootz.app.engine_counts import watch
from wootz.core import AuthenticationError, UpstreamError

WORDS = (  # noqa: SIM905
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend"
).split()
PERCENTILES = (50, 95, 99)


@dataclass
class Sample:
    """One request, in seconds and tokens."""

    time_to_first_token: float = 0.0
    inter_token_latencies: list[float] = field(default_factory=list)
    end_to_end: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""


@dataclass(frozen=True)
class Level:
    """What one concurrency gave. Times in seconds."""

    concurrency: int
    wall_seconds: float
    samples: list[Sample]
    engine: dict[str, Any] | None = None
    """What the server's engine counted meanwhile (see `wootz.app.engine_counts`), if it tells."""

    @property
    def good(self) -> list[Sample]:
        return [sample for sample in self.samples if not sample.error]

    def summary(self) -> dict[str, Any]:
        good = self.good
        return {
            "concurrency": self.concurrency,
            "requests": len(self.samples),
            "failed": len(self.samples) - len(good),
            "wall_seconds": self.wall_seconds,
            "prompt_tokens_mean": _mean(sample.prompt_tokens for sample in good),
            "completion_tokens_mean": _mean(sample.completion_tokens for sample in good),
            "requests_per_second": len(good) / self.wall_seconds,
            "output_tokens_per_second": sum(sample.completion_tokens for sample in good) / self.wall_seconds,
            "total_tokens_per_second": sum(s.prompt_tokens + s.completion_tokens for s in good) / self.wall_seconds,
            "time_to_first_token": percentiles(sample.time_to_first_token for sample in good),
            "inter_token_latency": percentiles(gap for sample in good for gap in sample.inter_token_latencies),
            "end_to_end": percentiles(sample.end_to_end for sample in good),
            "tokens_per_second_of_a_request": percentiles(s.completion_tokens / s.end_to_end for s in good),
            "engine": self.engine,
        }

    def share_within(self, *, time_to_first_token: float | None, inter_token_latency: float | None) -> float:
        """Goodput: the share of all requests that succeeded and kept both limits (a request's mean ITL counts)."""
        kept = [
            sample
            for sample in self.good
            if (time_to_first_token is None or sample.time_to_first_token <= time_to_first_token)
            and (inter_token_latency is None or _mean(sample.inter_token_latencies) <= inter_token_latency)
        ]
        return len(kept) / len(self.samples)


class LoadGenerator:
    """Sends chat requests to one model of one server. Use as an async context manager."""

    def __init__(self, url: str, key: str | None, *, timeout: float = 600.0) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(base_url=base, headers=headers, timeout=timeout, limits=limits)
        self.url = base
        self._per_word, self._overhead = 1.0, 0.0

    async def __aenter__(self) -> LoadGenerator:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def models(self) -> list[str]:
        """The models this key may use; also the check that the server is there and knows the key."""
        try:
            response = await self._client.get("/v1/models")
        except httpx.HTTPError as error:
            raise UpstreamError(
                f"{self.url} can't be reached ({error})", hint="is it running? try `wootz up`"
            ) from None
        if response.status_code == 401:
            raise AuthenticationError(f"{self.url} refuses this key", hint="give one with --key or WOOTZ_API_KEY")
        if response.status_code != 200:
            raise UpstreamError(f"{self.url}/v1/models answered {response.status_code}")
        return [model["id"] for model in response.json()["data"]]

    async def calibrate(self, model: str, input_len: int) -> None:
        """Learn how many words make a prompt of ``input_len`` tokens for this model's tokenizer and template."""
        few, many = 16, 16 + max(input_len, 16)
        counts = []
        for words in (few, many):
            sample = await self.request(model, " ".join(random.choices(WORDS, k=words)), 1)
            if sample.error:
                raise UpstreamError(f"a first request failed: {sample.error}")
            counts.append(sample.prompt_tokens)
        self._per_word = max((counts[1] - counts[0]) / (many - few), 0.1)
        self._overhead = counts[0] - few * self._per_word

    def prompt(self, input_len: int) -> str:
        return " ".join(random.choices(WORDS, k=max(1, round((input_len - self._overhead) / self._per_word))))

    async def level(
        self, model: str, *, concurrency: int, requests: int, input_len: int, output_len: int, done: Callable[[], None]
    ) -> Level:
        """Send ``requests`` requests, ``concurrency`` of them at any time; ``done`` is called as each one ends."""
        left = iter(range(requests))
        samples: list[Sample] = []

        async def client() -> None:
            for _ in left:
                samples.append(await self.request(model, self.prompt(input_len), output_len))
                done()

        async with watch(self._client, model) as counts:
            start = time.perf_counter()
            await asyncio.gather(*(client() for _ in range(concurrency)))
            wall = time.perf_counter() - start
        return Level(concurrency, wall, samples, counts.summary())

    async def request(self, model: str, prompt: str, output_len: int) -> Sample:
        """One streamed answer of exactly ``output_len`` tokens (where the server honours ``ignore_eos``)."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": output_len,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sample = Sample()
        start = previous = time.perf_counter()
        try:
            async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    sample.error = f"{response.status_code}: {(await response.aread()).decode(errors='replace')[:300]}"
                    return sample
                async for line in response.aiter_lines():
                    if not line.startswith("data:") or line == "data: [DONE]":
                        continue
                    event = json.loads(line[5:])
                    if "error" in event:
                        sample.error = str(event["error"].get("message"))
                        return sample
                    if any(choice["delta"].get("content") for choice in event["choices"]):
                        now = time.perf_counter()
                        if not sample.time_to_first_token:
                            sample.time_to_first_token = now - start
                        else:
                            sample.inter_token_latencies.append(now - previous)
                        previous = now
                    if usage := event.get("usage"):
                        sample.prompt_tokens = usage["prompt_tokens"]
                        sample.completion_tokens = usage["completion_tokens"]
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            sample.error = f"{type(error).__name__}: {error}"
            return sample
        sample.end_to_end = time.perf_counter() - start
        if not sample.completion_tokens:
            sample.error = "the stream ended without usage"
        return sample


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """``{"mean", "p50", "p95", "p99"}`` with linear interpolation between ranks (numpy's default)."""
    ordered = sorted(values)
    result = {"mean": _mean(ordered)}
    for percent in PERCENTILES:
        rank = (len(ordered) - 1) * percent / 100
        low, high = int(rank), min(int(rank) + 1, len(ordered) - 1)
        result[f"p{percent}"] = ordered[low] + (ordered[high] - ordered[low]) * (rank - low) if ordered else 0.0
    return result


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
