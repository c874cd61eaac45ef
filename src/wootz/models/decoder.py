"""`Decoder`: the one model that nearly every family is, once its parts are chosen.

    embedding → layers, each a mixer and a feed-forward part around a residual stream → norm → head

A *mixer* moves information between tokens (attention, latent attention, a state-space scan); a *feed-forward* part
works on each token alone (a gated MLP, experts). What a layer is made of stands in its `LayerConfig`, and a family
(`wootz.models.families`) is a function from a checkpoint's ``config.json`` to a `DecoderConfig`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from wootz.models.blocks.experts import GroupedLinear
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.sizes import check_sizes
from wootz.models.context import CacheSpec, Context, PackedContext
from wootz.models.linear import Embedding, Linear, prepare_for_inference
from wootz.models.positions.guards import warn_beyond
from wootz.models.run import Run, assign_slots

NormPlacement = Literal["pre", "post", "output", "sandwich", "none"]
"""Where a layer normalises, for an inner part f:

- pre: ``x + f(norm(x))``, which trains without warm-up;
- post: ``norm(x + f(x))``, as in 2017;
- output: ``x + norm(f(x))`` (OLMo 2);
- sandwich: ``x + norm(f(norm(x)))`` (Gemma 2 and 3);
- none: ``x + f(x)``, for parts that see to it themselves.
"""


class PartConfig(Protocol):
    """A mixer's or feed-forward part's config. Its module is called with ``(x_TD, run)`` and returns ``(T, D)``."""

    def build(self, hidden_size: int) -> nn.Module: ...


class EmbeddingPositionsConfig(Protocol):
    """A position scheme that speaks in the embeddings. Its module is called with ``(x_TD, positions_T)``."""

    def build(self, hidden_size: int) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    mixer: PartConfig | None = None
    ffn: PartConfig | None = None
    norms: NormPlacement = "pre"
    parallel: bool = False
    """Both parts read the same input, and one norm if they are "pre" (GPT-J): ``x + mixer(norm(x)) + ffn(norm(x))``."""
    residual_scale: float = 1.0
    """What a part adds to the stream is multiplied by this."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Everything that shapes the model. Nothing about files or devices."""

    family: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    norm: NormConfig = field(default_factory=NormConfig)
    max_position_embeddings: int = 2048
    tie_embeddings: bool = False
    head_bias: bool = False
    final_norm: bool = True
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    embedding_positions: EmbeddingPositionsConfig | None = None
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    initializer_range: float = 0.02
    """Standard deviation of random weights; narrow models learn faster with a larger one, of ``hidden_size^-0.5``."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The Hugging Face config that this was read from, and that is written when the model is saved."""

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "hidden_size", "max_position_embeddings", "num_layers")

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def build(self) -> Decoder:
        return Decoder(self)


