"""The engine process: one model behind a Unix socket.

    python -m wootz.engine.server --name NAME --path PATH --socket SOCKET [--config JSON] [--prompts SOCKET]

Two threads share the work. The *event loop* reads messages, has prompts tokenized (in a small pool of threads, so that
a long one holds up nobody), and writes answers. The *step thread* owns the engine and does nothing but step; what it
should do besides (take a request, drop one) comes to it as a call in a queue, which it empties before each step.

What can go wrong, and what happens then:

- A connection ends: all its requests are cancelled. A reader that leaves `MAX_UNREAD_BYTES` lying about is dropped, so
  it neither holds up the engine nor fills its memory.
- A step raises: the requests that were running fail with status 500 and their blocks are freed; the others never
  notice. `MOST_FAILED_STEPS` in a row mean that the device or the weights are broken: the process ends with exit code
  70, for its supervisor to start it again.
- The model can't be loaded: one line on stderr, exit code 2.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from pydantic import ValidationError

from wootz.core import BadRequestError, ConfigError, EngineConfig, UnsupportedError, WootzError
from wootz.engine import protocol
from wootz.engine.arithmetic import arithmetic_of
from wootz.engine.client import EngineClient
from wootz.engine.connection import Connection, failed
from wootz.engine.handover import PromptAsker, read_prompt
from wootz.engine.parallel.lost import RankLostError
from wootz.engine.protocol import (
    Cancel,
    Counted,
    CountTokens,
    Done,
    Encode,
    Failed,
    Finished,
    FromEngine,
    GetStats,
    Hello,
    LoadAdapter,
    Order,
    Prefill,
    Sleep,
    Submit,
    UnloadAdapter,
    UpdateWeights,
    Wake,
)

if TYPE_CHECKING:
    from wootz.engine.engine import Engine
    from wootz.engine.generation import Event
    from wootz.engine.sequence import Request

MOST_FAILED_STEPS = 3
BROKEN_EXIT_CODE = 70

log = logging.getLogger("wootz.engine")


class Caller(Connection):
    """``requests`` are those it waits for: being tokenized (a task), or in the engine."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        super().__init__(writer)
        self.requests: dict[str, asyncio.Task[None] | Request] = {}


