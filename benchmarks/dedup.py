"""Near-deduplication beside datasketch: documents per second on the same corpus, and whether they find the same.

    python benchmarks/dedup.py --texts FILE_OR_FOLDER --documents 2000 --json bench-out/dedup.json

Half of the corpus is near-copies of the other half, with one word in forty replaced. Both use 128 permutations,
shingles of five words and the same bands at Jaccard 0.7; datasketch gets its shingles by ``split()`` and in one update,
the fastest way its documentation shows. One process, one thread each (set ``RAYON_NUM_THREADS=1``); rounds are
interleaved and the median is quoted. Wootz normalises text (case, punctuation, NFKC) within its time. Without
``--texts`` words are drawn by Zipf's law.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def corpus(texts: Path | None, num_documents: int) -> list[str]:
    lot = random.Random(0)
    if texts is None:
        words = np.array([f"w{n}" for n in range(20_000)])
        weights = 1 / np.arange(1, len(words) + 1)
        draw = np.random.default_rng(0).choice
        originals = [" ".join(draw(words, size=400, p=weights / weights.sum())) for _ in range(num_documents // 2)]
    else:
        from wootz.data.documents import Source, read_documents

        source = Source(name="texts", path=str(texts))
        found = [document.text for document in read_documents(source) if len(document.text) > 500]
        originals = found[: num_documents // 2]
    copies = []
    for text in originals:
        changed = text.split(" ")
        for place in lot.sample(range(len(changed)), max(1, len(changed) // 40)):
            changed[place] = "replaced"
        copies.append(" ".join(changed))
    return [*originals, *copies]


def wootz(texts: list[str]) -> int:
    from wootz.data.minhash import MinHash, near_duplicates

    hashes = MinHash.at(0.7).band_hashes(texts)
    return int((near_duplicates(hashes.T, len(texts)) != np.arange(len(texts))).sum())


def datasketch(texts: list[str]) -> int:
    from datasketch import MinHash, MinHashLSH

    index, found = MinHashLSH(threshold=0.7, num_perm=128), 0
    for number, text in enumerate(texts):
        words = text.split()
        signature = MinHash(num_perm=128)
        signature.update_batch([" ".join(words[n : n + 5]).encode() for n in range(max(1, len(words) - 4))])
        found += bool(index.query(signature))
        index.insert(str(number), signature)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    texts = corpus(given.texts, given.documents)
    systems: dict[str, Callable[[list[str]], int]] = {"wootz": wootz, "datasketch": datasketch}
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    found = {name: run(texts[:50]) for name, run in systems.items()}  # imports and tables are not what is measured
    for _ in range(given.rounds):
        for name, run in systems.items():
            began = time.perf_counter()
            found[name] = run(texts)
            seconds[name].append(time.perf_counter() - began)
    speeds = {name: len(texts) / statistics.median(times) for name, times in seconds.items()}
    megabytes = sum(map(len, texts)) / 1e6
    print(f"{len(texts)} documents, {megabytes:.1f} MB, {len(texts) // 2} of them near-copies")
    for name, speed in speeds.items():
        print(f"{name:12} {speed:10.0f} documents/s   {found[name]} found   {speed / speeds['datasketch']:.1f}x")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"speeds": speeds, "found": found, "seconds": seconds}, indent=2))


if __name__ == "__main__":
    main()
