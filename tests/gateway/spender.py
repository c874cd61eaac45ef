"""A gateway in a process of its own that sends itself many requests at once. Run by `test_limits_on_redis.py`.

python spender.py DATABASE_URL REDIS_URL TOKEN REQUESTS SEED AT_ONCE
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from serving import ScriptedModel

from wootz.core import Config, PriceConfig, RateLimitError, UpstreamError
from wootz.core.sections import LimitsConfig
from wootz.core.wire import ChatRequest, Usage, new_id
from wootz.gateway import Gateway, KeyStore
from wootz.gateway.limits import redis as redis_module
from wootz.store import Database
from wootz.telemetry import Ledger, Telemetry

PRICE = PriceConfig(input=Decimal("0.123456"), output=Decimal("7.654321"))


class Unsteady(ScriptedModel):
    """Answers of any length up to what was allowed; some break off."""

    def __init__(self, seed: int) -> None:
        super().__init__("m", ["a", "b"])
        self.random = random.Random(seed)

    async def chat(self, request: ChatRequest):
        written = self.random.randint(1, request.max_tokens or 1)
        await asyncio.sleep(self.random.random() / 50)
        if written % 7 == 0:
            raise UpstreamError("broke off")
        self.usage = Usage(prompt_tokens=9, completion_tokens=written, total_tokens=9 + written)
        async for chunk in super().chat(request):
            yield chunk


async def main(database_url: str, redis_url: str, token: str, num_requests: int, seed: int, at_once: int) -> None:
    database = Database(database_url)
    keys, telemetry = KeyStore(database), Telemetry(Ledger(database), {"m": PRICE})
    config = Config(limits=LimitsConfig(redis=redis_url))
    gateway = Gateway(config, {"m": Unsteady(seed)}, keys, telemetry)
    key = await keys.authenticate(token)
    outcomes, places = Counter[str](), asyncio.Semaphore(at_once)

    async def ask() -> None:
        request = ChatRequest.model_validate(
            {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40}
        )
        async with places:
            try:
                async for _ in gateway.chat(key, request, request_id=new_id("req")):
                    pass
                outcomes["answered"] += 1
            except RateLimitError as error:
                outcomes[str(error.code)] += 1
            except UpstreamError:
                outcomes["failed"] += 1

    await asyncio.gather(*(ask() for _ in range(num_requests)))
    await gateway.limits.counters.close()
    await telemetry.close()
    await database.close()
    print(dict(outcomes))


if __name__ == "__main__":
    # Several such processes on a busy machine hold each other up; Redis is not gone.
    redis_module.TIMEOUT_SECONDS = 120.0
    asyncio.run(main(*sys.argv[1:4], *map(int, sys.argv[4:7])))