class Server:
    """The event loop's side."""

    def __init__(self, engine: Engine, hello: Hello, prompts: Path | None = None) -> None:
        self.engine, self.hello = engine, hello
        self.owners: dict[Request, Caller] = {}
        self.changes = set[asyncio.Task[None]]()
        self.tokenizing = ThreadPoolExecutor(2, thread_name_prefix="tokenize")
        if engine.tokenizer is not None:
            self.tokenizing.submit(engine.tokenizer.encode, "")  # A large vocabulary takes seconds to lay out.
        self.steps = StepThread(engine, asyncio.get_running_loop(), self.deliver, self.fail)
        self.steps.start()
        self.prompts = None if prompts is None else PromptAsker(engine, self.steps, EngineClient(prompts))
        """Where long prompts are computed, if that is another process."""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection's life."""
        connection = Caller(writer)
        connection.send(self.hello)
        try:
            while True:
                match await protocol.read_message(reader, protocol.decode_to_engine):
                    case Submit(request_id=id) as submit:
                        if id in connection.requests:
                            raise protocol.ProtocolError(f"request id {id!r} twice")
                        connection.requests[id] = asyncio.create_task(self.submit(connection, submit))
                    case Sleep() | Wake() | UpdateWeights() as order:
                        self.steps.call(partial(self.steps.carry_out, order, connection.send))
                    case Encode(request_id=id):
                        error = UnsupportedError("this model writes, it has no embeddings", param="model")
                        connection.send(failed(id, error))
                    case CountTokens(request_id=id) as count:
                        connection.requests[id] = asyncio.create_task(self.count(connection, count))
                    case Prefill(request_id=id) as prefill:
                        connection.requests[id] = asyncio.create_task(read_prompt(self, connection, prefill))
                    case Cancel(request_id=id):
                        if request := connection.requests.pop(id, None):
                            self.drop(request)
                    case LoadAdapter() | UnloadAdapter() as change:
                        self.changes.add(task := asyncio.create_task(self.change_adapter(connection, change)))
                        task.add_done_callback(self.changes.discard)
                    case GetStats():
                        connection.send(self.engine.stats())
        except (EOFError, OSError):
            pass
        except protocol.ProtocolError as error:
            log.warning("a caller broke the protocol: %s; its connection is closed", error)
        finally:
            for request in connection.requests.values():
                self.drop(request)
            connection.requests.clear()
            writer.close()

    async def submit(self, connection: Caller, submit: Submit) -> None:
        id, loop = submit.request_id, asyncio.get_running_loop()
        prompt = next((p for p in (submit.messages, submit.text, submit.token_ids) if p is not None), [])
        make_request = partial(
            self.engine.make_request,
            prompt,
            submit.params,
            id=id,
            priority=submit.priority,
            user=submit.user,
            tools=submit.tools,
            adapter=submit.adapter,
        )
        try:
            request = await loop.run_in_executor(self.tokenizing, make_request)
        except Exception as error:
            if not isinstance(error, WootzError):
                log.exception("a prompt could not be tokenized")
                error = WootzError("the prompt could not be tokenized")
            del connection.requests[id]
            connection.send(failed(id, error))
        else:
            if self.prompts is not None:
                await self.prompts.ask(request.prompt_token_ids)
            connection.requests[id] = request
            self.owners[request] = connection
            self.steps.call(partial(self.steps.submit, request))

    async def count(self, connection: Caller, count: CountTokens) -> None:
        num_tokens = partial(self.engine.intake.num_tokens, count.messages, count.tools, count.adapter)
        try:
            number = await asyncio.get_running_loop().run_in_executor(self.tokenizing, num_tokens)
            answer: FromEngine = Counted(count.request_id, number)
        except Exception as error:
            if not isinstance(error, WootzError):
                log.exception("a prompt could not be tokenized")
                error = WootzError("the prompt could not be tokenized")
            answer = failed(count.request_id, error)
        del connection.requests[count.request_id]
        connection.send(answer)

    async def change_adapter(self, connection: Caller, change: LoadAdapter | UnloadAdapter) -> None:
        """Files are read here; the step thread puts the adapter in, or out, between two steps."""
        adapters, loop = self.engine.adapters, asyncio.get_running_loop()
        done = asyncio.Event()
        try:
            if isinstance(change, LoadAdapter):
                read = await loop.run_in_executor(self.tokenizing, adapters.read, change.path)
                make_change = partial(adapters.register, change.name, change.path, read)
            else:
                make_change = partial(adapters.forget, adapters.find(change.name).name)
        except WootzError as error:
            if isinstance(error, ConfigError):  # of the files, whose path came with the request
                error = BadRequestError(str(error), param="lora_path")
            connection.send(failed(change.request_id, error))
            return

        def change_between_steps() -> None:
            make_change()
            loop.call_soon_threadsafe(done.set)

        self.steps.call(change_between_steps)
        await done.wait()
        connection.send(Done(change.request_id))

    def drop(self, request: asyncio.Task[None] | Request) -> None:
        """Nobody waits for it any more."""
        if isinstance(request, asyncio.Task):
            request.cancel()
        else:
            del self.owners[request]
            self.steps.call(partial(self.engine.cancel, request))

    def deliver(self, events: list[Event]) -> None:
        """Send what a step brought, to each connection in one write."""
        messages: dict[Caller, list[FromEngine]] = {}
        for request, event in events:
            if connection := self.owners.get(request):
                messages.setdefault(connection, []).append(event)
                if isinstance(event, Finished | Failed):
                    self.forget(request)
        for connection, batch in messages.items():
            connection.send(*batch)

    def fail(self, requests: list[Request], error: WootzError) -> None:
        for request in requests:
            if connection := self.owners.get(request):
                self.forget(request)
                connection.send(failed(request.id, error))

    def forget(self, request: Request) -> None:
        del self.owners.pop(request).requests[request.id]


class StepThread(threading.Thread):
    """The engine's side. ``deliver`` and ``fail`` are called in the event loop."""

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[list[Event]], None],
        fail: Callable[[list[Request], WootzError], None],
    ) -> None:
        super().__init__(name="step", daemon=True)
        self.engine, self.loop, self.deliver, self.fail = engine, loop, deliver, fail
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.num_failed_steps = 0

    def call(self, call: Callable[[], None]) -> None:
        """Have the step thread do this before its next step."""
        self.calls.put(call)

    def submit(self, request: Request) -> None:
        try:
            self.engine.submit(request)
        except WootzError as error:
            self.loop.call_soon_threadsafe(self.fail, [request], error)

    def carry_out(self, order: Order, send: Callable[[FromEngine], None]) -> None:
        """Between two steps, however long it takes; ``send`` is called in the event loop."""
        try:
            match order:
                case Sleep():
                    self.engine.sleep(order.level)
                case Wake():
                    self.engine.wake()
                case UpdateWeights():
                    self.engine.load_weights(Path(order.path))
            answer = Done(order.request_id)
        except Exception as error:
            if not isinstance(error, WootzError):
                log.exception("%s failed", type(order).__name__)
                error = WootzError("the engine failed to do this")
            answer = failed(order.request_id, error)
        self.loop.call_soon_threadsafe(send, answer)

    def run(self) -> None:
        try:
            while True:
                while not self.calls.empty() or not self.engine.has_work:
                    self.calls.get()()
                self.step()
        except BaseException:
            log.critical("the engine is broken and ends", exc_info=True)
            os._exit(BROKEN_EXIT_CODE)

    def step(self) -> None:
        try:
            events = self.engine.step()
        except RankLostError:
            raise
        except Exception:
            self.num_failed_steps += 1
            if self.num_failed_steps == MOST_FAILED_STEPS:
                raise
            log.exception("a step failed")
            error = WootzError("the engine failed while it worked on this request")
            self.loop.call_soon_threadsafe(self.fail, self.engine.drop_running(), error)
        else:
            self.num_failed_steps = 0
            if events:
                self.loop.call_soon_threadsafe(self.deliver, events)


