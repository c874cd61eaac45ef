"""`Encoder`: a model that reads a text as a whole, every token looking at all others, and does not write.

    embedding + positions + token types → norm → layers → one vector per text (`embed`), or its scores (`score`)

It is made of the parts of `wootz.models.decoder`; what makes it an encoder is ``causal=False`` in its attention. Texts
lie end to end in one flat run, so a batch has no padding, and a text's vector does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.core.errors import BadRequestError, UnsupportedError
from wootz.models.blocks.mlp import ACTIVATIONS, check_activation
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.sizes import check_sizes
from wootz.models.context import Context, PackedContext
from wootz.models.decoder import EmbeddingPositionsConfig, Layer, LayerConfig
from wootz.models.linear import Linear, prepare_for_inference
from wootz.models.pooling import PoolingConfig, pool
from wootz.models.run import Run


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Everything that shapes the model. Nothing about files or devices."""

    family: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    norm: NormConfig = field(default_factory=lambda: NormConfig("layer", 1e-12))
    max_position_embeddings: int = 512
    """How many tokens a text may have."""
    num_token_types: int = 0
    """Which of a pair's two texts a token is of."""
    embedding_positions: EmbeddingPositionsConfig | None = None
    embedding_norm: bool = True
    final_norm: bool = False
    shared: tuple[str, ...] = ()
    """Modules of the first layer that every layer uses: ``("mixer.score_bias",)`` in T5."""
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    num_labels: int | None = None
    """How many scores the head gives; None without a head."""
    pooler_activation: str = "tanh"
    tie_embeddings: bool = False
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The Hugging Face config that this was read from, and that is written when the model is saved."""

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "hidden_size", "max_position_embeddings", "num_layers")
        check_activation(self.pooler_activation)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def max_length(self) -> int:
        """The longest text in tokens, special tokens included."""
        return min(self.max_position_embeddings, self.pooling.max_length or self.max_position_embeddings)

    def build(self) -> Encoder:
        return Encoder(self)


class Encoder(nn.Module):
    """``config.build()`` has random weights; `wootz.models.load` fills them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        size, norm = config.hidden_size, config.norm
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, size), freeze=False)
        self.embedding_positions = config.embedding_positions.build(size) if config.embedding_positions else None
        self.token_types = (
            nn.Embedding.from_pretrained(torch.empty(config.num_token_types, size), freeze=False)
            if config.num_token_types
            else None
        )
        self.embedding_norm = norm.build(size) if config.embedding_norm else None
        self.layers = nn.ModuleList(Layer(layer, size, norm) for layer in config.layers)
        share_first(self.layers, config.shared)
        self.norm = norm.build(size) if config.final_norm else None
        has_pooler = config.num_labels is not None or config.pooling.mode == "pooler"
        self.pooler = Linear(size, size, bias=True) if has_pooler else None
        self.classifier = Linear(size, config.num_labels, bias=True) if config.num_labels is not None else None
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters())
        if not self.embedding.weight.is_meta:
            nn.init.normal_(self.embedding.weight, std=0.02)
            if self.token_types is not None:
                nn.init.normal_(self.token_types.weight, std=0.02)

    def forward(
        self, token_ids_T: Tensor, positions_T: Tensor, context: Context, token_types_T: Tensor | None = None
    ) -> Tensor:
        """Hidden states ``(T, D)`` of the last layer. Integers are int64; token types are 0 where not given."""
        x_TD = self.embedding(token_ids_T)
        if self.token_types is not None:
            types_T = torch.zeros_like(token_ids_T) if token_types_T is None else token_types_T
            x_TD = x_TD + self.token_types(types_T)
        if self.embedding_positions is not None:
            x_TD = self.embedding_positions(x_TD, positions_T)
        if self.embedding_norm is not None:
            x_TD = self.embedding_norm(x_TD)
        run = Run(positions_T, context)
        for layer in self.layers:
            x_TD = layer(x_TD, run)
        return x_TD if self.norm is None else self.norm(x_TD)

    def hidden(self, texts: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Hidden states ``(T, D)`` of these texts' tokens, end to end, in one pass with gradients."""
        lengths = [len(text) for text in texts]
        flat_T = torch.tensor(list(chain.from_iterable(texts)), device=self.device)
        types_T = (
            None if token_types is None else torch.tensor(list(chain.from_iterable(token_types)), device=self.device)
        )
        positions_T = torch.cat([torch.arange(length, device=self.device) for length in lengths])
        return self(flat_T, positions_T, PackedContext(lengths), types_T)

    def pooled(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Embeddings ``(N, D)`` in one pass with gradients: what contrastive training needs."""
        hidden_TD, lengths = self.hidden(texts), [len(text) for text in texts]
        mode = self.config.pooling.mode
        pooled_ND = self._pool_first(hidden_TD, lengths) if mode == "pooler" else pool(hidden_TD, lengths, mode)
        return F.normalize(pooled_ND, dim=-1) if self.config.pooling.normalize else pooled_ND

    def scored(self, texts: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None = None) -> Tensor:
        """The head's scores ``(N, labels)`` in one pass with gradients."""
        if self.classifier is None:
            raise UnsupportedError(
                f'this "{self.config.family}" model has no head that scores', hint="use a cross-encoder"
            )
        return self.classifier(self._pool_first(self.hidden(texts, token_types), [len(text) for text in texts]))

    @torch.inference_mode()
    def embed(self, texts: Sequence[Sequence[int]], *, truncate: bool = False, max_batch_tokens: int = 8192) -> Tensor:
        """One vector for each text's token ids (special tokens included): ``(N, D)`` in float32, on the CPU.

        Texts of similar length run together, at most ``max_batch_tokens`` in one pass. A text above
        ``config.max_length`` is a `BadRequestError`, or with ``truncate`` is cut; its last token ([SEP]) is kept.
        """
        texts = self._checked(texts, truncate)
        out_ND = torch.empty(len(texts), self.config.hidden_size)
        for batch in _batches(texts, max_batch_tokens):
            out_ND[batch] = self.pooled([texts[index] for index in batch]).float().cpu()
        return out_ND

    @torch.inference_mode()
    def score(
        self,
        texts: Sequence[Sequence[int]],
        token_types: Sequence[Sequence[int]] | None = None,
        *,
        truncate: bool = False,
        max_batch_tokens: int = 8192,
    ) -> Tensor:
        """A cross-encoder's scores, as logits: ``(N, labels)`` in float32, on the CPU.

        Each text is a pair as the tokenizer joins it (``[CLS] query [SEP] document [SEP]``), with the token types that
        it gives. Of one label, the sigmoid is the relevance. Lengths are treated as `embed` does.
        """
        texts = self._checked(texts, truncate)
        if token_types is not None:
            token_types = [[*types[: len(text) - 1], types[-1]] for types, text in zip(token_types, texts, strict=True)]
        if self.config.num_labels is None:
            self.scored([])
        out_NC = torch.empty(len(texts), self.config.num_labels or 0)
        for batch in _batches(texts, max_batch_tokens):
            types = None if token_types is None else [token_types[index] for index in batch]
            out_NC[batch] = self.scored([texts[index] for index in batch], types).float().cpu()
        return out_NC

    def _pool_first(self, hidden_TD: Tensor, lengths: Sequence[int]) -> Tensor:
        assert self.pooler is not None
        return ACTIVATIONS[self.config.pooler_activation](self.pooler(pool(hidden_TD, lengths, "cls").to(self.dtype)))

    def _checked(self, texts: Sequence[Sequence[int]], truncate: bool) -> list[Sequence[int]]:
        longest, checked = self.config.max_length, []
        for number, text in enumerate(texts):
            if not len(text):
                raise BadRequestError(f"text {number} has no tokens")
            if (highest := max(text)) >= self.config.vocab_size or min(text) < 0:
                raise BadRequestError(
                    f"text {number} holds token {highest}, and the vocabulary has {self.config.vocab_size}"
                )
            if len(text) > longest and not truncate:
                raise BadRequestError(
                    f"text {number} has {len(text)} tokens, and this model reads at most {longest}",
                    code="context_length_exceeded",
                )
            checked.append([*text[: longest - 1], text[-1]] if len(text) > longest else text)
        return checked

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def cache_specs(self) -> NoReturn:
        """An engine asks this first of a model that is to write."""
        self._refuse()

    def logits(self, token_ids_T: Tensor | Sequence[int]) -> NoReturn:
        self._refuse()

    def unembed(self, hidden_TD: Tensor) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(
            f'"{self.config.family}" is an encoder: it embeds and scores texts, and cannot write any'
        )

    def prepare_for_inference(self) -> Encoder:
        """Lay weights out for speed (see `Linear.prepare_for_inference`). After this the model can only be run."""
        prepare_for_inference(self)
        return self.eval()

    def tie_weights(self) -> None:
        """There is no output head to tie."""


def share_first(layers: nn.ModuleList, paths: Sequence[str]) -> None:
    """Give every layer the first one's module at each of these paths."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        for layer in layers[1:]:
            setattr(layer.get_submodule(parent), name, layers[0].get_submodule(path))


def _batches(texts: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    """Which texts run together: longest first, and never above ``max_tokens`` unless one text is by itself."""
    batch: list[int] = []
    num_tokens = 0
    for index in sorted(range(len(texts)), key=lambda index: -len(texts[index])):
        if batch and num_tokens + len(texts[index]) > max_tokens:
            yield batch
            batch, num_tokens = [], 0
        batch.append(index)
        num_tokens += len(texts[index])
    if batch:
        yield batch
