"""The HTTP client that all agents share, with the patience that each of them would forget to write.

    client = AsyncOpenAI(base_url="https://gateway/v1", api_key=key, http_client=patient_client(), max_retries=0)

A 429 or 503, or a connection that was not made, is tried again: after what ``Retry-After`` asks for, else after an
exponentially growing wait with full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
No request is sent more than `attempts` times, none waits longer than `patience` seconds in all, and where the gateway
asks for more patience than is left (a budget that begins anew tomorrow), its answer is given at once. What may have
been begun (a timed-out answer, a 500) is never repeated: it would be paid for twice.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import httpx

from wootz.providers.upstream_errors import seconds_to_wait

ATTEMPTS, PATIENCE_SECONDS = 6, 60.0
FIRST_BOUND, LONGEST_BOUND = 0.5, 16.0
NOT_BEGUN = {429, 503}


def patient_client(*, attempts: int = ATTEMPTS, patience: float = PATIENCE_SECONDS) -> httpx.AsyncClient:
    """For the ``http_client`` of the official OpenAI and Anthropic clients, whose own ``max_retries`` then is 0."""
    timeout = httpx.Timeout(600.0, connect=10.0)
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=100)
    transport = PatientTransport(httpx.AsyncHTTPTransport(limits=limits), attempts=attempts, patience=patience)
    return httpx.AsyncClient(transport=transport, timeout=timeout)


class PatientTransport(httpx.AsyncBaseTransport):
    """Over any other transport. ``sleep`` and ``draw`` (uniform between two bounds) are for tests to hand in."""

    def __init__(
        self,
        under: httpx.AsyncBaseTransport,
        *,
        attempts: int = ATTEMPTS,
        patience: float = PATIENCE_SECONDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._under, self._attempts, self._patience = under, attempts, patience
        self._sleep, self._draw = sleep, draw

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()  # Once: a body that is a stream could not be sent again.
        waited = 0.0
        for attempt in range(1, self._attempts + 1):
            response, failure, asked_for = None, None, None
            try:
                response = await self._under.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
            if response is not None:
                if response.status_code not in NOT_BEGUN:
                    return response
                asked_for = seconds_to_wait(response.headers.get("retry-after"))
            wait = self._draw(0, min(LONGEST_BOUND, FIRST_BOUND * 2 ** (attempt - 1)))
            if asked_for is not None:
                wait += asked_for  # Never before it; the jitter keeps all who were told the same apart.
            if attempt == self._attempts or waited + wait > self._patience:
                if response is None:
                    raise failure or AssertionError
                return response
            if response is not None:
                await response.aclose()
            await self._sleep(wait)
            waited += wait
        raise AssertionError("at least one attempt")

    async def aclose(self) -> None:
        await self._under.aclose()
