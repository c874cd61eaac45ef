"""A folder of synthetic text is the same however often its writing was stopped."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from wootz.core.errors import ConfigError
from wootz.core.protocol import LanguageModel
from wootz.core.wire import ChatChunk, ChatRequest
from wootz.data.synthesis import synthesize
from wootz.data.synthetic import Generation

PLAN = Generation(topics=["rivers", "steel", "bread"], num_texts=40, concurrency=4, min_words=5)


class Teacher(LanguageModel):
    """Writes what the request's seed says: refusals, copies and texts. Breaks down after so many."""

    def __init__(self, name: str = "tiny", lasts: int = 999) -> None:
        self.name, self.lasts, self.seeds = name, lasts, list[int]()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        if len(self.seeds) >= self.lasts:
            raise ConfigError("gone")
        assert request.seed is not None
        self.seeds.append(request.seed)
        lot = random.Random(request.seed)
        own = " ".join(f"w{lot.randrange(10**6)}" for _ in range(60))
        text = lot.choice(["I'm sorry, but no.", "the very same words " * 9, own, own, own])
        base = {"id": "x", "created": 0, "model": self.name, "object": "chat.completion.chunk"}
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
        yield ChatChunk.model_validate({**base, "choices": [choice]})
        usage = {"prompt_tokens": 10, "completion_tokens": 60, "total_tokens": 70}
        yield ChatChunk.model_validate({**base, "choices": [], "usage": usage})


async def test_stopped_writing_goes_on_to_the_same_files(tmp_path: Path) -> None:
    whole = await synthesize([Teacher()], PLAN, tmp_path / "whole")
    out, seeds = tmp_path / "stopped", list[int]()
    for lasts in (5, 13):
        teacher = Teacher(lasts=lasts)
        with pytest.raises(ConfigError, match="gone"):
            await synthesize([teacher], PLAN, out)
        seeds += teacher.seeds
        with (out / "left_out.jsonl").open("a") as file:
            file.write('{"number": 39, "te')  # what a kill leaves of a line
    last = Teacher()
    assert await synthesize([last], replace(PLAN, concurrency=7), out) == whole
    for name in ("texts.jsonl", "left_out.jsonl"):
        assert (out / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert whole.asked == 40
    assert whole.left_out.keys() == {"refusal", "near copy"}
    assert len(seeds + last.seeds) <= 40 + 2 * PLAN.concurrency  # all that is paid for again is what was under way
    assert (await synthesize([idle := Teacher()], PLAN, out)).asked == 40
    assert idle.seeds == []
    more = await synthesize([Teacher()], replace(PLAN, num_texts=45), out)
    assert more.asked == 45


async def test_another_plan_needs_another_folder(tmp_path: Path) -> None:
    await synthesize([Teacher()], replace(PLAN, num_texts=3), tmp_path / "out")
    for teacher, plan in ((Teacher(), replace(PLAN, seed=1, min_words=3)), (Teacher("other"), PLAN)):
        with pytest.raises(ConfigError, match=r"other settings \((min_words, seed|teachers)\)"):
            await synthesize([teacher], plan, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["teachers"] == ["tiny"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("precious")
    with pytest.raises(ConfigError, match="is not empty"):
        await synthesize([Teacher()], PLAN, tmp_path / "mine")
