"""`EncoderDecoder`: one text is read as a whole, another is written while looking at it (arXiv 1706.03762, T5).

    source → encoder → keys and values, once
    target → layers: causal attention, cross-attention, feed-forward → norm → head

Sources and targets are flat runs of pairs, as everywhere here, so training needs no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from wootz.core.errors import BadRequestError, UnsupportedError
from wootz.models.attention.streaming import StreamingContext
from wootz.models.blocks.cross_attention import SOURCE_LENGTHS, TARGET_LENGTHS, CrossAttention
from wootz.models.blocks.norms import NormConfig
from wootz.models.context import Context, PackedContext
from wootz.models.decoder import Layer, LayerConfig
from wootz.models.encoder import EncoderConfig, share_first
from wootz.models.linear import Linear, prepare_for_inference
from wootz.models.run import Run, assign_slots


@dataclass(frozen=True, kw_only=True)
class WritingLayerConfig:
    """Three parts: ``attend`` has the causal attention, ``consult`` the cross-attention and the feed-forward part."""

    attend: LayerConfig
    consult: LayerConfig


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    family: str
    encoder: EncoderConfig
    layers: tuple[WritingLayerConfig, ...]
    norm: NormConfig = field(default_factory=NormConfig)
    shared: tuple[str, ...] = ()
    """Modules of the first writing layer that every one uses."""
    tie_embeddings: bool = True
    logit_scale: float = 1.0
    start_token_id: int = 0
    """What a target begins with."""
    eos_token_ids: tuple[int, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def vocab_size(self) -> int:
        return self.encoder.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.encoder.hidden_size

    @property
    def max_position_embeddings(self) -> int:
        return self.encoder.max_position_embeddings

    def build(self) -> EncoderDecoder:
        return EncoderDecoder(self)


class WritingLayer(nn.Module):
    def __init__(self, config: WritingLayerConfig, hidden_size: int, norm: NormConfig) -> None:
        super().__init__()
        self.attend = Layer(config.attend, hidden_size, norm)
        self.consult = Layer(config.consult, hidden_size, norm)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        return self.consult(self.attend(x_TD, run), run)


class EncoderDecoder(nn.Module):
    """``config.build()`` has random weights; `wootz.models.load` fills them."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, size), freeze=False)
        self.encoder = config.encoder.build()
        self.encoder.embedding = self.embedding
        self.layers = nn.ModuleList(WritingLayer(layer, size, config.norm) for layer in config.layers)
        share_first(self.layers, config.shared)
        self.final_norm = config.norm.build(size)
        self.head = Linear(size, config.vocab_size)
        self.tie_weights()
        assign_slots(self.layers)
        self._consulting = [module for module in self.layers.modules() if isinstance(module, CrossAttention)]
        for index, module in enumerate(self._consulting):
            module.name = f"source_{index}"
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters())
        if not self.embedding.weight.is_meta:
            nn.init.normal_(self.embedding.weight, std=0.02)

    def encode(self, sources: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Read these texts: what the writing layers need of them, for any number of passes."""
        encoded_SD = self.encoder.hidden(sources)
        memory = {module.name: module.remember(encoded_SD) for module in self._consulting}
        return memory | {SOURCE_LENGTHS: torch.tensor([len(source) for source in sources])}

    def forward(
        self, token_ids_T: Tensor, positions_T: Tensor, context: Context, memory: Mapping[str, Tensor]
    ) -> Tensor:
        """Final hidden states ``(T, D)`` of the targets' tokens; ``memory`` is `encode`'s of their sources."""
        lengths = context.lengths if isinstance(context, PackedContext) else [len(token_ids_T)]
        run = Run(positions_T, context, {**memory, TARGET_LENGTHS: torch.tensor(lengths)})
        x_TD = self.embedding(token_ids_T)
        for layer in self.layers:
            x_TD = layer(x_TD, run)
        return self.final_norm(x_TD)

    def unembed(self, hidden_TD: Tensor) -> Tensor:
        """Logits ``(T, V)``, in float32 at least."""
        logits_TV = self.head(hidden_TD * self.config.logit_scale)
        return logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))

    def logits(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Tensor:
        """Logits ``(T, V)`` at the tokens of all targets, each of which begins with the start token."""
        lengths = [len(target) for target in targets]
        flat_T = torch.tensor(list(chain.from_iterable(targets)), device=self.device)
        positions_T = torch.cat([torch.arange(length, device=self.device) for length in lengths])
        return self.unembed(self(flat_T, positions_T, PackedContext(lengths), self.encode(sources)))

    @torch.inference_mode()
    def generate(self, source: Sequence[int], max_new_tokens: int = 64) -> list[int]:
        """The likeliest next token again and again, after the start token, up to an end token, which is included."""
        if not len(source):
            raise BadRequestError("there is nothing to read: the source has no tokens")
        memory = self.encode([source])
        context = StreamingContext(self, capacity=max_new_tokens)  # pyright: ignore[reportArgumentType]
        written: list[int] = []
        while len(written) < max_new_tokens and not (written and written[-1] in self.config.eos_token_ids):
            token = torch.tensor([written[-1] if written else self.config.start_token_id], device=self.device)
            hidden_1D = self(token, context.next_positions(1), context, memory)
            written.append(int(self.unembed(hidden_1D).argmax()))
        return written

    @property
    def cache_specs(self) -> NoReturn:
        """An engine asks this first of a model that is to write."""
        raise UnsupportedError(
            f'"{self.config.family}" writes while it looks at another text, which the engine does not serve',
            hint="use EncoderDecoder.generate",
        )

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    def prepare_for_inference(self) -> EncoderDecoder:
        """Lay weights out for speed (see `Linear.prepare_for_inference`). After this the model can only be run."""
        prepare_for_inference(self)
        return self.eval()

    def tie_weights(self) -> None:
        """Make the output head read the embedding, if the config says so. Needed again after `to_empty`."""
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight
