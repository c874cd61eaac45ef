"""Why batches are continuous, prompts are cut, and memory is paged: the baselines beside what the engine does.

    python benchmarks/batching.py                                   # a random model of 4 layers, a minute on a CPU
    python benchmarks/batching.py --model smollm2.gguf --requests 64 --json bench-out/batching.json

One trace for all: requests that wait from the start, some with long prompts, answers of very different lengths.

- *static*: a batch of ``--batch`` requests, and the next one when its slowest member is done. (Done members cost
  nothing here, where others compute padding for them: the best case for static batches.)
- *continuous, whole prompts*: a request is admitted as soon as one is done, its prompt computed in one step. Everybody
  who is answering waits for that step: the spike in inter-token latency.
- *continuous, chunked*: at most ``--chunk`` tokens a step (the engine's ``max_step_tokens``).
- *continuous, paced*: chunks of whatever size keeps steps below ``--target`` ms (``max_inter_token_latency_ms``).

Then memory, by book-keeping over the same trace and no model: a contiguous allocator that reserves the longest context
for each request, one that reserves what each request may grow to, and pages. Waste is what is reserved and never
written; a refusal is scattered when enough is free, but not in one piece.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wootz.app.load import percentiles
from wootz.engine import Engine, EngineConfig, SamplingParams
from wootz.engine.cache import BlockPool
from wootz.engine.protocol import Output
from wootz.engine.runner import Model
from wootz.models import load, read_config


@dataclass(frozen=True, eq=False)
class Ask:
    prompt: list[int]
    num_answered: int
    max_tokens: int
    """What the caller allowed, and a contiguous allocator has to reserve; answers end before."""


def make_trace(count: int, vocab_size: int, longest: int, seed: int) -> list[Ask]:
    rng = random.Random(seed)
    asks = []
    for number in range(count):
        length = longest if number % 6 == 5 else rng.randint(8, 48)
        answered = min(int(rng.lognormvariate(3.2, 0.8)) + 2, 160)
        asks.append(Ask([rng.randrange(vocab_size) for _ in range(length)], answered, 160))
    return asks


def random_model() -> Model:
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
    rest = {"num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 4096}
    return read_config({"model_type": "llama", **shape, **rest}).build().eval()


# --- time -----------------------------------------------------------------------------------------------------


def run(engine: Engine, trace: list[Ask], groups: list[list[Ask]]) -> dict[str, Any]:
    """Answer group after group; the next one is submitted when the last is done."""
    gaps: list[float] = []
    first: list[float] = []
    steps, busy = 0, 0
    started = time.perf_counter()
    for group in groups:
        latest: dict[Any, float] = {}
        for ask in group:
            params = SamplingParams(temperature=0, max_tokens=ask.num_answered, ignore_eos=True)
            engine.submit(engine.make_request(ask.prompt, params))
        while engine.has_work:
            events = engine.step()
            now = time.perf_counter()
            steps += 1
            for request, event in events:
                if isinstance(event, Output):
                    busy += 1
                    if request in latest:
                        gaps.append(now - latest[request])
                    else:
                        first.append(now - started)
                    latest[request] = now
    wall = time.perf_counter() - started
    itl = percentiles(gaps)
    return {
        "wall_seconds": wall,
        "output_tokens_per_second": sum(ask.num_answered for ask in trace) / wall,
        "itl_p50_ms": 1000 * itl["p50"],
        "itl_p99_ms": 1000 * itl["p99"],
        "itl_worst_ms": 1000 * max(gaps),
        "ttft_p50_ms": 1000 * percentiles(first)["p50"],
        "slots_in_use": busy / steps / engine.scheduler.max_running,
    }


def measure(model: Model, trace: list[Ask], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    whole = max(len(ask.prompt) for ask in trace) + options.batch
    in_batches = [trace[start : start + options.batch] for start in range(0, len(trace), options.batch)]
    systems: dict[str, tuple[dict[str, Any], list[list[Ask]]]] = {
        "static": ({"max_step_tokens": whole * options.batch}, in_batches),
        "continuous, whole prompts": ({"max_step_tokens": whole}, [trace]),
        "continuous, chunked": ({"max_step_tokens": options.chunk}, [trace]),
        "continuous, paced": ({"max_step_tokens": whole, "max_inter_token_latency_ms": options.target}, [trace]),
    }
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for _ in range(options.rounds):  # interleaved, so that a slow minute hits all of them
        for name, (settings, groups) in systems.items():
            config = EngineConfig(
                max_running=options.batch, cache_bytes=2**28, prefix_caching=False, threads=options.threads, **settings
            )
            results[name].append(run(Engine(model, config=config), trace, groups))
    return {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in results.items()
    }


# --- memory ---------------------------------------------------------------------------------------------------


class Contiguous:
    """The allocator before paging: each request one piece of memory, first fit. Sizes in tokens."""

    def __init__(self, capacity: int, reserve: Callable[[Ask], int]) -> None:
        self.capacity, self.reserve = capacity, reserve
        self.pieces: dict[Ask, tuple[int, int]] = {}

    def admit(self, ask: Ask) -> str | None:
        """None, or why not."""
        size = self.reserve(ask)
        if len(ask.prompt) + ask.num_answered > size:
            return "too long"
        start = 0
        for taken, length in sorted(self.pieces.values()):
            if taken - start >= size:
                break
            start = taken + length
        if start + size <= self.capacity:
            self.pieces[ask] = start, size
            return None
        return "scattered" if self.capacity - self.reserved >= size else "full"

    def release(self, ask: Ask) -> None:
        del self.pieces[ask]

    @property
    def reserved(self) -> int:
        return sum(size for _, size in self.pieces.values())


class Paged:
    """The engine's own pool, in the same terms."""

    def __init__(self, capacity: int, block_size: int = 16) -> None:
        self.pool = BlockPool(capacity // block_size, block_size, prefix_caching=False)
        self.tables: dict[Ask, Any] = {}

    def admit(self, ask: Ask) -> str | None:
        admitted = self.pool.admit(ask.prompt, spare=2 * len(self.tables))
        if admitted is None:
            return "full"
        self.tables[ask] = admitted[0]
        return None

    def grow(self, ask: Ask, length: int) -> None:
        self.pool.make_writable(self.tables[ask], length - 1)

    def release(self, ask: Ask) -> None:
        self.pool.release(self.tables.pop(ask))

    @property
    def reserved(self) -> int:
        return self.pool.num_referenced * self.pool.block_size


def book_keeping(memory: Contiguous | Paged, trace: list[Ask]) -> dict[str, Any]:
    """Admit in order whenever there is room, a token per step for each; what was held, and what was written of it."""
    waiting, running = list(trace), dict[Ask, int]()
    held = written = together = steps = too_long = scattered = 0
    while waiting or running:
        while waiting:
            refused = memory.admit(waiting[0])
            if refused == "too long":
                too_long += 1
            elif refused:
                scattered += refused == "scattered"
                break
            else:
                running[waiting[0]] = len(waiting[0].prompt)
            waiting.pop(0)
        for ask in list(running):
            running[ask] += 1
            if isinstance(memory, Paged):
                memory.grow(ask, running[ask])
            if running[ask] == len(ask.prompt) + ask.num_answered:
                memory.release(ask)
                del running[ask]
        held, written = held + memory.reserved, written + sum(running.values())
        together, steps = together + len(running), steps + 1
    return {
        "at_once": together / steps,
        "steps": steps,
        "wasted": 1 - written / max(held, 1),
        "scattered_refusals": scattered,
        "too_long": too_long,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--target", type=float, default=20.0, help="ms")
    parser.add_argument("--longest", type=int, default=1024, help="tokens of the long prompts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load(options.model, keep_quantized="exact") if options.model else random_model()
    trace = make_trace(options.requests, model.config.vocab_size, options.longest, seed=0)

    times = measure(model, trace, options)
    print(f"{'':28}{'wall s':>8}{'tok/s':>8}{'ITL p50':>9}{'p99':>8}{'worst ms':>10}{'TTFT p50':>10}{'slots':>7}")
    for name, result in times.items():
        wall, rate, *rest, slots = result.values()
        print(
            f"{name:28}{wall:>8.2f}{rate:>8.0f}{rest[0]:>9.1f}{rest[1]:>8.1f}{rest[2]:>10.1f}{rest[3]:>10.0f}{slots:>7.0%}"
        )

    context, capacity = options.longest + 96, 8 * (options.longest + 96)
    books = {
        "contiguous, longest context": book_keeping(Contiguous(capacity, lambda ask: context), trace),
        "contiguous, what it may be": book_keeping(
            Contiguous(capacity, lambda ask: len(ask.prompt) + ask.max_tokens), trace
        ),
        "paged": book_keeping(Paged(capacity), trace),
    }
    print(
        f"\n{capacity} tokens of memory{'':7}{'at once':>8}{'steps':>8}{'wasted':>9}{'scattered':>11}{'too long':>10}"
    )
    for name, result in books.items():
        print(
            f"{name:30}{result['at_once']:>7.1f}{result['steps']:>8}{result['wasted']:>9.0%}"
            f"{result['scattered_refusals']:>11}{result['too_long']:>10}"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"time": times, "memory": books}, indent=2) + "\n")


if __name__ == "__main__":
    main()
