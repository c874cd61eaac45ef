"""Wootz on one GPU: how near its steps come to what the device can do, and how many answers it serves at once.

    python benchmarks/serve_gpu.py                  # Llama-1B and 8B shapes in bfloat16 and FP8, for 8 minutes at most
    python benchmarks/serve_gpu.py --shapes 1b --json bench-out/serve_gpu.json
    python benchmarks/serve_gpu.py --tiny           # a toy on any machine, to see that the script runs

Weights are random: speed does not depend on them, and nothing has to be fetched. Prompts are random token ids, answers
greedy, end tokens ignored. What is printed, for each shape and dtype:

- decode: 128 in, 128 out, batch 1; tokens per second after the first, and the share of the *bandwidth roofline*: the
  bytes a token has to read (all weights once, the cache up to it) over the bandwidth that a large copy reaches here.
- prefill: one long prompt, one token out; prompt tokens per second, and the share of the *matmul peak*: the operations
  it takes (products and attention, counted exactly) over what one large product reaches here in the same dtype.
- at N: N requests of 128 in, 128 out at once; output tokens per second, their prefill inside the time.
- transformers' continuous batching on the same shape in bfloat16, if it is installed, in the same way.

Everything runs once before it is timed, so that kernels are compiled and graphs captured. In FP8 the layers' weights
are in E4M3 with a scale for each output, inputs rounded token by token; embedding and output head stay as they are.
After ``--seconds`` no new measurement is begun, and what is missing is said.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from wootz.core import EngineConfig
from wootz.engine import Engine, SamplingParams
from wootz.engine.protocol import Output
from wootz.kernels import triton as gpu
from wootz.models import Decoder, read_config
from wootz.models.linear import Linear
from wootz.models.quantized_weight import FLOAT8, LARGEST_FLOAT8, Float8Weight
from wootz.models.rounded_inputs import RoundedInputs

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip
"""Llama 3.2 1B and Llama 3.1 8B."""


class Plan:
    """What is measured, and on what."""

    def __init__(self, tiny: bool, deadline: float) -> None:
        self.deadline = deadline
        self.device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.tokens_in, self.tokens_out, self.prefill = (8, 8, 32) if tiny else (128, 128, 4096)
        self.concurrency = (1, 2, 4) if tiny else (1, 4, 16, 64, 256)
        self.copy_bytes, self.matmul_size = (2**22, 128) if tiny else (2**31, 8192)
        self.skipped: list[str] = []

    def has_time(self, what: str) -> bool:
        if time.monotonic() < self.deadline:
            return True
        self.skipped.append(what)
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="1b,8b")
    parser.add_argument(
        "--tiny", action="store_true", help="a toy on the CPU: shows that the script runs, and no speed"
    )
    parser.add_argument("--seconds", type=float, default=480, help="begin nothing new after so long")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    plan = Plan(options.tiny, time.monotonic() + options.seconds)
    if plan.device.type == "cpu" and not options.tiny:
        raise SystemExit("there is no GPU here; --tiny shows that the script runs")
    peaks = measured_peaks(plan)
    say("device", peaks)
    rows: list[dict[str, Any]] = []
    for shape in ["tiny"] if options.tiny else options.shapes.split(","):
        rows += wootz(shape, plan, peaks)
        if find_spec("transformers") is None:
            plan.skipped.append(f"{shape} transformers: not installed")
        elif plan.has_time(f"{shape} transformers"):
            rows.append(transformers(shape, plan))
    result = {"machine": machine(plan), "peaks": peaks, "rows": rows, "skipped": plan.skipped}
    print(table(rows))
    for what in plan.skipped:
        print(f"\nnot measured: {what}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2))


# --- what the device can do -----------------------------------------------------------------------------------------


def measured_peaks(plan: Plan) -> dict[str, float]:
    """Bytes per second of a large copy (read and write counted), operations per second of a large product."""
    source = torch.ones(plan.copy_bytes, dtype=torch.uint8, device=plan.device)
    target, size = torch.empty_like(source), plan.matmul_size
    peaks = {"bytes/s": 2 * plan.copy_bytes / best_time(plan, lambda: target.copy_(source))}
    a = torch.randn(size, size, dtype=plan.dtype, device=plan.device)
    peaks["bf16 op/s"] = 2 * size**3 / best_time(plan, lambda: a @ a)
    if plan.device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        codes, ones = a.to(FLOAT8), torch.ones(size, 1, device=plan.device)
        product: Any = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
        run = lambda: product(codes, codes.T, scale_a=ones, scale_b=ones.T, out_dtype=torch.bfloat16)  # noqa: E731
        peaks["fp8 op/s"] = 2 * size**3 / best_time(plan, run)
    else:
        peaks["fp8 op/s"] = peaks["bf16 op/s"]  # where it is emulated
    return peaks


def best_time(plan: Plan, run: Callable[[], object], repeats: int = 10) -> float:
    run()
    times = []
    for _ in range(repeats):
        synchronize(plan)
        started = time.perf_counter()
        run()
        synchronize(plan)
        times.append(time.perf_counter() - started)
    return min(times)


def synchronize(plan: Plan) -> None:
    if plan.device.type == "cuda":
        torch.cuda.synchronize()


# --- Wootz ----------------------------------------------------------------------------------------------------------


def wootz(shape: str, plan: Plan, peaks: dict[str, float]) -> list[dict[str, Any]]:
    """A row for bfloat16 and, with the same weights in E4M3, one for FP8."""
    model = random_model(shape, plan)
    rows = []
    for dtype in ("bf16", "fp8"):
        if not plan.has_time(f"{shape} {dtype}"):
            break
        if dtype == "fp8":
            to_float8(model)
        engine = Engine(model, config=engine_config(model, plan))
        rows.append(measure(engine, shape, dtype, plan, peaks))
        model.layer_loop = None  # with its graphs, and what they keep
        del engine
        free(plan)
    return rows


def random_model(shape: str, plan: Plan) -> Decoder:
    raw = SHAPES[shape] | {
        "model_type": "llama",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
    }
    before = torch.get_default_dtype()
    torch.set_default_dtype(plan.dtype)
    try:
        with plan.device:
            model = read_config(raw).build()
    finally:
        torch.set_default_dtype(before)
    assert isinstance(model, Decoder)
    return model.to(plan.device).eval().requires_grad_(False)


def to_float8(model: Decoder) -> None:
    for module in model.layers.modules():
        if isinstance(module, Linear):
            module.unpack()
            weight = module.weight.detach().float()
            scale = weight.abs().amax(1, keepdim=True) / LARGEST_FLOAT8
            module.hold_blocks(RoundedInputs(Float8Weight((weight / scale).to(FLOAT8), scale), FLOAT8))


def engine_config(model: Decoder, plan: Plan) -> EngineConfig:
    """A cache with room for the widest run, and steps that take the whole long prompt at once."""
    tokens = max(plan.concurrency[-1] * (plan.tokens_in + plan.tokens_out + 32), plan.prefill + 64)
    per_token = sum(spec.numbers_per_token for spec in model.cache_specs) * plan.dtype.itemsize
    return EngineConfig(
        cache_bytes=tokens * per_token,
        max_running=plan.concurrency[-1],
        max_step_tokens=max(plan.prefill, 64),
        max_model_len=plan.prefill + 64,
        prefix_caching=False,
    )


def measure(engine: Engine, shape: str, dtype: str, plan: Plan, peaks: dict[str, float]) -> dict[str, Any]:
    name = f"{shape} {dtype}"
    row: dict[str, Any] = {"system": "wootz", "shape": shape, "dtype": dtype}
    first, wall = twice(plan, lambda: run(engine, prompts(engine, 1, plan.tokens_in), plan.tokens_out, plan))
    row["decode tok/s"] = (plan.tokens_out - 1) / (wall - first)
    mean_length = plan.tokens_in + plan.tokens_out / 2
    roofline = peaks["bytes/s"] / bytes_of_a_token(engine.model, mean_length)
    row["decode % of bandwidth"] = 100 * row["decode tok/s"] / roofline
    if plan.has_time(f"{name} prefill"):
        _, wall = twice(plan, lambda: run(engine, prompts(engine, 1, plan.prefill), 1, plan))
        row["prefill tok/s"] = plan.prefill / wall
        achieved = prefill_operations(engine.model, plan.prefill) / wall
        row["prefill % of matmul"] = 100 * achieved / peaks[f"{dtype} op/s"]
    for count in plan.concurrency:
        if plan.has_time(f"{name} at {count}"):
            _, wall = twice(
                plan, lambda n=count: run(engine, prompts(engine, n, plan.tokens_in), plan.tokens_out, plan)
            )
            row[f"tok/s at {count}"] = count * plan.tokens_out / wall
    if plan.device.type == "cuda":
        row["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    say(name, row)
    return row


def run(engine: Engine, batch: list[list[int]], tokens_out: int, plan: Plan) -> tuple[float, float]:
    """Seconds to the first token and to the last."""
    params = SamplingParams(temperature=0, max_tokens=tokens_out, ignore_eos=True)
    requests = [engine.make_request(prompt, params) for prompt in batch]
    synchronize(plan)
    started, first = time.perf_counter(), None
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        said = engine.step()
        if first is None and any(isinstance(event, Output) for _, event in said):
            first = time.perf_counter() - started
    synchronize(plan)
    wall = time.perf_counter() - started
    return wall if first is None else first, wall


def prompts(engine: Engine, count: int, length: int) -> list[list[int]]:
    return torch.randint(3, engine.model.config.vocab_size, (count, length)).tolist()


def twice(plan: Plan, measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """The second time, when all is compiled and captured."""
    measure()
    return measure()


def bytes_of_a_token(model: Any, length: float) -> float:
    """What one token at batch 1 has to read: every product's weight, and the keys and values of ``length`` tokens."""
    weights = 0
    for module in model.modules():
        if isinstance(module, Linear):
            inner = getattr(module.blocks, "num_bytes", None)
            weights += module.in_features * module.out_features * model.dtype.itemsize if inner is None else inner
    cache = sum(spec.numbers_per_token for spec in model.cache_specs) * model.dtype.itemsize
    return weights + length * cache


