"""Every method of `wootz quantize` on one model: size, output error, perplexity; then how fast the engine runs them.

    python benchmarks/quantization.py MODEL TEXT --folder bench-out/quantized

MODEL is a folder or GGUF file of floats (one of Q4_1 is read as floats, too). ``--calibration`` pieces of ``--seq``
tokens calibrate and as many others are for the perplexity, both spread over all of TEXT. Prints Markdown tables. What
lies in ``--folder`` already is not made again.

The output error of a folder is that of its own report: each projection gets what the quantised layers before it hand
over. A GGUF file's is measured on the inputs of the model as it was. Speeds are medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from wootz.core import EngineConfig
from wootz.engine import Engine, SamplingParams
from wootz.models import Decoder, converting, load
from wootz.models.linear import Linear
from wootz.models.weight_quantization.gptq import output_error
from wootz.models.weight_quantization.methods import METHODS
from wootz.models.weight_quantization.report import layer_inputs, perplexity
from wootz.models.weight_quantization.whole_model import REPORT, bytes_of_weights, quantize
from wootz.tokenization import load_tokenizer
from wootz.tokenization.export import gguf_vocabulary, tokenizer_files

GGUF = ("q8_0", "q6_k", "q5_k", "q4_k", "q4_1", "q4_0")
SPEED = ("int8", "rtn4", "gptq", "awq")
PROMPT, OUTPUT = 512, 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("bench-out/quantized"))
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *GGUF])
    parser.add_argument("--speed", nargs="*", default=SPEED, help="folders to time; none with no names")
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--calibration", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    source = as_folder(args.model, args.folder)
    calibration, test = pieces(source, args.text, args.seq, args.calibration)
    print(f"{sum(map(len, test)):,} tokens to test on, {sum(map(len, calibration)):,} to calibrate on\n")
    model = load(source)
    assert isinstance(model, Decoder)
    before, inputs = perplexity(model, test), layer_inputs(model, calibration)
    print("| method | weights, MB | relative output error | perplexity | |\n|---|---|---|---|---|")
    print(f"| none | {bytes_of_weights(source) / 1e6:.0f} | 0 | {before:.2f} | |", flush=True)
    for method in args.methods:
        target = args.folder / (method + (".gguf" if method in GGUF else ""))
        if not target.exists() and method in GGUF:
            converting.convert(source, target, type=method, vocabulary=gguf_vocabulary(source))
        elif not target.exists():
            quantize(source, target, method, calibration=calibration)
        quantized = load(target, keep_quantized="exact")  # inputs are rounded too, where the method does that
        if method in GGUF:
            error = gguf_error(model, load(target), inputs)
        else:
            errors = json.loads((target / REPORT).read_text())["errors"].values()
            error = sum(errors) / len(errors)
        after = perplexity(quantized, test)
        size = bytes_of_weights(target) / 1e6
        print(f"| `{method}` | {size:.0f} | {error:.1e} | {after:.2f} | {after / before - 1:+.1%} |", flush=True)
    del model
    if args.speed:
        speeds(source, [args.folder / method for method in args.speed], args.rounds)


def as_folder(model: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "none"
    if not target.exists():
        files = tokenizer_files(model) if model.suffix == ".gguf" else None
        converting.convert(model, target, type="bf16", files=files)
    return target


def pieces(source: Path, text: Path, seq: int, count: int) -> tuple[list[list[int]], list[list[int]]]:
    token_ids = load_tokenizer(source).encode(text.read_text(), add_special_tokens=False)
    every = [token_ids[start : start + seq] for start in range(0, len(token_ids) - seq + 1, seq)]
    chosen = every[:: max(1, len(every) // (2 * count))][: 2 * count]
    return chosen[::2], chosen[1::2]


def gguf_error(model: Decoder, quantized: Decoder, inputs: dict[str, torch.Tensor]) -> float:
    theirs, errors = dict(quantized.named_modules()), []
    for name, x_NI in inputs.items():
        module, other = model.get_submodule(name), theirs[name]
        assert isinstance(module, Linear)
        assert isinstance(other, Linear)
        size = (x_NI.float() @ module.weight.detach().float().T).square().mean().item()
        errors.append(output_error(module.weight.detach(), other.weight.detach(), x_NI) / size)
    return sum(errors) / len(errors)


def speeds(source: Path, folders: list[Path], rounds: int) -> None:
    """Packed (activations rounded to 8 bits), exact (the same integers, float activations), and not quantised."""
    config = {"prefix_caching": False, "cache_bytes": 2**27}
    engines = {("none", "float32"): Engine(source, config=EngineConfig(**config))}
    for folder in folders:
        for activations in ("int8", "float32"):
            engines[folder.name, activations] = Engine(folder, config=EngineConfig(activations=activations, **config))
    prompt = torch.randint(100, 10000, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    found: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in engines}
    for number in range(rounds + 1):
        for key, engine in engines.items():
            timed = prefill(engine, prompt), decode(engine, prompt[:16])
            if number:  # the first round warms up
                found[key].append(timed)
    print("\n| folder | activations | prefill, tok/s | decode, tok/s | prefill, of none | decode, of none |")
    print("|---|---|---|---|---|---|")
    for key, rows in found.items():
        fast = [statistics.median(column) for column in zip(*rows, strict=True)]
        ratios = [
            statistics.median(one[i] / base[i] for one, base in zip(rows, found["none", "float32"], strict=True))
            for i in range(2)
        ]
        print(f"| `{key[0]}` | {key[1]} | {fast[0]:.0f} | {fast[1]:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


def prefill(engine: Engine, prompt: list[int]) -> float:
    start = time.perf_counter()
    engine.generate([prompt], SamplingParams(temperature=0, max_tokens=1))
    return len(prompt) / (time.perf_counter() - start)


def decode(engine: Engine, prompt: list[int]) -> float:
    def seconds(tokens: int) -> float:
        start = time.perf_counter()
        engine.generate([prompt], SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
        return time.perf_counter() - start

    return OUTPUT / (seconds(OUTPUT + 1) - seconds(1))


if __name__ == "__main__":
    main()
