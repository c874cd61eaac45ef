"""From a config to the `Speculator` that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wootz.core import ConfigError, EngineConfig, SpeculationConfig
from wootz.engine import setup
from wootz.engine.runner import Model
from wootz.engine.speculation.draft_model import DraftModel
from wootz.engine.speculation.heads import ParallelHeads, SequentialHeads
from wootz.engine.speculation.prompt_lookup import PromptLookup
from wootz.engine.speculation.speculate import Speculator
from wootz.models import Decoder
from wootz.models.draft_heads import DraftHeads, load_heads
from wootz.tokenization import load_tokenizer
from wootz.tokenization.fingerprint import fingerprint

if TYPE_CHECKING:
    from wootz.tokenization import Tokenizer


def load_speculator(engine: EngineConfig, target: Model, tokenizer: Tokenizer | None) -> Speculator:
    """What drafts for ``target``. Raises `ConfigError` where the draft belongs to another model or tokenizer."""
    config = engine.speculation or SpeculationConfig()
    if config.method == "draft-model" and config.path is not None:
        return _draft_model(config.path, engine, target, tokenizer)
    if config.method == "heads" and config.path is not None:
        assert isinstance(target, Decoder)
        return with_heads(load_heads(config.path, target), target)
    return PromptLookup()


def with_heads(heads: DraftHeads, model: Decoder) -> Speculator:
    return SequentialHeads(heads, model) if heads.is_sequential else ParallelHeads(heads, model)


def _draft_model(path: Path, engine: EngineConfig, target: Model, tokenizer: Tokenizer | None) -> DraftModel:
    if tokenizer is None:
        raise ConfigError(f"{path}: a draft model needs a model whose tokenizer is known")
    theirs = load_tokenizer(path)
    if fingerprint(theirs)["vocabulary"] != fingerprint(tokenizer)["vocabulary"]:
        raise ConfigError(f"{path}: this draft model has another vocabulary", hint="use one of the same tokenizer")
    model, _ = setup.load(path, theirs, engine)
    return DraftModel(model, target)
