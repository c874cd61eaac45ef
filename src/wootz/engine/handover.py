"""Prompts computed by one engine process, answers by another (Splitwise, arXiv 2311.18677; DistServe, 2401.09670).

Reading prompts is bound by arithmetic, writing answers by memory, and a step that does both makes every answer under
way wait for the prompt. Apart, each process does one of them. What passes between them is blocks of keys and values:

1. The answering engine gets a request as ever. Before it queues it, it looks how many of the prompt's leading blocks it
   has, and asks the other engine for those behind them (`Prefill`).
2. That engine computes the prompt as a request of its own, with its own prefix cache, and sends full blocks, a few to a
   message (`CacheBlocks`).
3. The answering engine puts them into its cache under the prompt's tokens, as if an earlier request had left them.
   Then it queues the request, which finds them like any shared prefix, and computes the few tokens that are left.

So nothing downstream knows of it. A block that was evicted on either side meanwhile, or an engine that is away, costs
time and no token: what is missing is computed here. Both have to hold the same weights, which `fingerprint` compares.

PyTorch is imported only when something moves: the server imports this before it has said how PyTorch's threads wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from wootz.core import BadRequestError, WootzError
from wootz.engine.client import EngineClient
from wootz.engine.connection import failed
from wootz.engine.protocol import CacheBlocks, Failed, Finished, FromEngine, Prefill, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from wootz.engine.engine import Engine
    from wootz.engine.sequence import Request
    from wootz.engine.server import Caller, StepThread

PIECE_BYTES = 4 * 2**20
"""Of one message, unless one block is larger."""
LEAST_BLOCKS = 2
"""Fewer that are missing are computed here: the way there and back takes longer."""

Result = TypeVar("Result")

log = logging.getLogger("wootz.engine")


def fingerprint(engine: Engine) -> str:
    """Equal for two engines whose blocks mean the same: same weights as far as a sample of them tells, dtype, size."""
    from torch import nn

    model = engine.model
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(dict(getattr(model.config, "raw", {})), sort_keys=True, default=str).encode())
    digest.update(f"{model.dtype} {engine.pool.block_size} {engine.max_model_len}".encode())
    for module in model.modules():
        # Projections may be packed, and are large; norms, biases and some rows of the embedding are neither.
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 1 or isinstance(module, nn.Embedding):
                digest.update(_bytes(parameter.detach()[:64]))
    return digest.hexdigest()


class Server(Protocol):
    """What of the engine's server it takes to answer `Prefill`."""

    engine: Engine
    steps: StepThread
    owners: dict[Request, Any]

    def drop(self, request: Any) -> None: ...


class Reading:
    """Owns one request of a server while its prompt is computed. ``over`` is how that ended."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.over: asyncio.Future[Finished | Failed] = asyncio.get_running_loop().create_future()

    def send(self, *messages: FromEngine) -> None:
        for message in messages:
            if isinstance(message, Finished | Failed) and not self.over.done():
                self.over.set_result(message)


async def read_prompt(server: Server, connection: Caller, prefill: Prefill) -> None:
    """The computing side: compute a prompt, and send its blocks. Cancelled, it leaves nothing running."""
    engine, steps, reading = server.engine, server.steps, Reading()
    try:
        if prefill.fingerprint != fingerprint(engine):
            raise BadRequestError("the engine that asks has other weights, another dtype or other blocks")
        params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        request = engine.make_request(prefill.token_ids, params, id=prefill.request_id)
        reading.requests[request.id], server.owners[request] = request, reading
        steps.call(partial(steps.submit, request))
        end = await reading.over
        if isinstance(end, Finished):
            export = partial(export_blocks, engine, prefill.token_ids, prefill.num_blocks)
            blocks = await between_steps(steps, export)
            each = max(1, PIECE_BYTES // max(1, sum(map(len, blocks[0])))) if blocks else 1
            for start in range(0, len(blocks), each):
                first = prefill.num_blocks + start
                connection.send(CacheBlocks(request.id, first, blocks[start : start + each]))
                await connection.writer.drain()
        connection.send(end)
    except WootzError as error:
        connection.send(failed(prefill.request_id, error))
    except OSError:
        pass  # whoever asked is gone
    finally:
        connection.requests.pop(prefill.request_id, None)
        for request in list(reading.requests.values()):
            server.drop(request)


class PromptAsker:
    """The answering side: has long prompts computed elsewhere before they are queued here."""

    def __init__(self, engine: Engine, steps: StepThread, client: EngineClient) -> None:
        self.engine, self.steps, self.client = engine, steps, client
        self.fingerprint = fingerprint(engine)
        self.num_blocks_received = 0
        client.start()

    async def ask(self, token_ids: list[int]) -> None:
        """Returns when the prompt's blocks are here, or it is known that they won't come."""
        size = self.engine.pool.block_size
        known = await between_steps(self.steps, lambda: len(self.engine.pool.known_blocks(token_ids)))
        if (len(token_ids) - 1) // size - known < LEAST_BLOCKS or not self.client.ready:
            return
        try:
            async with aclosing(self.client.prefill(token_ids, known, self.fingerprint)) as messages:
                async for message in messages:
                    if isinstance(message, CacheBlocks):
                        take = partial(import_blocks, self.engine, token_ids, message.first, message.blocks)
                        self.num_blocks_received += await between_steps(self.steps, take)
        except WootzError as error:
            log.warning("a prompt is computed here, not by the engine for prompts: %s", error)
        except Exception:
            log.exception("blocks from the engine for prompts could not be taken; the prompt is computed here")


# --- between steps --------------------------------------------------------------------------------------------


async def between_steps(steps: StepThread, call: Callable[[], Result]) -> Result:
    """What ``call`` returns, or raises, in the thread that owns the engine."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    steps.call(run)
    return await asyncio.wrap_future(future)


def export_blocks(engine: Engine, token_ids: list[int], num_skipped: int) -> list[list[bytes]]:
    """The prompt's full blocks that are in the cache, but for the first few; of each, what every layer keeps."""
    blocks = engine.pool.known_blocks(token_ids)[num_skipped:]
    return [[_bytes(layer[block]) for layer in engine.runner.cache.layers] for block in blocks]


def import_blocks(engine: Engine, token_ids: list[int], first: int, blocks: list[list[bytes]]) -> int:
    """Put blocks into the cache so that whoever has these tokens finds them; returns how many were new here.

    Those before ``first`` must be here still, and there must be room: otherwise nothing is taken.
    """
    import torch

    pool, cache = engine.pool, engine.runner.cache
    end = (first + len(blocks)) * pool.block_size
    if len(pool.known_blocks(token_ids)) < first or (admitted := pool.admit(token_ids[: end + 1])) is None:
        return 0
    table, num_shared = admitted
    num_there = num_shared // pool.block_size
    for number in range(num_there, first + len(blocks)):
        for layer, data in zip(cache.layers, blocks[number - first], strict=True):
            target = layer[table.blocks[number]]
            received = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(target.dtype)
            target.copy_(received.view(target.shape))
    pool.publish(table, token_ids, end)
    pool.release(table)
    return first + len(blocks) - num_there


def _bytes(tensor: Tensor) -> bytes:
    import torch

    return tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes()
