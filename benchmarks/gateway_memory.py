"""Is the gateway's memory flat? Many requests through `wootz up`, whole then streamed, and the slope of what it holds.

    python benchmarks/gateway_memory.py                                  # 200,000 requests, the claim of the docs
    python benchmarks/gateway_memory.py --requests 10000 --json bench-out/gateway-memory.json

Half of the requests are whole, half are streamed. After each of `--rounds` rounds of either kind the resident memory of
all processes of the gateway is read. The first third of the rounds fills pools and caches and is left out; through
the rest goes a line by least squares. Flat means: its slope is within twice its standard error, or adds less than a
megabyte per 10,000 requests. Ledger, limits and metrics are on, as in `benchmarks/gateway.py`, whose upstream and
client these are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gateway
import uvloop

PER = 10_000
NEGLIGIBLE = 1.0
"""MB per 10,000 requests."""


def slope(sizes: list[float], per_round: int) -> tuple[float, float]:
    """MB per 10,000 requests, and the standard error of that."""
    later = sizes[len(sizes) // 3 :]
    at = [number * per_round / PER for number in range(len(later))]
    line = statistics.linear_regression(at, later)
    rest = [size - line.intercept - line.slope * x for x, size in zip(at, later, strict=True)]
    spread = sum((x - statistics.fmean(at)) ** 2 for x in at)
    return line.slope, (sum(one**2 for one in rest) / max(len(later) - 2, 1) / spread) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=20, help="of each kind")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=20, help="of each streamed answer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    per_round = options.requests // 2 // options.rounds
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as text, ExitStack() as stack:
        folder, upstream, port = Path(text), gateway.free_port(), gateway.free_port()
        (folder / "upstream").mkdir()
        fake = [sys.executable, gateway.__file__, "--upstream", str(upstream), "--chunks", str(options.chunks)]
        stack.enter_context(gateway.running(fake, folder / "upstream"))
        command = gateway.wootz(folder, {"fake": upstream}, port)
        gateway.KEY = gateway.wootz_key(folder)
        process = stack.enter_context(gateway.running(command, folder))
        gateway.wait_until_up(f"http://127.0.0.1:{port}/readyz", process, folder)
        for kind in ("whole", "streamed"):
            sizes = [gateway.rss(process) / 1e6]
            for number in range(options.rounds):
                uvloop.run(gateway.rate(port, per_round, options.concurrency, stream=kind == "streamed"))
                sizes.append(gateway.rss(process) / 1e6)
                print(f"{kind:8} {(number + 1) * per_round:8,} requests {sizes[-1]:8.1f} MB", flush=True)
            growth, error = slope(sizes[1:], per_round)
            flat = growth <= max(2 * error, NEGLIGIBLE)
            results[kind] = {"MB per 10,000": growth, "standard error": error, "flat": flat, "MB": sizes}
    for kind, result in results.items():
        word = "flat" if result["flat"] else "GROWS"
        print(
            f"{kind:8} {result['MB per 10,000']:+.2f} ± {result['standard error']:.2f} MB per 10,000 requests: {word}"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"requests": options.requests, "results": results}, indent=2))
    sys.exit(not all(result["flat"] for result in results.values()))


if __name__ == "__main__":
    main()
