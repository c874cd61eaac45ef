"""llama.cpp as an oracle: its server's ``/tokenize`` route."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import httpx
import pytest


class Tokenize(Protocol):
    def __call__(self, text: str, *, add_special: bool = True) -> list[int]: ...


@contextmanager
def llama_cpp_tokenizer(model: Path) -> Iterator[Tokenize]:
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_gpu_layers, params.warmup, params.cpuparams.n_threads = 64, 0, False, 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        params.port = free.getsockname()[1]
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address, timeout=60) as client:

        def tokenize(text: str, *, add_special: bool = True) -> list[int]:
            body = {"content": text, "add_special": add_special, "parse_special": True}
            return client.post("/tokenize", json=body).raise_for_status().json()["tokens"]

        yield tokenize
    del server
