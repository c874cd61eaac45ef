"""Wootz beside llama.cpp, OpenVINO, onnxruntime-genai and transformers: same weights, prompts and threads, one run.

    make bench                                        # or, with other numbers:
    python benchmarks/serve_cpu.py --rounds 3 --concurrency 1,8,16,32 --json bench-out/serve_cpu.json

Each system runs in a process of its own, is loaded once, and is stopped (SIGSTOP) while another is measured, so
they share nothing but the machine. Rounds are interleaved: every system does one round before any does its second, so a
slow minute of the host hits all of them. Quoted are medians over rounds, and the median of the per-round *ratios* of
Wootz to the peer, which is what survives a noisy machine.

Prompts are random token ids, greedy, end tokens ignored, so that every system does exactly the same work:

- decode: 128 in, 128 out, batch 1; tokens per second after the first.
- prefill: 512 in, 1 out; prompt tokens per second, and time to first token.
- cached: the same 512-token prompt again with 448 of it in the prefix cache; time to first token.
- total at N: N requests of 128 in, 128 out at once; output tokens per second, their prefill inside the time.

transformers and onnxruntime-genai have no server loop here, so "at N" is measured in the two ways people use them: one
request after the other, and one static batch of N equal-length prompts (which needs no padding: their best case).

Wootz is there three times: as it serves by default (activations rounded to 8 bits, as llama.cpp does), exactly
(`activations = "float32"`), and with its output layer in 4 bits. All others read the same GGUF file, in which that has
8 bits, but onnxruntime-genai, whose builder rounds the weights to 4 bits anew, the output layer too. A peer that is not
installed is left out, and named:

    pip install xllamacpp transformers openvino-genai onnxruntime-genai onnx onnx-ir
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from wootz.core import EMBEDDED_MODEL_SOURCE, load_config
from wootz.store import ModelStore
from wootz.tokenization.export import tokenizer_files

SYSTEMS = ("wootz", "wootz 4 bits", "wootz exact", "llama.cpp", "openvino", "onnxruntime", "transformers")
ONE_AT_A_TIME = ("onnxruntime", "transformers")
VOCAB = 49152
DECODE_IN = DECODE_OUT = 128
PREFILL_IN, CACHED_IN = 512, 448


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(100, VOCAB - 100, (count, length)).tolist()


# --- the systems: each returns a function `run(prompts, new_tokens) -> {"wall", "ttft"}` in seconds -----------------


def load_wootz(
    path: Path, threads: int, activations: str = "auto"
) -> Callable[[list[list[int]], int], dict[str, float]]:
    from wootz.core import EngineConfig
    from wootz.engine import Engine, SamplingParams

    engine = Engine(path, config=EngineConfig.model_validate({"threads": threads, "activations": activations}))

    def run(batch: list[list[int]], new_tokens: int) -> dict[str, float]:
        params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        start = time.perf_counter()
        for prompt in batch:
            engine.submit(engine.make_request(prompt, params))
        first = None
        while engine.has_work:
            if engine.step() and first is None:
                first = time.perf_counter() - start
        return {"wall": time.perf_counter() - start, "ttft": first or 0.0}

    return run


def load_transformers(path: Path, threads: int) -> Callable[[list[list[int]], int], dict[str, float]]:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    class FirstToken(BaseStreamer):
        """Called with the prompt, then with each token; only batch 1 is streamed."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None: ...

    @torch.inference_mode()
    def run(batch: list[list[int]], new_tokens: int) -> dict[str, float]:
        streamer = FirstToken() if len(batch) == 1 else None
        ids = torch.tensor(batch)
        start = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            streamer=streamer,
        )
        wall = time.perf_counter() - start
        return {"wall": wall, "ttft": streamer.times[1] - start if streamer else 0.0}

    return run


