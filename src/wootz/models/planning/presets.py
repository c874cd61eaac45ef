"""Named public models as their ``config.json`` describes them, so that they can be counted and compared without a file.

Only what shapes the model is kept. `preset` gives the config; nothing here holds weights.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from wootz.core.errors import NotFoundError
from wootz.models.loading import open_checkpoint
from wootz.models.model_folder import read_config


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Every preset by name, as Hugging Face config dictionaries."""
    return json.loads(files("wootz.models.planning").joinpath("presets.json").read_text())


def preset(name: str) -> dict[str, Any]:
    """Raises NotFoundError, naming those that are close, for a name we do not know."""
    if name in presets():
        return dict(presets()[name])
    import difflib

    close = difflib.get_close_matches(name, presets(), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(presets())}"
    raise NotFoundError(f'no preset is called "{name}"', hint=hint)


def describe(name: str | Path) -> dict[str, Any]:
    """The config of a preset, or of a model folder, ``config.json`` or GGUF file."""
    if str(name) in presets():
        return preset(str(name))
    path = Path(name).expanduser()
    if not path.exists():
        return preset(str(name))
    if path.suffix == ".gguf":
        return dict(open_checkpoint(path).config.raw)
    return dict(read_config(path.parent if path.name == "config.json" else path).raw)