def prefill_operations(model: Any, tokens: int) -> float:
    """Products of all layers for each token, causal attention, and the head for the last token."""
    layers = sum(m.in_features * m.out_features for m in model.layers.modules() if isinstance(m, Linear))
    head = model.head.in_features * model.head.out_features
    config = model.layers[0].mixer.config
    attention = len(model.layers) * 4 * config.num_heads * config.head_dim * tokens * (tokens + 1) / 2
    return 2 * layers * tokens + attention + 2 * head


# --- transformers ---------------------------------------------------------------------------------------------------


def transformers(shape: str, plan: Plan) -> dict[str, Any]:
    """Its continuous batching, on the same prompts' lengths."""
    from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

    row: dict[str, Any] = {"system": "transformers", "shape": shape, "dtype": "bf16"}
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, rms_norm_eps=1e-5)
    try:
        with plan.device:
            model = LlamaForCausalLM._from_config(config, dtype=plan.dtype, attn_implementation="sdpa").eval()
        generation = GenerationConfig(
            max_new_tokens=plan.tokens_out, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
        )
        # On a GPU it sizes its cache itself; on a CPU it would take most of the memory.
        batching = ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=64) if plan.device.type == "cpu" else None
        for count in plan.concurrency:
            if not plan.has_time(f"{shape} transformers at {count}"):
                break
            walls, made = [], 0
            for _ in range(2):
                batch = torch.randint(3, config.vocab_size, (count, plan.tokens_in)).tolist()
                synchronize(plan)
                started = time.perf_counter()
                answers = model.generate_batch(
                    inputs=batch, generation_config=generation, continuous_batching_config=batching
                )
                synchronize(plan)
                walls.append(time.perf_counter() - started)
                made = sum(len(answer.generated_tokens) for answer in answers.values())
            row[f"tok/s at {count}"] = made / walls[-1]
    except Exception as error:  # a peer that fails must not take our own figures along
        plan.skipped.append(f"{shape} transformers: {type(error).__name__}: {str(error)[:200]}")
    free(plan)
    say(f"{shape} transformers", row)
    return row


# --- said -----------------------------------------------------------------------------------------------------------


def free(plan: Plan) -> None:
    gc.collect()
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def machine(plan: Plan) -> dict[str, str]:
    name = torch.cuda.get_device_name() if plan.device.type == "cuda" else platform.processor()
    kernels = "triton" if gpu.serves(plan.device) else "plain PyTorch"
    return {"device": name, "torch": torch.__version__, "cuda": str(torch.version.cuda), "kernels": kernels}


def say(what: str, figures: dict[str, Any]) -> None:
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, float))
    print(f"{what}: {numbers}", file=sys.stderr)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; a figure that was not measured is a dash."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [row.get(name, "-") for name in names]
        lines.append("| " + " | ".join(f"{c:.1f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
