"""How far beyond its training length can a model read? Position schemes, and ways to stretch RoPE.

Small byte-level models are trained on rows of one length and then read longer ones. Low loss far out is not yet recall
far out (attention that only looks nearby has it too), so each model also has to copy a key from the far end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from wootz.core.errors import BadRequestError
from wootz.data.batch import IGNORED, Batch
from wootz.models import Decoder, read_config
from wootz.models.names import checkpoint_views
from wootz.models.positions.extension import Method, extend
from wootz.models.positions.longrope_search import SearchResult, search
from wootz.models.positions.rotary import Rotary, RotaryConfig
from wootz.training.fit import FitConfig, accuracy, fit, losses_by_position
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import VOCAB_SIZE, corpus, held_out_rows, training_rows

SCHEMES = ("rope", "alibi", "nope", "sinusoidal")


@dataclass(frozen=True)
class Size:
    """Of the models that are trained here."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    length: int = 128
    batch_size: int = 16
    steps: int = 400


def build(size: Size, **settings: Any) -> Decoder:
    raw = {
        "model_type": "wootz",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": size.length,
        "initializer_range": size.width**-0.5,
    }
    try:
        model = read_config(raw | settings).build()
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    assert isinstance(model, Decoder)
    return model


def train(model: Decoder, size: Size, seed: int, text: Path | None, steps: int | None = None, length: int = 0) -> None:
    rows = training_rows(corpus(text), size.batch_size, length or size.length, seed)
    fit(model, rows, FitConfig(steps=steps or size.steps))