def load_llama_cpp(path: Path, threads: int) -> Callable[[list[list[int]], int], dict[str, float]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel, params.n_ctx, params.n_batch, params.n_ubatch = 16, 16 * 640, 2048, 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def one(prompt: list[int], new_tokens: int) -> dict[str, Any]:
        # Its prompt cache only reuses what a slot last held; random prompts never match, the "cached" case does.
        request = {"prompt": prompt, "n_predict": new_tokens, "ignore_eos": True, "cache_prompt": True}
        return server.handle_completions(request | {"temperature": 0})

    def run(batch: list[list[int]], new_tokens: int) -> dict[str, float]:
        start = time.perf_counter()
        with ThreadPoolExecutor(len(batch)) as pool:
            answers = list(pool.map(lambda prompt: one(prompt, new_tokens), batch))
        timings = answers[0]["timings"]
        assert all(answer["usage"]["completion_tokens"] == new_tokens for answer in answers)
        return {"wall": time.perf_counter() - start, "ttft": timings["prompt_ms"] / 1000}

    return run


def load_openvino(path: Path, threads: int) -> Callable[[list[list[int]], int], dict[str, float]]:
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching, scheduler.dynamic_split_fuse = True, True
    scheduler.max_num_batched_tokens, scheduler.max_num_seqs, scheduler.cache_size = 512, 64, 1
    settings = {"INFERENCE_NUM_THREADS": threads}
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", settings)

    def run(batch: list[list[int]], new_tokens: int) -> dict[str, float]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new_tokens, True, False
        start = time.perf_counter()
        handles = [
            pipeline.add_request(number, openvino.Tensor(np.array([prompt], np.int64)), config)
            for number, prompt in enumerate(batch)
        ]
        first = None
        while pipeline.has_non_finished_requests():
            pipeline.step()
            if first is None and handles[0].can_read():
                first = time.perf_counter() - start
        wall = time.perf_counter() - start
        assert all(len(handle.read_all()[0].generated_ids) == new_tokens for handle in handles)
        return {"wall": wall, "ttft": first or 0.0}

    return run


def load_onnxruntime(path: Path, threads: int) -> Callable[[list[list[int]], int], dict[str, float]]:
    import onnxruntime_genai

    folder = built_onnx(path)
    config = onnxruntime_genai.Config(str(folder))
    settings = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
    config.overlay(json.dumps(settings))
    model = onnxruntime_genai.Model(config)

    def run(batch: list[list[int]], new_tokens: int) -> dict[str, float]:
        params = onnxruntime_genai.GeneratorParams(model)
        length = len(batch[0]) + new_tokens
        params.set_search_options(max_length=length, min_length=length, do_sample=False, batch_size=len(batch))
        generator = onnxruntime_genai.Generator(model, params)
        start = time.perf_counter()
        generator.append_tokens(np.array(batch, np.int32))
        generator.generate_next_token()
        first = time.perf_counter() - start
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        return {"wall": time.perf_counter() - start, "ttft": first}

    return run


def built_onnx(path: Path) -> Path:
    """The model as its builder makes it, once, beside the benchmark's other outputs."""
    from wootz.models.converting import convert

    target = Path("bench-out") / f"{path.stem}-onnx-int4"
    if not (target / "genai_config.json").is_file():
        floats = target.with_name(f"{path.stem}-f32")
        if not floats.is_dir():
            convert(path, floats, type="f32", files=tokenizer_files(path))
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(floats), "-o", str(target)]
        subprocess.run(
            [*command, "-p", "int4", "-e", "cpu", "-c", str(target) + "-cache"], check=True, capture_output=True
        )
    return target


def with_four_bits(path: Path) -> Path:
    """The model in Q4_1 as a whole, its output layer too."""
    from wootz.models.converting import convert

    target = Path("bench-out") / f"{path.stem}-output-q4_1.gguf"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        convert(path, target, type="q4_1", output_type="q4_1")
    return target


LOADERS = {
    "wootz": load_wootz,
    "wootz 4 bits": lambda path, threads: load_wootz(with_four_bits(path), threads),
    "wootz exact": lambda path, threads: load_wootz(path, threads, "float32"),
    "llama.cpp": load_llama_cpp,
    "openvino": load_openvino,
    "onnxruntime": load_onnxruntime,
    "transformers": load_transformers,
}
PACKAGES = {
    "llama.cpp": "xllamacpp",
    "openvino": "openvino_genai",
    "onnxruntime": "onnxruntime_genai",
    "transformers": "transformers",
}


# --- a worker: one system in its own process, driven by JSON lines ------------------------------------------------


def worker(system: str, path: Path, threads: int) -> None:
    start = time.perf_counter()
    run = LOADERS[system](path, threads)
    say({"load": time.perf_counter() - start})
    for line in sys.stdin:
        job = json.loads(line)
        result = run(job["prompts"], job["new_tokens"])
        say(result | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


def say(message: dict[str, float]) -> None:
    print("BENCH " + json.dumps(message), flush=True)


class Worker:
    """A system's process as the parent sees it: stopped unless it is being measured."""

    def __init__(self, system: str, path: Path, threads: int) -> None:
        command = [sys.executable, __file__, "--worker", system, "--model", str(path), "--threads", str(threads)]
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.system = system
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
        )
        self.load_seconds = self._read()["load"]
        self.process.send_signal(signal.SIGSTOP)

    def __call__(self, batch: list[list[int]], new_tokens: int) -> dict[str, float]:
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": batch, "new_tokens": new_tokens}) + "\n")
        self.process.stdin.flush()
        result = self._read()
        self.process.send_signal(signal.SIGSTOP)
        return result

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("BENCH "):
                return json.loads(line[6:])
        raise SystemExit(f"{self.system} ended with exit code {self.process.wait()}")

    def kill(self) -> None:
        self.process.kill()


