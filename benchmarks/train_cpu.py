"""Pretraining on a CPU, beside a plain transformers + AdamW loop: the same model, rows and threads, each in a process
of its own. Tokens per second, peak memory, and the share of this machine's float32 product rate: that of squares in
PyTorch, and that of this model's own products by themselves, each made as that loop makes them.

    python benchmarks/train_cpu.py --steps 8 --threads 2
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RAW = {
    "model_type": "llama", "vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 4, "intermediate_size": 768, "rms_norm_eps": 1e-5, "max_position_embeddings": 256,
    "rope_theta": 1e4, "tie_word_embeddings": True, "hidden_act": "silu", "head_dim": 64,
}  # fmt: skip
LENGTH = 256


def ours(steps: int, rows: int) -> list[float]:
    import torch

    from wootz.data.batch import Batch
    from wootz.models import read_config
    from wootz.training.optimizers import OptimizerConfig, build_optimizer
    from wootz.training.trainer import Trainer, TrainerConfig

    class Rows:
        def __init__(self) -> None:
            self.generator = torch.Generator().manual_seed(0)

        def __next__(self) -> Batch:
            return Batch.of(torch.randint(8192, (rows, LENGTH + 1), generator=self.generator))

        def state_dict(self) -> dict:
            return {}

        def load_state_dict(self, state: dict) -> None: ...

    model = read_config(RAW).build()
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-3))
    trainer = Trainer(model, optimizer, lambda step: 1.0, Rows(), TrainerConfig(steps=steps))  # type: ignore[arg-type]
    model.train()
    return [trainer.make_step().seconds for _ in range(steps)]


def transformers_loop(steps: int, rows: int) -> list[float]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in RAW.items() if key != "model_type"}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    generator, seconds = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        started = time.perf_counter()
        tokens = torch.randint(8192, (rows, LENGTH), generator=generator)
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    return seconds


def product_rate(rows: int, product: Callable[..., Tensor]) -> float:
    """Operations per second in nothing but this model's products, forward and backward: what a loop could reach at most
    whose other work cost nothing. Narrow products do not reach the rate of squares."""
    import torch

    width, inner, vocab = RAW["hidden_size"], RAW["intermediate_size"], RAW["vocab_size"]
    layers, tokens = RAW["num_hidden_layers"], rows * LENGTH
    shapes = [(width, 3 * width), (width, width), (width, 2 * inner), (inner, width)]
    done = spent = 0.0
    for inputs, outputs, times in [*((*shape, layers) for shape in shapes), (width, vocab, 1)]:
        x_TI, w_OI, y_TO = torch.randn(tokens, inputs), torch.randn(outputs, inputs), torch.randn(tokens, outputs)
        seconds = []
        for _ in range(6):
            started = time.perf_counter()
            product(x_TI, w_OI.T, torch.empty(tokens, outputs))
            product(y_TO, w_OI, torch.empty(tokens, inputs))
            product(y_TO.T, x_TI, torch.empty(outputs, inputs))
            seconds.append(time.perf_counter() - started)
        done += times * 6 * tokens * inputs * outputs
        spent += times * median(seconds[1:])
    return done / spent


RUNS = {"wootz": ours, "transformers": transformers_loop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8, help="of 256 tokens, per step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="each in turn, so that a busy moment meets both")
    parser.add_argument("--only", choices=RUNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        import torch

        from wootz import kernels
        from wootz.kernels import training
        from wootz.training.estimate import matmul_rate

        torch.set_num_threads(options.threads)
        seconds = RUNS[options.only](options.steps + 1, options.rows)[1:]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rate = options.rows * LENGTH / median(seconds)
        by_kernels = options.only == "wootz" and kernels.AVAILABLE
        product = training.product if by_kernels else lambda a, b, out: torch.mm(a, b, out=out)
        rates = {"squares": matmul_rate(), "products": product_rate(options.rows, product)}
        print(json.dumps({"tokens_per_second": rate, "peak_bytes": peak, **rates}))
        return
    found: dict[str, list[dict]] = {name: [] for name in RUNS}
    for _ in range(options.rounds):
        for name, results in found.items():
            command = [sys.executable, "-P", __file__, "--only", name, "--steps", str(options.steps)]
            command += ["--rows", str(options.rows), "--threads", str(options.threads)]
            # -P: beside this file lie others whose names are those of packages
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(answer.stdout.splitlines()[-1]))
    num_parameters = 8192 * 256 + 8 * (4 * 256 * 256 + 3 * 256 * 768)
    flops = 6 * num_parameters + 6 * 8 * LENGTH * 256  # per token, as `wootz.training.estimate`
    print(f"{'':14}{'tokens/s':>10}{'of squares':>12}{'of its products':>17}{'peak MB':>9}")
    for name, results in found.items():
        rate = median(result["tokens_per_second"] for result in results)
        shares = [
            median(result["tokens_per_second"] * flops / result[what] for result in results)
            for what in ("squares", "products")
        ]
        peak = max(result["peak_bytes"] for result in results)
        print(f"{name:14}{rate:10,.0f}{shares[0]:12.0%}{shares[1]:17.0%}{peak / 1e6:9,.0f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
