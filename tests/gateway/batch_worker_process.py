"""A batch worker in a process of its own, to be killed: ``python batch_worker_process.py HOME``."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, BinaryIO

from wootz.core import Config, LanguageModel, ModelConfig
from wootz.core.wire import ChatChunk, ChatRequest, ChunkChoice, Delta, Usage
from wootz.gateway import Gateway
from wootz.gateway.surfaces.batch_lines import check_file
from wootz.gateway.surfaces.batch_worker import BatchWorker
from wootz.gateway.surfaces.file_store import FileStore
from wootz.store import Database
from wootz.telemetry import Ledger, Telemetry


class SlowModel(LanguageModel):
    name = "slow"

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        await asyncio.sleep(0.02)
        said = ChunkChoice(delta=Delta(content=request.messages[0].text), finish_reason="stop")
        yield ChatChunk(id="c", model=self.name, choices=[said])
        yield ChatChunk(id="c", model=self.name, choices=[], usage=Usage(prompt_tokens=1, completion_tokens=1))


def make_gateway(home: Path) -> Gateway:
    config = Config(home=home, models={"unused": ModelConfig(source="file:unused")})
    return Gateway(config, {"slow": SlowModel()}, None, Telemetry(Ledger(Database(config.database_url)), {}))


async def prepare(home: Path, num_lines: int) -> tuple[Gateway, dict[str, Any]]:
    """A gateway without accounts, and a batch that waits."""
    gateway = make_gateway(home)
    await gateway.database.migrate()
    lines = [
        {
            "custom_id": f"line {number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "slow", "messages": [{"role": "user", "content": str(number)}]},
        }
        for number in range(num_lines)
    ]
    content = io.BytesIO("\n".join(map(json.dumps, lines)).encode())

    def check(file: BinaryIO) -> None:
        check_file(file, 2**20)

    file = await FileStore.of(gateway).add("", content, filename="lines.jsonl", purpose="batch", check=check)
    batch = {
        "id": "batch_1",
        "status": "validating",
        "created_at": 1,
        "expires_at": 2**40,
        "endpoint": "/v1/chat/completions",
        "input_file_id": file.id,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
    }
    await BatchWorker(gateway).batches.create("", batch)
    return gateway, batch | {"owner": ""}


if __name__ == "__main__":
    asyncio.run(BatchWorker(make_gateway(Path(sys.argv[1])), lease=0.5, poll=0.05).run())
