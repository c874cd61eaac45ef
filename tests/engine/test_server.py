"""A real engine process on a real socket."""

from __future__ import annotations

import asyncio
import inspect
import signal
import stat
import subprocess
import sys
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest
from one_by_one import one_at_a_time, tiny_engine, tiny_model
from tiny_model import write_tiny_model

from wootz.core import BadRequestError, EngineConfig, NotFoundError, RateLimitError, UnavailableError, WootzError
from wootz.engine import Engine, EngineClient, SamplingParams, connection, protocol
from wootz.engine.protocol import Finished, Hello, Output, Submit
from wootz.engine.server import Server
from wootz.models import Decoder

HELLO = Hello("tiny", 0, 0, 256, "float64", "cpu", False)
LONG = SamplingParams(temperature=0, max_tokens=1500, ignore_eos=True)


def command(model: Path, socket: Path, config: str = '{"cache_bytes": 8388608, "threads": 1}') -> list[str]:
    module = [sys.executable, "-m", "wootz.engine.server"]
    return [*module, "--name", "tiny", "--path", str(model), "--socket", str(socket), "--config", config]


@pytest.fixture
def socket(tmp_path) -> Path:
    return tmp_path / "engine.sock"


@asynccontextmanager
async def running(model: Path, socket: Path, **options):
    process = await asyncio.create_subprocess_exec(*command(model, socket, **options), stderr=subprocess.PIPE)
    client = EngineClient(socket)
    client.start()
    try:
        await eventually(lambda: client.ready)
        yield client, process
    finally:
        await client.close()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def eventually(condition):
    """Until it holds; ``condition`` may be a coroutine function. What never holds fails the test."""
    async with asyncio.timeout(60):
        while True:
            result = condition()
            if result := (await result if inspect.isawaitable(result) else result):
                return result
            await asyncio.sleep(0.02)


async def answer(client: EngineClient, **request) -> tuple[str, list[Output], Finished]:
    outputs, finished = [], None
    async for event in client.generate(**request):
        if isinstance(event, Output):
            outputs.append(event)
        else:
            finished = event
    assert finished is not None
    return "".join(output.text for output in outputs), outputs, finished


async def waiting_in(client: EngineClient) -> int:
    return (await client.stats()).waiting


async def idle(client: EngineClient) -> protocol.Stats:
    """The engine's counters once it has nothing left to do and every block is free."""

    async def now():
        stats = await client.stats()
        return None if stats.running or stats.waiting or stats.blocks_used else stats

    return await eventually(now)


