"""Forms of attention side by side: time and memory over the length of the text.

One causal forward pass over random inputs. Time is the median of several runs after one that is thrown away. Peak
memory is counted, not sampled: the most bytes that the run held at once in tensors that it made
(`wootz.models.instruments`; on a GPU the allocator's own count). The traffic is a model's: what one pass would move
between an accelerator's memory and its cores, in half precision.

The tiled form is the algorithm in Python, tile by tile. It shows the memory; PyTorch's kernel shows the speed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wootz.core.errors import MissingExtraError
from wootz.models.attention import linear
from wootz.models.attention.dense import attend, attend_eager
from wootz.models.attention.tiled import attend_tiled, hbm_bytes, tile_for
from wootz.models.attention.windowed import attend_windowed
from wootz.models.instruments import peak_bytes

WINDOW, TILE, SRAM = 256, 256, 192 * 1024


def _linear(q_HTd: Tensor, k_HTd: Tensor, v_HTd: Tensor, scale: float) -> Tensor:
    heads, _, dim = q_HTd.shape
    state = linear.linear_attention_state(heads, dim, dim).start(1, q_HTd.dtype, q_HTd.device)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (linear.elu_plus_one(q_HTd), linear.elu_plus_one(k_HTd), v_HTd))
    return linear.linear_attention(state, q, k, v)[0]


IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "naive": lambda q, k, v, scale: attend_eager(q, k, v, scale=scale, is_causal=True),
    "sdpa": lambda q, k, v, scale: attend(q, k, v, scale=scale, is_causal=True),
    "tiled": lambda q, k, v, scale: attend_tiled(q, k, v, scale=scale, is_causal=True, tile=TILE)[0],
    "swa": lambda q, k, v, scale: attend_windowed(q, k, v, scale=scale, window=WINDOW),
    "linear": _linear,
}


@dataclass(frozen=True)
class Measurement:
    impl: str
    n: int
    seconds: float
    peak_bytes: int
    max_error: float | None
    """Largest difference from "naive", of the forms that are exact; None for others, and where naive is too large."""
    modelled_hbm_bytes: int | None
    """Of all heads; None where there is no model."""


def measure(
    n: int,
    impl: str,
    *,
    heads: int = 8,
    head_dim: int = 64,
    backward: bool = False,
    repeats: int = 5,
    device: str = "cpu",
    largest_naive: int = 4096,
) -> Measurement:
    """One form at one length. ``impl`` is a name of `IMPLEMENTATIONS`."""
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(heads, n, head_dim, generator=generator, device=device, requires_grad=backward) for _ in range(3)
    )
    scale, attention = head_dim**-0.5, IMPLEMENTATIONS[impl]

    def run() -> Tensor:
        out = attention(q, k, v, scale)
        if backward:
            torch.autograd.grad(out.sum(), (q, k, v))
        return out

    with torch.set_grad_enabled(backward):
        peak = _peak(run, device)
        error = None
        if impl in ("sdpa", "tiled") and n <= largest_naive:
            error = (run() - IMPLEMENTATIONS["naive"](q, k, v, scale)).abs().max().item()
        seconds = [_timed(run, device) for _ in range(repeats)]
    tile = {"naive": None, "tiled": tile_for(SRAM, head_dim), "sdpa": tile_for(SRAM, head_dim)}
    moved = heads * hbm_bytes(n, head_dim, tile=tile[impl], is_causal=True) if impl in tile else None
    return Measurement(impl, n, statistics.median(seconds), peak, error, moved)


def _timed(run: Callable[[], Tensor], device: str) -> float:
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak(run: Callable[[], Tensor], device: str) -> int:
    if device == "cpu":
        return peak_bytes(run)
    run()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def plot(measurements: list[Measurement], file: Path) -> None:
    """Time and peak memory over the length, a line for each form."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("models.attention.comparison", "bench", "matplotlib") from None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for impl in dict.fromkeys(measurement.impl for measurement in measurements):
        line = [measurement for measurement in measurements if measurement.impl == impl]
        lengths = [measurement.n for measurement in line]
        time_axes.plot(lengths, [1e3 * measurement.seconds for measurement in line], "o-", label=impl)
        memory_axes.plot(lengths, [measurement.peak_bytes / 2**20 for measurement in line], "o-", label=impl)
    time_axes.set(title="Time", ylabel="ms")
    memory_axes.set(title="Peak memory", ylabel="MiB")
    for axes in (time_axes, memory_axes):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="tokens", yscale="log")
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=130)
