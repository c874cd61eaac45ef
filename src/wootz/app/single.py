"""`wootz serve MODEL`: the platform's config cut down to one model without accounts."""

from __future__ import annotations

from pathlib import Path

from wootz.core import Config, ConfigError, ModelConfig, NotFoundError, progress_bar
from wootz.core.sections import SamplingConfig
from wootz.store import ModelStore

SOURCES = ("pypi:", "hf:", "ms:", "file:")


def single_model(config: Config, model: str, name: str | None) -> Config:
    """The config with nothing but ``model``: a path, a source (pulled now if need be), or a name in the store.

    One that the config knows by that name or source keeps its sampling defaults.
    """
    if not _is_loopback(config.server.host):
        raise ConfigError(
            f"without accounts anybody who reaches {config.server.host} could use the model",
            hint="listen on 127.0.0.1, or use `wootz up`, which asks for keys",
        )
    name, path = locate(config, model, name)
    known = (entry.sampling for key, entry in config.models.items() if model in (key, entry.source))
    entry = ModelConfig(path=path.absolute(), sampling=next(known, SamplingConfig()))
    return config.model_copy(update={"models": {name or (path.name if path.is_dir() else path.stem).lower(): entry}})


def locate(config: Config, model: str, name: str | None = None) -> tuple[str | None, Path]:
    """What the store calls it, if it is from there, and where it lies; pulled now if need be."""
    store = ModelStore(config.models_dir)
    path = Path(model).expanduser()
    if model.startswith(SOURCES):
        with progress_bar(f"Pulling {model}", unit="bytes") as progress:
            stored = store.pull(model, name=name, progress=progress)
        name, path = stored.name, stored.path
    elif not path.exists():
        try:
            name, path = name or model, store.path_of(model)
        except NotFoundError:
            hint = "give a path, a name that `wootz models` lists, or a source such as hf:ORG/NAME"
            raise NotFoundError(f'there is no model "{model}"', hint=hint) from None
    return name, path


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
