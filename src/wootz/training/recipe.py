"""Recipes: a TOML file that says how a model is made, from text to a folder that can be served.

    name = "spark"
    depth = 3                        # the one dial: all below follows from it unless it is set
    stages = ["clean", "tokenize", "pretrain", "evaluate"]

    [data]
    path = "my-texts/"

`Recipe.load` reads it, puts ``--set section.key=value`` on top, and refuses what it does not know. What is not set
follows from ``depth`` by rules of the field, each with its source in `Dial`.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from wootz.core.errors import ConfigError
from wootz.data.recipe import DataRecipe, recipe_of

StageName = Literal["clean", "tokenize", "pretrain", "evaluate"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(Section):
    """A data recipe (`wootz.data.recipe`): ``[[data.source]]`` and ``[[data.step]]`` tables, as `wootz data build` has
    them. ``path`` takes the place of all sources: a file of your own, or a folder of them."""

    path: Path | None = None
    source: tuple[dict[str, Any], ...] = ()
    step: tuple[dict[str, Any], ...] = ({"kind": "exact"},)
    held_out: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of documents that are never trained on, chosen by their text."""

    @model_validator(mode="after")
    def can_be_built(self) -> DataSection:
        if self.path is None and not self.source:
            raise ValueError('set "path" (your text), or sources')
        self.recipe(0)
        return self

    def recipe(self, seed: int) -> DataRecipe:
        """Paths are relative to the working directory."""
        sources = self.source if self.path is None else ({"name": "text", "path": str(self.path)},)
        table = {"source": sources, "step": self.step, "held_out": self.held_out, "seed": seed}
        try:
            return recipe_of(table, Path())
        except ConfigError as error:
            raise ValueError(error.message) from None


class TokenizerSection(Section):
    vocab_size: PositiveInt = 4096
    path: Path | None = None
    """A tokenizer that is there already, instead of training one."""
    on_the_fly: bool = False
    """Text is encoded while it is trained on (`wootz.data.streaming`), and only held-out tokens are kept."""


class ModelSection(Section):
    """What follows from ``depth`` unless it is set here."""

    hidden_size: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    num_kv_heads: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    context: PositiveInt = 256
    """Tokens of a row, and the longest text that the model is made for."""
    rope_base: PositiveFloat = 10_000.0
    tie_embeddings: bool = True


class Phase(Section):
    """A part of pretraining with rows, data or a rate of its own. Shares of all phases sum to 1."""

    name: str
    share: float = Field(gt=0, le=1)
    """Of all tokens."""
    context: PositiveInt | None = None
    """Positions follow (``longer_rows``)."""
    weights: dict[str, float] | None = None
    """Of the sources, in this phase."""
    rate_factor: PositiveFloat = 1.0
    """Of the schedule's learning rate."""


