"""An engine does not serve a model with a tokenizer that it was not made with."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from wootz.core import EngineConfig, ModelFileError
from wootz.engine.setup import load
from wootz.tokenization import load_tokenizer
from wootz.tokenization.fingerprint import write_fingerprint


def test_a_mismatched_tokenizer_is_refused(tmp_path: Path, smollm2_gguf: Path) -> None:
    folder = write_tiny_model(tmp_path)
    write_fingerprint(folder, load_tokenizer(folder))
    load(folder, None, EngineConfig())
    with pytest.raises(ModelFileError, match=r"not the tokenizer that the model was made with \(vocabulary"):
        load(folder, load_tokenizer(smollm2_gguf), EngineConfig())
    swapped = folder / "tokenizer.json"
    swapped.write_text(swapped.read_text().replace('"Ġthe"', '"Ġzzz"'))
    with pytest.raises(ModelFileError):
        load(folder, None, EngineConfig())