async def test_a_life_of_an_engine(tiny_folder, socket, tmp_path):
    """One process for many questions: starting it is what takes the time."""
    socket.touch()  # a dead process left its socket
    async with running(tiny_folder, socket) as (client, process):
        hello = client.hello
        assert hello.family == "llama"
        assert hello.max_model_len == 2048
        assert hello.has_chat_template
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600

        # Chat, text and token ids; greedy twice is the same, and the second time the prompt is remembered.
        messages = [{"role": "user", "content": "What is the plan of the house, and what passes between the rooms?"}]
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=1)
        text, outputs, finished = await answer(client, messages=messages, params=params)
        assert finished.completion_tokens == sum(len(output.token_ids) for output in outputs) == 20
        assert outputs[-1].finish_reason == "length"
        assert all(len(output.logprobs) == len(output.token_ids) for output in outputs)
        again, _, finished = await answer(client, messages=messages, params=params)
        assert again == text
        assert finished.cached_tokens >= 16
        text, _, _ = await answer(client, text="the engine", params=params)
        assert text
        await answer(client, token_ids=[5, 6, 7], params=params)

        # Errors are those of the engine, by type, code and parameter.
        with pytest.raises(BadRequestError) as error:
            await answer(client, token_ids=[5] * 4000, params=params)
        assert (error.value.code, error.value.param) == ("context_length_exceeded", "prompt")
        with pytest.raises(BadRequestError) as error:
            await answer(client, text="x", params=SamplingParams(top_p=7.0))
        assert error.value.param == "top_p"
        with pytest.raises(BadRequestError):
            await answer(client, token_ids=[])

        # Many at once, each with the answer it gets alone.
        texts = ["the engine", "a request", "the house", "one model"]
        seeded = SamplingParams(temperature=1, seed=4, max_tokens=30, ignore_eos=True)
        alone = [(await answer(client, text=text, params=seeded))[0] for text in texts]
        together = await asyncio.gather(*(answer(client, text=text, params=seeded) for text in texts * 8))
        assert [text for text, _, _ in together] == alone * 8

        # Closing the iterator cancels.
        before = (await client.stats()).requests_cancelled
        async with aclosing(client.generate(text="the engine", params=LONG)) as events:
            await anext(events)
        assert (await idle(client)).requests_cancelled == before + 1

        # A caller that vanishes leaves nothing running.
        before += 1
        other = EngineClient(socket)
        other.start()
        await eventually(lambda: other.ready)
        streams = [other.generate(text="the engine", params=LONG) for _ in range(30)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        await other.close()
        assert (await idle(client)).requests_cancelled == before + 30
        for stream in streams:
            await stream.aclose()

        # A caller that talks nonsense is shown the door; nobody else notices.
        reader, writer = await asyncio.open_unix_connection(str(socket))
        await protocol.read_message(reader, protocol.decode_from_engine)
        writer.write(b"\x00\x00\x00\x03abc")
        assert await reader.read() == b""
        writer.close()
        assert await answer(client, text="the engine", params=params)

        # Who asks a sleeping engine waits; new weights are new answers, and the old ones come back with the old file.
        await client.sleep(2)
        waiting = asyncio.create_task(answer(client, text="the engine", params=params, priority=-1, user="ann"))
        assert await eventually(lambda: waiting_in(client)) == 1
        assert (await client.stats()).asleep == 2
        await client.wake()
        text, _, _ = await waiting
        await client.update_weights(str(write_tiny_model(tmp_path / "other", seed=1)))
        assert (await answer(client, text="the engine", params=params))[0] != text
        await client.update_weights(str(tiny_folder))
        assert (await answer(client, text="the engine", params=params))[0] == text
        with pytest.raises(NotFoundError):
            await client.update_weights(str(tmp_path / "nothing"))
        with pytest.raises(BadRequestError) as error:
            await client.sleep(7)
        assert error.value.param == "level"
        with pytest.raises(BadRequestError) as error:
            await answer(client, text="x", priority=1000)
        assert error.value.param == "priority"

        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert not socket.exists()


async def test_a_killed_engine_fails_its_requests_and_is_found_again(tiny_folder, socket):
    async with running(tiny_folder, socket) as (client, process):
        stream = client.generate(text="the engine", params=LONG)
        await anext(stream)
        process.kill()
        with pytest.raises(UnavailableError) as error:
            async for _ in stream:
                pass
        assert (error.value.code, error.value.retryable) == ("engine_restarted", True)
        await eventually(lambda: not client.ready)
        with pytest.raises(UnavailableError):
            await answer(client, text="x")
        second = await asyncio.create_subprocess_exec(*command(tiny_folder, socket))
        try:
            await eventually(lambda: client.ready)
            assert await answer(client, text="the engine", params=SamplingParams(max_tokens=3))
        finally:
            second.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(second.wait(), 10) == 0


async def test_a_full_queue_refuses_for_now(tiny_folder, socket):
    config = '{"cache_bytes": 8388608, "threads": 1, "max_running": 2, "max_waiting": 3}'
    async with running(tiny_folder, socket, config=config) as (client, _):
        short = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        flood = [asyncio.create_task(answer(client, text="the", params=short)) for _ in range(12)]
        results = await asyncio.gather(*flood, return_exceptions=True)
        refused = [result for result in results if isinstance(result, RateLimitError)]
        answered = [result for result in results if isinstance(result, tuple)]
        assert refused
        assert refused[0].code == "queue_full"
        assert len(answered) == 12 - len(refused) >= 3
        await idle(client)


@asynccontextmanager
async def in_this_process(engine: Engine, socket: Path):
    """The server around an engine of the test's own making."""
    around = Server(engine, HELLO)
    listener = await asyncio.start_unix_server(around.talk, str(socket))
    client = EngineClient(socket)
    client.start()
    try:
        await eventually(lambda: client.ready)
        yield client
    finally:
        await client.close()
        listener.close()
        await eventually(lambda: not engine.has_work)


async def test_a_step_that_fails_fails_its_requests_and_no_others(socket):
    class Cursed(Decoder):
        """Raises when it meets token 13."""

        def forward(self, token_ids_T, positions_T, context):
            if 13 in token_ids_T.tolist():
                raise RuntimeError("a step failed, as this test wants it to")
            return super().forward(token_ids_T, positions_T, context)

    model = Cursed(tiny_model().config).double()
    model.load_state_dict(tiny_model().state_dict())
    engine = Engine(model, config=EngineConfig(cache_bytes=2**20, max_running=3))
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logit_bias={13: -100.0})
    async with in_this_process(engine, socket) as client:
        for _ in range(4):
            good, bad = await asyncio.gather(
                answer(client, token_ids=[1, 2, 3], params=params),
                answer(client, token_ids=[1, 13, 3], params=SamplingParams(n=2)),
                return_exceptions=True,
            )
            assert isinstance(bad, WootzError)
            assert bad.status == 500
            if isinstance(good, WootzError):  # it was in the same step
                assert good.status == 500
            _, outputs, _ = await answer(client, token_ids=[1, 2, 3], params=params)
            assert [[token for output in outputs for token in output.token_ids]] == one_at_a_time([1, 2, 3], params)
            await idle(client)
            engine.scheduler.check_integrity()


async def test_a_caller_that_never_reads_is_dropped(socket, monkeypatch):
    monkeypatch.setattr(connection, "MAX_UNREAD_BYTES", 2**18)
    engine = tiny_engine(num_blocks=400)
    async with in_this_process(engine, socket) as client:
        _, writer = await asyncio.open_unix_connection(str(socket), limit=64)
        params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True, logprobs=37)
        for number in range(60):
            writer.write(protocol.frame(Submit(str(number), params, token_ids=[5, 6])))
        stats = await eventually(lambda: cancelled(client))
        assert stats.requests_cancelled > 0
        assert await answer(client, token_ids=[1, 2], params=SamplingParams(max_tokens=2))
        await idle(client)
        writer.close()


async def cancelled(client: EngineClient):
    stats = await client.stats()
    return stats if stats.requests_cancelled else None


@pytest.mark.parametrize(
    "content",
    [b"", *(pytest.param(bad, marks=pytest.mark.slow) for bad in (b"GGUF\x03\x00\x00\x00garbage", b"not a model"))],
)
def test_a_broken_model_is_one_line(tmp_path, socket, content):
    model = tmp_path / "broken.gguf"
    model.write_bytes(content)
    done = subprocess.run(command(model, socket), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "broken.gguf" in done.stderr
    assert not socket.exists()


def test_a_wrong_configuration_is_one_line(tiny_folder, socket):
    done = subprocess.run(
        command(tiny_folder, socket, '{"block_size": 0}'), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "engine.block_size" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