def perplexities(
    model: Decoder,
    lengths: list[int],
    text: Path | None,
    num_rows: int = 24,
    span: tuple[float, float] = (0.0, 1.0),
) -> Curve:
    """Of the last quarter of held-out rows of each length: what the model knows once it has read that far."""
    curve = {}
    for length in lengths:
        losses = losses_by_position(model, held_out_rows(corpus(text), num_rows, length, span))
        curve[str(length)] = math.exp(min(losses[-max(1, length // 4) :].mean().item(), 20))
    return curve


def extrapolation_studies(
    *, schemes: tuple[str, ...] = SCHEMES, size: Size = Size(), reach: int = 8, text: Path | None = None
) -> tuple[Study, Study]:
    """Train at L on text, and to say a key that stands at the start of a row again at its end; then read L, 2L, …,
    ``reach`` L. The first study measures perplexity, the second how often the key is right. They share models."""
    lengths = [size.length * 2**power for power in range(int(math.log2(reach)) + 1)]
    trained: dict[tuple[str, int], Decoder] = {}

    def rows(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        for number, batch in enumerate(training_rows(corpus(text), size.batch_size, size.length, seed)):
            yield passkey_batch(size.length, size.batch_size, generator) if number % 3 == 2 else batch

    def model_of(variant: str, seed: int) -> Decoder:
        if (variant, seed) not in trained:
            torch.manual_seed(seed)
            trained[variant, seed] = build(size, positions=variant)
            fit(trained[variant, seed], rows(seed), FitConfig(steps=size.steps))
        return trained[variant, seed]

    def recall(variant: str, seed: int) -> Curve:
        generator = torch.Generator().manual_seed(10_000 + seed)
        model = model_of(variant, seed)
        return {str(length): accuracy(model, passkey_batch(length, 64, generator)) for length in lengths}

    shared: dict[str, Any] = {
        "variants": schemes,
        "x": "length read",
        "settings": {**vars(size), "lengths": lengths, "text": str(text or "standard library")},
    }
    perplexity = Study(
        name="extrapolate",
        question=f"Trained on {size.length} bytes: how far can each scheme read?",
        y="perplexity per byte, last quarter",
        run=lambda variant, seed: perplexities(model_of(variant, seed), lengths, text),
        log_y=True,
        **shared,
    )
    question = f"Trained on {size.length} bytes: is the first one remembered at the end?"
    return perplexity, Study(name="passkey", question=question, y="accuracy", run=recall, **shared)


MARK = 1


def passkey_batch(length: int, batch_size: int, generator: torch.Generator) -> Batch:
    """``mark key noise… mark``, after which the key, a digit, is asked."""
    rows = torch.randint(97, 123, (batch_size, length + 1), generator=generator)
    rows[:, 0] = rows[:, -2] = MARK
    rows[:, 1] = rows[:, -1] = torch.randint(48, 58, (batch_size,), generator=generator)
    labels = torch.full_like(rows[:, 1:], IGNORED)
    labels[:, -1] = rows[:, -1]
    return Batch(rows[:, :-1], labels)


def scaled(
    model: Decoder,
    factor: float,
    method: Method | None,
    long_factors: Sequence[float] | None = None,
    unscaled_tokens: int = 0,
) -> Decoder:
    """The same weights, with its rotary frequencies stretched by ``factor``; without a method, not at all."""
    raw = dict(model.config.raw)
    if method:
        raw = extend(raw, method, factor, long_factors=long_factors, unscaled_tokens=unscaled_tokens)
    other = read_config(raw).build()
    assert isinstance(other, Decoder)
    with torch.no_grad():
        for view, source in zip(checkpoint_views(other).values(), checkpoint_views(model).values(), strict=True):
            view.copy_(source)
    return other.eval()


EXTENSIONS: dict[str, Method | None] = {
    "naive": None,
    "PI": "linear",
    "NTK": "ntk",
    "YaRN": "yarn",
    "LongRoPE": "longrope",
}
CALIBRATION, EVALUATION = (0.0, 0.5), (0.5, 1.0)
"""Halves of the held-out text: LongRoPE's factors are bred on the one, and every method is judged on the other."""


@dataclass(frozen=True)
class SearchConfig:
    """Of LongRoPE's factors."""

    population: int = 16
    generations: int = 6
    parents: int = 4
    num_rows: int = 6
    """Of calibration text, each of the full new length."""


def extension_study(
    *,
    methods: tuple[str, ...] = tuple(EXTENSIONS),
    size: Size = Size(),
    factor: int = 4,
    tuning_steps: int = 40,
    breeding: SearchConfig = SearchConfig(),
    text: Path | None = None,
) -> Study:
    """Train at L, stretch by ``factor``, read up to that; untuned and after a few steps at the new length. The report
    notes the factors that LongRoPE's search found, and the calibration loss of these and of the rules it began with."""
    lengths = [size.length * 2**power for power in range(int(math.log2(factor)) + 1)]
    trained: dict[int, Decoder] = {}
    bred: dict[int, SearchResult] = {}

    def run(variant: str, seed: int) -> Curve:
        method, _, tuned = variant.partition(" + ")
        if seed not in trained:
            torch.manual_seed(seed)
            trained[seed] = build(size, positions="rope")
            train(trained[seed], size, seed, text)
        long_factors, unscaled = None, 0
        if EXTENSIONS[method] == "longrope":
            if seed not in bred:
                bred[seed] = breed_factors(trained[seed], size.length, factor, breeding, seed=seed, text=text)
            long_factors, unscaled = bred[seed].factors, bred[seed].unscaled_tokens
        model = scaled(trained[seed], factor, EXTENSIONS[method], long_factors, unscaled)
        if tuned:
            long_rows = training_rows(corpus(text), max(1, size.batch_size // factor), size.length * factor, 77 + seed)
            fit(model, long_rows, FitConfig(steps=tuning_steps, learning_rate=5e-4, warmup=5))
        return perplexities(model, lengths, text, span=EVALUATION)

    def notes(variant: str, seed: int) -> dict[str, Any]:
        if variant != "LongRoPE":
            return {}
        found = asdict(bred[seed])
        return {"search": found | {"factors": list(found["factors"]), "history": list(found["history"])}}

    variants = [*methods, *(f"{method} + tuning" for method in methods)]
    return Study(
        name="extend",
        question=f"RoPE trained on {size.length} bytes, stretched x{factor}",
        variants=tuple(variants),
        x="length read",
        y="perplexity per byte, last quarter",
        settings={
            **vars(size),
            "factor": factor,
            "tuning_steps": tuning_steps,
            "breeding": vars(breeding),
            "text": str(text or "standard library"),
        },
        run=run,
        notes=notes,
        log_y=True,
        references=tuple(methods),
    )


def breed_factors(
    model: Decoder, length: int, factor: int, breeding: SearchConfig, *, seed: int, text: Path | None
) -> SearchResult:
    """LongRoPE's search on a model trained on ``length``: the loss is that of whole calibration rows of ``factor``
    times that, in nats per byte."""
    rows_BT = held_out_rows(corpus(text), breeding.num_rows, length * factor, CALIBRATION)

    def fitness(factors: tuple[float, ...], unscaled_tokens: int) -> float:
        stretched = scaled(model, factor, "longrope", factors, unscaled_tokens)
        return losses_by_position(stretched, rows_BT).mean().item()

    return search(
        rotary_of(model),
        length,
        length * factor,
        fitness,
        population=breeding.population,
        generations=breeding.generations,
        parents=breeding.parents,
        seed=seed,
    )


def rotary_of(model: Decoder) -> RotaryConfig:
    return next(module.config for module in model.modules() if isinstance(module, Rotary))