class Decoder(nn.Module):
    """A decoder-only language model. ``config.build()`` has random weights; `wootz.models.load` fills them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        size, norm = config.hidden_size, config.norm
        self.embedding = Embedding.from_pretrained(torch.empty(config.vocab_size, size), freeze=False)
        self.embedding_norm = norm.build(size) if config.embedding_norm else None
        self.embedding_positions = config.embedding_positions.build(size) if config.embedding_positions else None
        self.layers = nn.ModuleList(Layer(layer, size, norm) for layer in config.layers)
        self.norm = norm.build(size) if config.final_norm else None
        self.head = Linear(size, config.vocab_size, bias=config.head_bias)
        self.layer_loop: Callable[[Tensor, Run], Tensor] | None = None
        """Where all layers and the last norm can run in one call, that call (`wootz.engine.fused`)."""
        self.cache_specs: list[CacheSpec] = assign_slots(self)
        self.tie_weights()
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters())
        if not self.embedding.weight.is_meta:
            self._init_weights()

    def forward(self, token_ids_T: Tensor, positions_T: Tensor, context: Context) -> Tensor:
        """Final hidden states ``(T, D)``, normalised. Both inputs are int64; see `wootz.models.context`."""
        x_TD, run = self.start(token_ids_T, positions_T, context)
        if self.layer_loop is not None:
            return self.layer_loop(x_TD, run)
        for layer in self.layers:
            x_TD = layer(x_TD, run)
        return x_TD if self.norm is None else self.norm(x_TD)

    def start(self, token_ids_T: Tensor, positions_T: Tensor, context: Context) -> tuple[Tensor, Run]:
        """What the first layer is called with."""
        x_TD, run = self.embed(token_ids_T, positions_T), Run(positions_T, context)
        run.shared["embeddings"] = x_TD
        return x_TD, run

    def embed(self, token_ids_T: Tensor, positions_T: Tensor) -> Tensor:
        """Tokens as vectors, ``(T, D)``."""
        x_TD = self.embedding(token_ids_T)
        if self.config.embedding_scale != 1.0:
            # Rounded to the weights' dtype first, as those models were trained.
            x_TD = x_TD * torch.tensor(self.config.embedding_scale, dtype=x_TD.dtype).item()
        if self.embedding_positions is not None:
            x_TD = self.embedding_positions(x_TD, positions_T)
        if self.embedding_norm is not None:
            x_TD = self.embedding_norm(x_TD)
        return x_TD

    def unembed(self, hidden_TD: Tensor) -> Tensor:
        """Logits ``(T, V)``, in float32 at least."""
        logits_TV = self.head(hidden_TD)
        logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
        if self.config.logit_scale != 1.0:
            logits_TV = logits_TV * self.config.logit_scale
        if (cap := self.config.logit_softcap) is not None:
            logits_TV = cap * torch.tanh(logits_TV / cap)
        return logits_TV

    def logits(self, token_ids_T: Tensor | Sequence[int]) -> Tensor:
        """Logits ``(T, V)`` of one document from its start. Warns of a text that is longer than the model's longest."""
        token_ids_T = torch.as_tensor(token_ids_T, dtype=torch.int64, device=self.device)
        num_tokens = len(token_ids_T)
        warn_beyond(num_tokens, self.config.max_position_embeddings)
        positions_T = torch.arange(num_tokens, device=self.device)
        return self.unembed(self(token_ids_T, positions_T, PackedContext([num_tokens])))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def prepare_for_inference(self) -> Decoder:
        """Lay weights out for speed (see `Linear.prepare_for_inference`). After this the model can only be run."""
        prepare_for_inference(self)
        return self.eval()

    def tie_weights(self) -> None:
        """Make the output head read the embedding, if the config says so. Needed again after `to_empty`."""
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def _init_weights(self) -> None:
        """Normal, and smaller by ``1 / sqrt(2 * layers)`` where a part adds to the stream (GPT-2's rule), so that the
        stream's variance does not grow with depth. Parts with other needs have seen to them when they were built."""
        std = self.config.initializer_range
        nn.init.normal_(self.embedding.weight, std=std)
        for module in self.modules():
            if isinstance(module, Linear | GroupedLinear) and module.weight is not self.embedding.weight:
                nn.init.normal_(module.weight, std=std / (2 * len(self.layers)) ** 0.5 if module.into_residual else std)


class Layer(nn.Module):
    """One or two parts around the residual stream."""

    def __init__(self, config: LayerConfig, hidden_size: int, norm: NormConfig) -> None:
        super().__init__()
        self.config = config
        before, after = config.norms in ("pre", "sandwich"), config.norms not in ("pre", "none")
        self.mixer = config.mixer.build(hidden_size) if config.mixer else None
        self.mixer_norm = norm.build(hidden_size) if config.mixer and before else None
        self.mixer_output_norm = norm.build(hidden_size) if config.mixer and after else None
        self.ffn = config.ffn.build(hidden_size) if config.ffn else None
        self.ffn_norm = norm.build(hidden_size) if config.ffn and before and not config.parallel else None
        self.ffn_output_norm = norm.build(hidden_size) if config.ffn and after else None

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        if self.config.parallel and self.mixer is not None and self.ffn is not None:
            normed_TD = x_TD if self.mixer_norm is None else self.mixer_norm(x_TD)
            added_TD = self.config.residual_scale * (self.mixer(normed_TD, run) + self.ffn(normed_TD, run))
            return x_TD + added_TD
        x_TD = self._add(x_TD, run, self.mixer, self.mixer_norm, self.mixer_output_norm)
        return self._add(x_TD, run, self.ffn, self.ffn_norm, self.ffn_output_norm)

    def _add(
        self, x_TD: Tensor, run: Run, part: nn.Module | None, norm: nn.Module | None, output_norm: nn.Module | None
    ) -> Tensor:
        if part is None:
            return x_TD
        y_TD = part(x_TD if norm is None else norm(x_TD), run)
        if self.config.residual_scale != 1.0:
            y_TD = y_TD * self.config.residual_scale
        if output_norm is None:
            return x_TD + y_TD
        return output_norm(x_TD + y_TD) if self.config.norms == "post" else x_TD + output_norm(y_TD)
