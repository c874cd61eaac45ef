"""Prompts computed by one engine, answers by another, over real sockets: the tokens are those of one engine."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from one_by_one import one_at_a_time, tiny_engine, tiny_model

from wootz.core import EngineConfig
from wootz.engine import Engine, EngineClient, SamplingParams, handover
from wootz.engine.protocol import Finished, Hello
from wootz.engine.server import Server

HELLO = Hello("tiny", 0, 0, 256, "float64", "cpu", False)
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@asynccontextmanager
async def pair(folder: Path, prompts: Engine, answers: Engine):
    """Both servers in this process, and a client of the one that answers."""
    reader = Server(prompts, HELLO)
    sockets = [await asyncio.start_unix_server(reader.talk, str(folder / "prompts"))]
    writer = Server(answers, HELLO, folder / "prompts")
    sockets.append(await asyncio.start_unix_server(writer.talk, str(folder / "answers")))
    client = EngineClient(folder / "answers")
    client.start()
    assert writer.prompts is not None
    try:
        async with asyncio.timeout(30):
            while not (client.ready and writer.prompts.client.ready):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield client, writer.prompts, sockets[0]
    finally:
        await client.close()
        await writer.prompts.client.close()
        for socket in sockets:
            socket.close()


async def ask(client: EngineClient, prompt: list[int], params: SamplingParams = GREEDY) -> tuple[list[int], Finished]:
    events = [event async for event in client.generate(token_ids=prompt, params=params)]
    assert isinstance(events[-1], Finished)
    return [token for event in events[:-1] for token in event.token_ids], events[-1]


async def test_answers_are_those_of_one_engine_and_only_missing_blocks_are_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(handover, "PIECE_BYTES", 5000)  # a few blocks to a message
    prompts, answers = tiny_engine(num_blocks=60), tiny_engine(num_blocks=60)
    stem = [(7 * i + 3) % 37 for i in range(50)]
    async with pair(tmp_path, prompts, answers) as (client, asker, _):
        tokens, finished = await ask(client, stem)
        assert tokens == one_at_a_time(stem, GREEDY)[0]
        assert finished.cached_tokens == 48  # all full blocks short of the last token came from elsewhere
        assert asker.num_blocks_received == 12
        assert (prompts.num_prompt_tokens, answers.num_prompt_tokens) == (50, 2)

        # Another prompt with the same beginning: the other engine computes, and sends, what neither has.
        branch = stem[:30] + [5, 4, 3] * 6
        tokens, finished = await ask(client, branch)
        assert tokens == one_at_a_time(branch, GREEDY)[0]
        assert asker.num_blocks_received == 12 + (47 // 4 - 30 // 4)
        assert prompts.num_prompt_tokens == 50 + len(branch) - 28

        # Many at once, sampled, with choices; and a short one, which is not worth the way.
        seeded = SamplingParams(temperature=1, seed=3, max_tokens=6, ignore_eos=True)
        others = [stem[start:] for start in range(1, 20, 3)]
        together = await asyncio.gather(*(ask(client, prompt, seeded) for prompt in others))
        assert [tokens for tokens, _ in together] == [one_at_a_time(prompt, seeded)[0] for prompt in others]
        before = prompts.num_steps
        assert (await ask(client, [9, 8, 7, 6, 5]))[0] == one_at_a_time([9, 8, 7, 6, 5], GREEDY)[0]
        assert prompts.num_steps == before
        for engine in (prompts, answers):
            engine.scheduler.check_integrity()
            assert engine.pool.num_referenced == 0


async def test_without_the_other_engine_prompts_are_computed_here(tmp_path, caplog):
    """One with other weights is refused; one without room for the prompt, or that goes away, is done without."""
    prompt = [(5 * i + 1) % 37 for i in range(40)]
    torch.manual_seed(9)
    other = tiny_model().config.build().double()
    async with pair(tmp_path, tiny_engine(60, other), tiny_engine(60)) as (client, asker, _):  # pyright: ignore
        assert (await ask(client, prompt))[0] == one_at_a_time(prompt, GREEDY)[0]
        assert asker.num_blocks_received == 0
        assert "other weights" in caplog.text
    (tmp_path / "again").mkdir()
    small = tiny_engine(60, max_model_len=60)
    async with pair(tmp_path / "again", small, tiny_engine(60, max_model_len=60)) as (client, asker, socket):
        await asker.client.close()
        socket.close()
        assert (await ask(client, prompt))[0] == one_at_a_time(prompt, GREEDY)[0]
        assert asker.num_blocks_received == 0


def test_blocks_that_have_lost_their_beginning_are_not_taken():
    here, there = tiny_engine(num_blocks=30), tiny_engine(num_blocks=30)
    prompt = [(5 * i + 1) % 37 for i in range(40)]
    there.generate([prompt], SamplingParams(max_tokens=1))
    blocks = handover.export_blocks(there, prompt, 4)
    assert len(blocks) == 5
    assert handover.import_blocks(here, prompt, 4, blocks) == 0
    assert handover.import_blocks(here, prompt, 0, handover.export_blocks(there, prompt, 0)[:4]) == 4
    assert handover.import_blocks(here, prompt, 4, blocks) == 5
    assert handover.import_blocks(here, prompt, 4, blocks) == 0
    here.scheduler.check_integrity()


def test_one_engine_of_many_processes_is_not_split_as_well():
    with pytest.raises(ValueError, match="disaggregated"):
        EngineConfig(disaggregated=True, tensor_parallel=2)
