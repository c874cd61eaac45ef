"""From a config to the `Speculator` that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wootz.core import ConfigError, SpeculationConfig
from wootz.engine.runner import Model
from wootz.engine.speculation.draft_model import DraftModel
from wootz.engine.speculation.heads import ParallelHeads, SequentialHeads
from wootz.engine.speculation.prompt_lookup import PromptLookup
from wootz.engine.speculation.speculate import Speculator
from wootz.models import Decoder
from wootz.models import load as load_model
from wootz.models.draft_heads import DraftHeads, load_heads
from wootz.tokenization import load_tokenizer
from wootz.tokenization.fingerprint import fingerprint

if TYPE_CHECKING:
    from wootz.tokenization import Tokenizer


def load_speculator(config: SpeculationConfig, target: Model, tokenizer: Tokenizer | None) -> Speculator:
    """What drafts for ``target``. Raises `ConfigError` where the draft belongs to another model or tokenizer."""
    if config.method == "draft-model" and config.path is not None:
        return _draft_model(config.path, target, tokenizer)
    if config.method == "heads" and config.path is not None:
        assert isinstance(target, Decoder)
        return with_heads(load_heads(config.path, target), target)
    return PromptLookup()


def with_heads(heads: DraftHeads, model: Decoder) -> Speculator:
    return SequentialHeads(heads, model) if heads.is_sequential else ParallelHeads(heads, model)


def _draft_model(path: Path, target: Model, tokenizer: Tokenizer | None) -> DraftModel:
    if tokenizer is None:
        raise ConfigError(f"{path}: a draft model needs a model whose tokenizer is known")
    theirs, ours = fingerprint(load_tokenizer(path)), fingerprint(tokenizer)
    if theirs["vocabulary"] != ours["vocabulary"]:
        raise ConfigError(f"{path}: this draft model has another vocabulary", hint="use one of the same tokenizer")
    model = load_model(path, dtype=target.dtype, device=target.device, keep_quantized=True)
    return DraftModel(model.prepare_for_inference(), target)