# --- the process ----------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m wootz.engine.server", description="One model behind a socket.")
    parser.add_argument("--name", required=True, help="what users call the model; for messages")
    parser.add_argument("--path", required=True, type=Path, help="model folder or GGUF file")
    parser.add_argument("--socket", required=True, type=Path, help="Unix socket to listen on")
    parser.add_argument("--adapters", default="{}", help="JSON of names and folders of adapters in PEFT's format")
    parser.add_argument("--config", default="{}", help="JSON of the engine section of the configuration")
    parser.add_argument("--prompts", type=Path, help="socket of the engine that computes prompts for this one")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        if os.environ.get("RANK", "0") != "0":  # torchrun gives every rank of an engine the same command
            from wootz.engine.parallel.worker import work

            return work(arguments.path, _read_config(arguments.config))
        server = _load(arguments.path, arguments.config, json.loads(arguments.adapters), arguments.prompts)
        listener = _listen(arguments.socket)
    except WootzError as error:
        print(f'model "{arguments.name}": {error}'.replace("\n", " "), file=sys.stderr)
        sys.exit(2)
    asyncio.run(_serve(server, listener))


class Talks(Protocol):
    """A server's side of the socket. Made in the event loop that it lives in."""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...


def _read_config(config_json: str) -> EngineConfig:
    try:
        return EngineConfig.model_validate_json(config_json)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"engine.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _load(path: Path, config_json: str, adapters: dict[str, str], prompts: Path | None) -> Callable[[], Talks]:
    # How long OpenMP's threads wait for each other awake, read when PyTorch is first imported. The default is so long
    # that one busy process beside us costs a multiple of its share; this short, it costs its share.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from wootz.engine import setup
    from wootz.engine.encoding import EncoderServer
    from wootz.engine.engine import Engine
    from wootz.engine.parallel.model import ParallelModel
    from wootz.models.encoder import Encoder

    config = _read_config(config_json)
    model, tokenizer = setup.load(path, None, config)
    if isinstance(model, Encoder) and adapters:
        raise ConfigError("an encoder takes no adapters")
    if isinstance(model, Encoder):
        return partial(EncoderServer, model, tokenizer)
    engine = Engine(model, config=config, tokenizer=tokenizer, path=path, adapters=adapters)
    if isinstance(model, ParallelModel):
        model.ranks.watch(_end)
    hello = Hello(
        family=model.config.family,
        num_parameters=model.num_parameters,
        vocab_size=model.config.vocab_size,
        max_model_len=engine.max_model_len,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        has_chat_template=tokenizer is not None and tokenizer.chat_template is not None,
        defaults=setup.sampling_defaults(path),
        tool_format=engine.planner.format.name if engine.planner else None,
        arithmetic=arithmetic_of(model, model.dtype, setup.cache_format(model, config)),
    )
    return partial(Server, engine, hello, prompts)


def _end(reason: str) -> NoReturn:
    """What is in flight ends in a retryable error, because the connections end."""
    log.critical("%s; so does the engine", reason)
    os._exit(BROKEN_EXIT_CODE)


def _listen(path: Path) -> socket.socket:
    """A socket only its owner may use. A file that a dead process left in its place is replaced."""
    listener = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
    except OSError as error:
        raise ConfigError(f"{path}: can't listen here ({error.strerror or error})") from None
    finally:
        os.umask(umask)
    return listener


async def _serve(make_server: Callable[[], Talks], listener: socket.socket) -> NoReturn:
    """Until SIGTERM or SIGINT, and then not a moment longer: a step under way is not waited for."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = make_server()
    await asyncio.start_unix_server(server.talk, sock=listener)
    await stopping.wait()
    os.unlink(listener.getsockname())
    os._exit(0)


if __name__ == "__main__":
    main()
