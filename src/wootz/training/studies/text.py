"""Text to try language models on, as bytes: a file of one's own, or what every machine has, Python's own library."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from wootz.core.errors import ConfigError
from wootz.data.batch import Batch

VOCAB_SIZE = 256
HELD_OUT = 0.1
"""The last tenth is never trained on."""


@cache
def corpus(file: Path | None = None, most_bytes: int = 4_000_000) -> Tensor:
    """``(N,)`` int64 of byte values. Without a file: the sources of Python's standard library, in order of name."""
    if file is not None:
        try:
            text = file.read_bytes()[:most_bytes]
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    else:
        library = Path(sysconfig.get_paths()["stdlib"])
        text = b"".join(source.read_bytes() for source in sorted(library.glob("*.py")))[:most_bytes]
    if len(text) < 100_000:
        raise ConfigError(f"{file}: {len(text)} bytes are too few to train on", hint="100,000 at least")
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


@cache
def prose() -> Tensor:
    """`corpus` of another kind: the English of Python's own help."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def training_rows(text_N: Tensor, batch_size: int, length: int, seed: int) -> Iterator[Batch]:
    """Random rows of ``length`` tokens and their labels, for ever, of all but the part that is held out."""
    return random_rows(text_N[: int(len(text_N) * (1 - HELD_OUT))], batch_size, length, seed)


def random_rows(text_N: Tensor, batch_size: int, length: int, seed: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text_N) - length - 1, (batch_size, 1), generator=generator)
        yield Batch.of(text_N[starts + torch.arange(length + 1)])


def held_out_rows(text_N: Tensor, num_rows: int, length: int, span: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Evenly spread rows ``(num_rows, length + 1)`` of the part that is never trained on, or of a ``span`` of it."""
    first, held_out = int(len(text_N) * (1 - HELD_OUT)), int(len(text_N) * HELD_OUT)
    begin, end = (first + int(held_out * share) for share in span)
    starts = torch.linspace(begin, end - length - 1, num_rows).long()[:, None]
    return text_N[starts + torch.arange(length + 1)]
