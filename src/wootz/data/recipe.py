"""A data recipe: which sources, what is done to them in which order, and how they become tokens. A TOML file.

    seed = 0
    held_out = 0.01                       # of the documents, kept apart for measuring

    [[source]]
    name = "web"
    path = "raw/web/*.jsonl.gz"
    weight = 60

    [[source]]
    name = "shelf"
    package = "pypi:some-texts==1.0"      # one file of a package, pinned (`packages`)
    path = "some_texts/books.jsonl"
    sha256 = "…"

    [[step]]
    kind = "heuristics"
    sources = ["web"]                     # all of them, if left out

    [[step]]
    kind = "near"
    jaccard = 0.7

    [[step]]
    kind = "decontaminate"
    against = ["evals/"]

    [tokens]
    tokenizer = "my-tokenizer"            # or vocab_size = 8192, to train one on the result

Paths are relative to the file. Steps and their keys are the classes of `steps` and their fields.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from wootz.core.errors import ConfigError, NotFoundError
from wootz.data.documents import Source
from wootz.data.filters import Heuristics, Languages
from wootz.data.steps import (
    DecontaminationStep,
    ExactStep,
    HeuristicStep,
    LanguageStep,
    LineStep,
    NearStep,
    QualityStep,
    Step,
)

T = TypeVar("T")


@dataclass(frozen=True)
class PlannedStep:
    step: Step
    sources: tuple[str, ...] = ()
    """Whose documents it is for; all, if empty. Sources split by language are meant by their old name."""

    def concerns(self, source: str) -> bool:
        return not self.sources or source in self.sources or source.rpartition(".")[0] in self.sources


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Either a tokenizer (a folder, or "bytes") or the size of one to train on the documents that are left."""

    tokenizer: str | None = None
    vocab_size: int | None = None
    pattern: str = "cl100k"
    train_on_bytes: int = 100_000_000

    def __post_init__(self) -> None:
        if (self.tokenizer is None) == (self.vocab_size is None):
            raise ConfigError("[tokens]: give either tokenizer or vocab_size")


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    sources: tuple[Source, ...]
    steps: tuple[PlannedStep, ...] = ()
    tokens: Tokens | None = None
    held_out: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names or len(set(names)) < len(names):
            raise ConfigError("a data recipe needs sources, each with a name of its own")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out = {self.held_out} is no share")
        for planned in self.steps:
            if unknown := set(planned.sources) - set(names):
                raise ConfigError(f"step {planned.step.kind}: there is no source {', '.join(sorted(unknown))}")

    def settings(self) -> dict[str, Any]:
        """All that the result depends on, for the report and to know a run again."""
        steps = [{"kind": p.step.kind, "sources": p.sources, **_settings_of(p.step)} for p in self.steps]
        sources = [{**asdict(source), "path": Path(source.path).name} for source in self.sources]
        return {"sources": sources, "steps": steps, "held_out": self.held_out, "seed": self.seed}


def load_recipe(file: Path | str) -> DataRecipe:
    """Raises `NotFoundError`, or `ConfigError` naming what is wrong and where."""
    file = Path(file)
    if not file.is_file():
        raise NotFoundError(f"{file}: no such recipe")
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file}: is not TOML ({error})") from None
    try:
        return recipe_of(content, file.parent)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.message}", hint=error.hint) from None


def recipe_of(content: Mapping[str, Any], base: Path) -> DataRecipe:
    """Of a table that was read already; ``base`` is what its paths are relative to."""
    if unknown := set(content) - {"source", "step", "tokens", "held_out", "seed"}:
        raise ConfigError(f"there is no key {', '.join(sorted(unknown))} in a data recipe")
    sources = [_checked(Source, row, f"source {number}") for number, row in enumerate(content.get("source", []), 1)]
    tokens = content.get("tokens")
    if tokens is not None:
        tokens = _checked(Tokens, tokens, "[tokens]")
        if tokens.tokenizer not in (None, "bytes"):
            tokens = replace(tokens, tokenizer=_path(base, str(tokens.tokenizer)))
    seed = content.get("seed", 0)
    return DataRecipe(
        sources=tuple(s if s.package else replace(s, path=_path(base, s.path)) for s in sources),
        steps=tuple(_planned(row, number, base, seed) for number, row in enumerate(content.get("step", []), 1)),
        tokens=tokens,
        held_out=content.get("held_out", 0.0),
        seed=seed,
    )


_STEPS = (ExactStep, LineStep, NearStep, QualityStep, DecontaminationStep)
KINDS = (HeuristicStep.kind, LanguageStep.kind, *(step.kind for step in _STEPS))


def _planned(row: Mapping[str, Any], number: int, base: Path, seed: int) -> PlannedStep:
    settings = dict(row)
    kind, sources = settings.pop("kind", None), tuple(settings.pop("sources", ()))
    where = f"step {number} ({kind})"
    for key in ("good", "against"):
        if isinstance(paths := settings.get(key), list):
            settings[key] = [_path(base, str(path)) for path in paths]
    if "model" in settings:
        settings["model"] = _path(base, str(settings["model"]))
    if kind in (NearStep.kind, QualityStep.kind):
        settings.setdefault("seed", seed)
    if kind == HeuristicStep.kind:
        return PlannedStep(HeuristicStep(_checked(Heuristics, settings, where)), sources)
    if kind == LanguageStep.kind:
        return PlannedStep(LanguageStep(_checked(Languages, settings, where)), sources)
    for step in _STEPS:
        if kind == step.kind:
            return PlannedStep(_checked(step, settings, where), sources)
    raise ConfigError(f"step {number}: {kind!r} is no kind of step", hint=f"choose one of {', '.join(KINDS)}")


def _checked(cls: type[T], row: Mapping[str, Any], where: str) -> T:
    if unknown := set(row) - {field.name for field in fields(cls)}:  # type: ignore[arg-type]  (dataclasses all)
        raise ConfigError(f"{where}: there is no key {', '.join(sorted(unknown))}")
    try:
        return TypeAdapter(cls).validate_python(dict(row))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {key}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


def _path(base: Path, path: str) -> str:
    return str(base / Path(path).expanduser())


def _settings_of(step: Step) -> dict[str, Any]:
    settings = asdict(step)  # type: ignore[call-overload]  (dataclasses all)
    return settings.get("rules") or settings.get("languages") or settings