def measure(run: Worker, concurrency: list[int], seed: int) -> dict[str, float]:
    """One round of one system: every figure once, in a fixed order, on prompts of this round's seed."""
    run(prompts(1, 32, seed), 4)
    figures: dict[str, float] = {}
    result = run(prompts(1, DECODE_IN, seed + 1), DECODE_OUT)
    figures["decode tok/s"] = (DECODE_OUT - 1) / (result["wall"] - result["ttft"])

    [prompt] = prompts(1, PREFILL_IN, seed + 2)
    result = run([prompt], 1)
    figures["prefill tok/s"] = PREFILL_IN / result["ttft"]
    figures["TTFT 512 ms"] = result["ttft"] * 1000
    if run.system not in ONE_AT_A_TIME:
        [tail] = prompts(1, PREFILL_IN - CACHED_IN, seed + 3)
        figures["TTFT 448/512 cached ms"] = run([prompt[:CACHED_IN] + tail], 1)["ttft"] * 1000

    for count in concurrency:
        batch = prompts(count, DECODE_IN, seed + 10 + count)
        result = run(batch, DECODE_OUT)
        name = f"total tok/s at {count}"
        figures[name] = count * DECODE_OUT / result["wall"]
        if run.system in ONE_AT_A_TIME and count > 1:
            figures[f"{name} (static batch)"] = figures[name]
            figures[name] = figures["total tok/s at 1"]
    figures["peak MB"] = run(prompts(1, 8, seed), 1)["peak_mb"]
    return figures


def embedded_model() -> Path:
    """The GGUF file that `wootz up` serves, fetched if it is not there yet."""
    store = ModelStore(load_config().config.models_dir)
    return store.pull(EMBEDDED_MODEL_SOURCE).path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="the GGUF file all systems load (default: the embedded model)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", default="1,8,16")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--json", type=Path, help="write every round's figures here")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.model = options.model or embedded_model()
    if options.worker:
        worker(options.worker, options.model, options.threads)
        return

    concurrency = [int(count) for count in options.concurrency.split(",")]
    systems = options.systems.split(",")
    if unknown := set(systems) - set(SYSTEMS):
        parser.error(f"no such system: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    for system in [system for system in systems if system in PACKAGES and not find_spec(PACKAGES[system])]:
        print(f"{system}: left out, as {PACKAGES[system]} is not installed", file=sys.stderr)
        systems.remove(system)
    workers: list[Worker] = []
    rounds: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
    try:
        for system in systems:
            workers.append(Worker(system, options.model, options.threads))
            print(f"{system}: loaded in {workers[-1].load_seconds:.1f} s", file=sys.stderr)
        for number in range(options.rounds):
            for run in workers:
                rounds[run.system].append(measure(run, concurrency, seed=1000 * number))
                figures = ", ".join(f"{name} {value:.0f}" for name, value in rounds[run.system][-1].items())
                print(f"round {number + 1} {run.system}: {figures}", file=sys.stderr)
    finally:
        for run in workers:
            run.kill()

    print(table(rounds))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {"cpu": platform.processor(), "threads": options.threads, "python": platform.python_version()}
        options.json.write_text(json.dumps({"machine": machine, "rounds": rounds}, indent=2))


def table(rounds: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: medians per system, then the median per-round ratios of Wootz to each peer (above 1: it has more)."""
    names = list(dict.fromkeys(name for figures in rounds.values() for name in figures[0]))
    peers = [system for system in rounds if not system.startswith("wootz")]
    pairs = [(own, peer) for peer in peers for own in ("wootz", "wootz 4 bits") if own in rounds]
    header = ["", *rounds, *(f"{own} / {peer}" for own, peer in pairs)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name in names:
        cells = [name]
        for figures in rounds.values():
            values = [figure[name] for figure in figures if name in figure]
            cells.append(f"{statistics.median(values):.0f}" if values else "-")
        for own, peer in pairs:
            ours_name = name.removesuffix(" (static batch)")
            ratios = [
                ours[ours_name] / theirs[name]
                for ours, theirs in zip(rounds[own], rounds[peer], strict=False)
                if name in theirs and ours_name in ours
            ]
            cells.append(f"{statistics.median(ratios):.2f}" if ratios else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
