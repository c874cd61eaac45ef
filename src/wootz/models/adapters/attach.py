"""Adapters on one model: `Adapters`. Any number may be on it; the rows of a pass say whose they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from wootz.models.adapters.load import Lora
from wootz.models.adapters.low_rank import EmbeddingAdapters, LinearAdapters, Rows, Step
from wootz.models.decoder import Decoder
from wootz.models.linear import Linear


class Adapters:
    """Holds each adapter under a name. How the model's own weights are kept is not asked: dense, packed, quantised."""

    def __init__(self, model: Decoder) -> None:
        self.model, self.step = model, Step()
        self.embedding: EmbeddingAdapters | None = None

    def add(self, name: str, lora: Lora) -> None:
        for linear, low_rank in lora.low_ranks.items():
            if linear.adapters is None:
                linear.adapters = LinearAdapters(self.step)
            linear.adapters.low_ranks[name] = low_rank
        if lora.embedding is not None:
            if self.embedding is None:
                self.embedding = EmbeddingAdapters(self.step)
                self.model.embedding.register_forward_hook(self.embedding)
            self.embedding.pairs[name] = lora.embedding

    def remove(self, name: str) -> None:
        for module in self.model.modules():
            if isinstance(module, Linear) and module.adapters is not None:
                module.adapters.low_ranks.pop(name, None)
                if not module.adapters.low_ranks:
                    module.adapters = None
        if self.embedding is not None:
            self.embedding.pairs.pop(name, None)

    @contextmanager
    def rows(self, groups: list[tuple[str, Rows]]) -> Iterator[None]:
        """In this block, a pass over T rows gives the named adapters these rows, and the others the base alone.

        While there are any, layers run module by module, since a kernel that runs all of them at once adds nothing.
        """
        layer_loop = self.model.layer_loop
        self.step.groups = groups
        if groups:
            self.model.layer_loop = None
        try:
            yield
        finally:
            self.step.groups, self.model.layer_loop = [], layer_loop

    def active(self, name: str):
        """In this block every row is this adapter's."""
        return self.rows([(name, slice(None))])
