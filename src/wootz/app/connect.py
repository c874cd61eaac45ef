"""Models for one person at a terminal, by name: those of a server, or one that an engine of their own runs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from wootz.app.load import LoadGenerator
from wootz.app.process import engine_process
from wootz.core import Config, LanguageModel, NotFoundError, WootzError
from wootz.engine.client import EngineClient
from wootz.providers import Endpoint, EngineModel, OpenAICompatibleModel


@asynccontextmanager
async def models_of_server(url: str, key: str | None) -> AsyncIterator[dict[str, LanguageModel]]:
    """Every model of an OpenAI-compatible server that the key may use; at least one, or `NotFoundError`."""
    async with AsyncExitStack() as stack:
        async with LoadGenerator(url, key) as server:
            names = await server.models()
        models: dict[str, LanguageModel] = {}
        for name in names:
            model = OpenAICompatibleModel(Endpoint(name, f"{server.url}/v1", key))
            stack.push_async_callback(model.close)
            models[name] = model
        if not models:
            raise NotFoundError(f"{url} has no model that this key may use")
        yield models


@asynccontextmanager
async def local_model(config: Config, path: Path) -> AsyncIterator[dict[str, LanguageModel]]:
    """The model at ``path``, run by an engine process that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="wootz-", ignore_cleanup_errors=True) as folder:
        socket = Path(folder) / "0.sock"
        child = engine_process(path.stem, path, socket, config.engine)
        client = EngineClient(socket)
        await child.start(lambda line: None)
        client.start()
        ended = asyncio.create_task(child.wait())
        try:
            while not client.ready:
                if ended.done():
                    raise WootzError(f"{path} can't be loaded: {child.last_line}")
                await asyncio.sleep(0.05)
            yield {path.stem: EngineModel(path.stem, client)}
        finally:
            await client.close()
            await child.stop(1.0)
            await ended
