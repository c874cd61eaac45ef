"""Forms of attention side by side: time and peak memory over the length of the text.

    python benchmarks/attention.py --n 512,1024,2048,4096 --impl naive,sdpa,tiled,swa,linear

One causal forward pass over random inputs, ``heads`` heads of ``head_dim``; with ``--backward`` the backward pass too.
Quoted is the median of several runs after one that is thrown away. Peak memory is counted, not sampled: the most bytes
that the run held at once in tensors that it made (`wootz.models.instruments`; on a GPU the allocator's own count).
The traffic is a model's: what one pass would move between an accelerator's memory and its cores, in half precision.

The tiled form is the algorithm in Python, tile by tile. It shows the memory; PyTorch's kernel shows the speed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from wootz.models.attention.comparison import IMPLEMENTATIONS, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", default="512,1024,2048,4096", help="lengths, separated by commas")
    parser.add_argument("--impl", default=",".join(IMPLEMENTATIONS), help="names, separated by commas")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    print(f"{'impl':8}{'n':>8}{'ms':>12}{'peak MiB':>12}{'error':>12}{'HBM MiB':>12}")
    for impl in options.impl.split(","):
        for n in map(int, options.n.split(",")):
            result = measure(n, impl, backward=options.backward, device=options.device)
            results.append(asdict(result))
            error = "" if result.max_error is None else f"{result.max_error:.1e}"
            moved = "" if result.modelled_hbm_bytes is None else f"{result.modelled_hbm_bytes / 2**20:.1f}"
            print(
                f"{impl:8}{n:>8}{result.seconds * 1e3:>12.2f}{result.peak_bytes / 2**20:>12.2f}{error:>12}{moved:>12}",
                flush=True,
            )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