class PretrainSection(Section):
    tokens: PositiveInt | None = None
    batch_tokens: PositiveInt | None = None
    micro_batch_rows: PositiveInt | None = None
    """Rows in memory at once. Others are accumulated."""
    optimizer: str = "adamw"
    learning_rate: PositiveFloat | None = None
    weight_decay: float = Field(default=0.1, ge=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each layer's rate is this times that of the layer above it."""
    unfreeze: tuple[float, ...] = ()
    """Shares of all steps, from 0 on, at which the next lower group of layers joins training
    (`wootz.training.unfreezing`); as many groups as shares."""
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: PositiveFloat = 1.0
    schedule: str = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    minimum: float = Field(default=0.1, ge=0, le=1)
    """Of the peak rate, at the end."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    recompute: bool = False
    """Activations are computed again for the backward pass instead of kept."""
    compile: bool = False
    """Layers are compiled when they are first run (`wootz.training.compiling`)."""
    isolate: bool = True
    """No token sees one of another document."""
    checkpoint_every: PositiveInt = 100
    keep: PositiveInt = 2
    evaluate_every: PositiveInt = 100
    benchmarks: dict[str, Path] = {}
    """Files of items (`wootz.training.stages.benchmarks`), by name: looked at with the held-out text."""
    benchmark_items: PositiveInt = 200
    """Of each file, while training; all of them at the end."""
    sample_every: PositiveInt = 200
    hang_seconds: PositiveFloat = 300.0
    """Without a step for so long the watchdog ends the run. It is to be longer than the longest evaluation."""
    prompts: tuple[str, ...] = ("The ",)
    phases: tuple[Phase, ...] = ()
    longer_rows: Literal["base", "yarn"] = "base"
    """How positions follow when a phase has longer rows (`wootz.training.stages.context`)."""
    start_from: Path | None = None
    """A model folder to go on from (continual pretraining); its tokenizer is used."""

    @model_validator(mode="after")
    def shares_make_a_whole(self) -> PretrainSection:
        if self.phases and not math.isclose(sum(phase.share for phase in self.phases), 1.0, abs_tol=1e-6):
            raise ValueError("the shares of all phases must sum to 1")
        return self

    @model_validator(mode="after")
    def the_top_is_trained_first(self) -> PretrainSection:
        shares = self.unfreeze
        if shares and (shares[0] != 0 or sorted(set(shares)) != list(shares) or shares[-1] >= 1):
            raise ValueError("unfreeze holds rising shares of the steps, of which the first is 0 and all are below 1")
        return self


class MeshSection(Section):
    """How many processes, and how they share the work."""

    device: str = "cpu"
    """``cpu``, or an accelerator that `wootz plan` knows: h100, …"""
    data: PositiveInt = 1
    zero: Literal[1, 2, 3] = 3
    """What each rank of ``data`` has a share of only: the optimiser's state (1), gradients too (2), weights too (3)."""
    tensor: PositiveInt = 1
    pipeline: PositiveInt = 1
    fewest: PositiveInt | None = None
    """Of ``data``: down to how many the run goes on where others do not come back (`wootz.training.restarts`)."""

    @property
    def devices(self) -> int:
        return self.data * self.tensor * self.pipeline


class Recipe(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    depth: PositiveInt
    seed: int = 0
    stages: tuple[StageName, ...] = ("clean", "tokenize", "pretrain", "evaluate")
    data: DataSection
    tokenizer: TokenizerSection = TokenizerSection()
    model: ModelSection = ModelSection()
    pretrain: PretrainSection = PretrainSection()
    mesh: MeshSection = MeshSection()

    @model_validator(mode="after")
    def phases_weigh_sources_that_are_there(self) -> Recipe:
        names = {source.name for source in self.data.recipe(self.seed).sources}
        for phase in self.pretrain.phases:
            for weighed in phase.weights or ():
                if weighed not in names and weighed.rpartition(".")[0] not in names:
                    raise ValueError(f"phase {phase.name} weighs {weighed}, and there is no such source")
        return self

    @model_validator(mode="after")
    def its_mesh_can_do_it(self) -> Recipe:
        if self.pretrain.unfreeze and self.mesh.devices > 1:
            raise ValueError("pretrain.unfreeze is for one process")
        if self.mesh.zero == 1 and self.mesh.tensor * self.mesh.pipeline > 1:
            raise ValueError("mesh.zero = 1 goes with mesh.data, not with tensor or pipeline")
        if self.pretrain.compile and self.mesh.tensor * self.mesh.pipeline > 1:
            raise ValueError(
                "pretrain.compile is for whole layers: it goes with mesh.data, not with tensor or pipeline"
            )
        return self

    @staticmethod
    def load(name: Path | str, overrides: Sequence[str] = ()) -> Recipe:
        """Raises `ConfigError`, naming the key that is wrong."""
        raw = _read(name)
        for override in overrides:
            _put(raw, override)
        return Recipe.of(raw, str(name))

    @staticmethod
    def of(raw: dict[str, Any], where: str) -> Recipe:
        try:
            return Recipe.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{where}: {key + ': ' if key else ''}{message}") from None

    @staticmethod
    def mesh_of(raw: dict[str, Any]) -> MeshSection:
        return MeshSection.model_validate(raw.get("mesh", {}))

    @property
    def dial(self) -> Dial:
        return Dial.of(self)

    def over(self, data: int) -> Recipe:
        """The same steps over fewer data-parallel ranks, which accumulate more micro-batches of the same rows."""
        rows = {"batch_tokens": self.dial.batch_tokens, "micro_batch_rows": self.dial.micro_batch_rows}
        return self.model_copy(
            update={
                "mesh": self.mesh.model_copy(update={"data": data}),
                "pretrain": self.pretrain.model_copy(update=rows),
            }
        )

    @property
    def sizes(self) -> dict[int, Recipe]:
        """What may be run, by the number of processes, the most first: `mesh` itself, and with ``fewest`` those numbers
        among which its batches can be split."""
        mesh = self.mesh
        found: dict[int, Recipe] = {mesh.devices: self}
        for data in range(mesh.data - 1, (mesh.fewest or mesh.data) - 1, -1):
            if self.over(data).rows_of_a_step == self.rows_of_a_step:
                found[data * mesh.tensor * mesh.pipeline] = self.over(data)
        return found

    @property
    def rows_of_a_step(self) -> int:
        return self.mesh.data * self.dial.accumulate * self.dial.micro_batch_rows


@dataclass(frozen=True)
class Dial:
    """All sizes, set or derived.

    - width 64 per layer and heads of 64: nanochat's aspect ratio, near what scaling studies find flat (2001.08361);
    - a gated feed-forward part of 8/3 the width, the size of a plain one of 4 (2002.05202);
    - 20 tokens per parameter (2203.15556);
    - a batch that grows with the square root of the tokens (2505.13738), as a power of two;
    - a peak rate that falls with the width, 1e-3 at 768 (2203.03466).
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    num_parameters: int
    tokens: int
    batch_tokens: int
    steps: int
    accumulate: int
    """Of each data-parallel rank."""
    micro_batch_rows: int
    learning_rate: float

    @staticmethod
    def of(recipe: Recipe) -> Dial:
        model, pretrain = recipe.model, recipe.pretrain
        width = model.hidden_size or max(128, 64 * recipe.depth)
        heads = model.num_heads or max(1, width // 64)
        kv_heads = model.num_kv_heads or heads
        ffn = model.intermediate_size or 64 * round(width * 8 / 3 / 64)
        head_dim = width // heads
        layer = width * head_dim * (2 * heads + 2 * kv_heads) + 3 * width * ffn + 2 * width + 2 * head_dim
        embeddings = recipe.tokenizer.vocab_size * width * (1 if model.tie_embeddings else 2)
        num_parameters = recipe.depth * layer + embeddings + width
        tokens = pretrain.tokens or 20 * num_parameters
        longest = max([model.context, *(phase.context or 0 for phase in pretrain.phases)])
        rows = _power_of_two(4 * math.sqrt(tokens) / model.context)
        batch_tokens = pretrain.batch_tokens or max(rows * model.context, longest, recipe.mesh.data * model.context)
        own_rows = max(1, batch_tokens // model.context // recipe.mesh.data)
        micro = min(pretrain.micro_batch_rows or own_rows, own_rows)
        return Dial(
            hidden_size=width,
            num_heads=heads,
            num_kv_heads=kv_heads,
            intermediate_size=ffn,
            num_parameters=num_parameters,
            tokens=tokens,
            batch_tokens=batch_tokens,
            steps=max(1, tokens // batch_tokens),
            accumulate=max(1, own_rows // micro),
            micro_batch_rows=micro,
            learning_rate=pretrain.learning_rate or 1e-3 * 768 / width,
        )


def model_config(recipe: Recipe, vocab_size: int, *, end: int | None = None) -> dict[str, Any]:
    """The ``config.json`` of the model: a Qwen3, which is a Llama whose queries and keys are normalised."""
    dial, model = recipe.dial, recipe.model
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": dial.hidden_size,
        "intermediate_size": dial.intermediate_size,
        "num_hidden_layers": recipe.depth,
        "num_attention_heads": dial.num_heads,
        "num_key_value_heads": dial.num_kv_heads,
        "head_dim": dial.hidden_size // dial.num_heads,
        "hidden_act": "silu",
        "max_position_embeddings": model.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": model.rope_base,
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": dial.hidden_size**-0.5,
        "bos_token_id": None,
        "eos_token_id": end,
    }


def _power_of_two(number: float) -> int:
    return 2 ** max(0, round(math.log2(number)))


def _read(name: Path | str) -> dict[str, Any]:
    path = Path(name)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror})", hint="try recipes/spark.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not valid TOML ({error})") from None


def _put(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last:
        raise ConfigError(
            f'--set "{override}" is not of the form section.key=value', hint="such as pretrain.tokens=1e6"
        )
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f'--set "{override}": {section} is not a section')
    raw[last] = _value(value)


def _value(text: str) -> Any:
    """As JSON has it, whole numbers also as 2e6 or 2_000_000; anything else is text."""
    try:
        number = float(text)
        return int(number) if number == int(number) and "." not in text else number
    except (ValueError, OverflowError):
        pass
    try:
        return json.loads(text)
    except ValueError:
        return text
