"""Encoding and training beside the libraries: megabytes of text per second, and the ratio to each.

    python benchmarks/tokenization.py TOKENIZER --texts FOLDER --json bench-out/tokenization.json

TOKENIZER is a model folder with a byte-level ``tokenizer.json``; FOLDER holds text files. A peer that is not installed
(`pip install tiktoken kitoken sentencepiece`) is left out. Encoding gets pieces of 100 kB, each seen once, one thread;
rounds are interleaved and the median is quoted. A peer's ids are compared with the reference's (`tokenizers`) first:
"ids differ" says in how many pieces they do, and makes its speed another matter.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

PIECE = 100_000
VOCAB = 8192


def read_texts(folder: Path, megabytes: float) -> list[str]:
    texts, size = [], 0
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            text = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        texts.append(text)
        size += len(text)
        if size > megabytes * 1e6:
            break
    whole = "".join(texts)
    return [whole[start : start + PIECE] for start in range(0, len(whole), PIECE)]


def encoders(folder: Path) -> dict[str, Callable[[str], list[int]]]:
    import tokenizers

    from wootz.tokenization import load_tokenizer

    library, ours = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), load_tokenizer(folder)
    found: dict[str, Callable[[str], list[int]]] = {
        "tokenizers": lambda text: library.encode(text, add_special_tokens=False).ids,
        "wootz": lambda text: ours.encode(text, add_special_tokens=False),
    }
    try:
        kitoken = importlib.import_module("kitoken").Kitoken.from_tokenizers_file(str(folder / "tokenizer.json"))
        found["kitoken"] = lambda text: kitoken.encode(text, True)
    except Exception as error:
        print(f"kitoken is left out: {error}", file=sys.stderr)
    try:
        import tiktoken

        from wootz.tokenization.ranks import ranks_of

        steps = json.loads(library.to_str())["pre_tokenizer"]["pretokenizers"]
        pattern = next(step["pattern"]["Regex"] for step in steps if step["type"] == "Split")
        encoding = tiktoken.Encoding("it", pat_str=pattern, mergeable_ranks=ranks_of(library), special_tokens={})
        found["tiktoken"] = encoding.encode_ordinary
    except Exception as error:
        print(f"tiktoken is left out: {error}", file=sys.stderr)
    return found


def trainers() -> dict[str, Callable[[list[str]], object]]:
    import tokenizers
    from tokenizers import pre_tokenizers

    from wootz.tokenization.pre_tokenizers import PATTERNS
    from wootz.tokenization.train import train_tokenizer

    def library(texts: list[str]) -> object:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        words = pre_tokenizers.Split(tokenizers.Regex(PATTERNS["cl100k"]), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=VOCAB, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        return backend

    def sentencepiece(texts: list[str]) -> object:
        import io

        lines = (line for text in texts for line in text.splitlines() if line)
        importlib.import_module("sentencepiece").SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=io.BytesIO(), vocab_size=VOCAB, model_type="bpe",
            num_threads=os.cpu_count(), minloglevel=2,
        )  # fmt: skip
        return None

    return {
        "tokenizers": library,
        "wootz": lambda texts: train_tokenizer(texts, vocab_size=VOCAB),
        "sentencepiece": sentencepiece,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    pieces = read_texts(args.texts, args.megabytes)
    systems = encoders(args.tokenizer)
    reference = [systems["tokenizers"](piece) for piece in pieces]
    differ = {
        name: sum(encode(piece) != ids for piece, ids in zip(pieces, reference, strict=True))
        for name, encode in systems.items()
    }
    share = len(pieces) // args.rounds
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(args.rounds):
        fresh = pieces[number * share : (number + 1) * share]
        megabytes = sum(len(piece.encode()) for piece in fresh) / 1e6
        for name, encode in encoders(args.tokenizer).items():  # made anew: no cache has seen these pieces
            encode(pieces[-1])
            start = time.perf_counter()
            for piece in fresh:
                encode(piece)
            rates[name].append(megabytes / (time.perf_counter() - start))
    print_table("encode", rates, differ)

    trained: dict[str, list[float]] = {}
    megabytes = sum(len(piece.encode()) for piece in pieces) / 1e6
    for name, train in trainers().items():
        start = time.perf_counter()
        train(pieces)
        trained[name] = [megabytes / (time.perf_counter() - start)]
    print_table(f"train {VOCAB}", trained, {})
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"encode": rates, "ids_differ": differ, "train": trained}, indent=2))


def print_table(title: str, rates: dict[str, list[float]], differ: dict[str, int]) -> None:
    ours = statistics.median(rates["wootz"])
    print(f"\n{title:<16}{'MB/s':>8}{'wootz is':>12}{'ids differ':>12}")
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"{name:<16}{rate:>8.1f}{ours / rate:>11.1f}x{differ.get(name, '-'):>12}")


if __name__ == "__main__":
    main()
