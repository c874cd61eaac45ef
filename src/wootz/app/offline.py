"""The engine by itself, offline: how many tokens a second, and what a step's time goes to.

All requests are there from the start, prompts are random token ids (no two share a prefix), answers ignore end tokens:
every run does the same work. `wootz bench serve` measures what callers of a server see instead.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wootz.app.load import percentiles
from wootz.core import EngineConfig, UnsupportedError
from wootz.engine import Engine, SamplingParams
from wootz.engine.protocol import Finished, Output
from wootz.engine.timeline import Timeline


def measure(
    path: Path,
    config: EngineConfig,
    *,
    requests: int,
    input_len: int,
    output_len: int,
    profile: bool = False,
    done: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], Timeline | None]:
    """Answer ``requests`` prompts of ``input_len`` tokens with ``output_len`` each; ``done`` is called for each.

    Times in seconds. With ``profile`` also what each phase of the steps took, and the timeline itself.
    """
    engine = Engine(path, config=config)
    if input_len + output_len > engine.max_model_len:
        raise UnsupportedError(f"{path} reads and writes at most {engine.max_model_len} tokens together")
    rng = random.Random(0)
    vocab_size = engine.model.config.vocab_size
    params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)

    def prompt() -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(input_len)]

    engine.generate([prompt()], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))  # warms up
    timeline = engine.watch() if profile else None
    before = engine.stats()
    asked = [engine.make_request(prompt(), params, id=str(number)) for number in range(requests)]
    started = time.perf_counter()
    for request in asked:
        engine.submit(request)
    first: dict[str, float] = {}
    latest: dict[str, float] = {}
    gaps: list[float] = []
    while engine.has_work:
        events = engine.step()
        now = time.perf_counter()
        for request, event in events:
            if isinstance(event, Output):
                if request.id in latest:
                    gaps.append(now - latest[request.id])
                latest[request.id] = now
                first.setdefault(request.id, now - started)
            elif isinstance(event, Finished):
                done()
    wall, after = time.perf_counter() - started, engine.stats()
    result: dict[str, Any] = {
        "requests": requests,
        "input_len": input_len,
        "output_len": output_len,
        "wall_seconds": wall,
        "steps": after.steps - before.steps,
        "requests_per_second": requests / wall,
        "output_tokens_per_second": requests * output_len / wall,
        "total_tokens_per_second": requests * (input_len + output_len) / wall,
        "time_to_first_token": percentiles(first.values()),
        "inter_token_latency": percentiles(gaps),
        "preemptions": after.preemptions - before.preemptions,
    }
    if timeline is not None:
        result["phases"] = [asdict(phase) for phase in timeline.summary()]
    return result, timeline
