"""Memory is flat: a gateway in a process of its own, many requests streamed and whole, caches on and off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SERVE = """
import asyncio, sys, gc
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from serving import GatewayServer, ScriptedModel
from wootz.core.sections import CachesConfig
from wootz.gateway.caches import Caches
import httpx, psutil, numpy

async def load(server, number):
    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
        async def some(worker):
            for turn in range(number // 8):
                body = {"model": "scripted", "messages": [{"role": "user", "content": f"{worker} {turn}"}]}
                body |= {"stream": bool(turn % 2), "temperature": 0 if turn % 3 else 1}
                answer = await client.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
        await asyncio.gather(*map(some, range(8)))

def forget(server):
    for model in server.gateway.models.values():
        model.asked.clear()

with GatewayServer(Path(sys.argv[1]), lambda: {"scripted": ScriptedModel("scripted")}) as server:
    caches = CachesConfig.model_validate({"exact": {"enabled": True, "max_bytes": 200_000}})
    config = server.gateway.config.model_copy(update={"caches": caches})
    server.gateway.caches = Caches(config, server.gateway.models)
    rounds, per_round, sizes = int(sys.argv[3]), int(sys.argv[4]), []
    for turn in range(rounds):
        asyncio.run(load(server, per_round))
        forget(server)
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss)
    later = numpy.array(sizes[rounds // 3:], float)
    slope, _ = numpy.polyfit(numpy.arange(len(later)) * per_round, later, 1)
    noise = numpy.abs(numpy.diff(later)).mean() / per_round
    print(slope, noise, *sizes)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_the_requests(tmp_path: Path) -> None:
    rounds, per_round = 12, int(os.environ.get("WOOTZ_MEMORY_REQUESTS", "24000")) // 12
    here = str(Path(__file__).parent.parent)
    run = subprocess.run(
        [sys.executable, "-c", SERVE, str(tmp_path), here, str(rounds), str(per_round)],
        capture_output=True, text=True, check=False, timeout=3000,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    slope, noise, *sizes = map(float, run.stdout.split())
    assert slope < max(64.0, 2 * noise), f"{slope:.0f} bytes a request (noise {noise:.0f}): {sizes}"
