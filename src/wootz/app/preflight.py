"""What must be true before any process starts, each failure one line that says what to do.

In order of cost: what can be known without touching the disk first, downloads and the database last, so a
start that fails has written nothing that a later start would trip over.
"""

from __future__ import annotations

import errno
import importlib.util
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from wootz.core import (
    Config,
    ConfigError,
    MissingExtraError,
    ModelFileError,
    NotFoundError,
    progress_bar,
)
from wootz.providers.opening import endpoint_of
from wootz.store import Database, ModelStore
from wootz.store.inspect import inspect_model
from wootz.store.secrets import wrapper_of
from wootz.store.secrets.envelope import KEY_BYTES

SMALLEST_FREE_BYTES = 32 * 2**20
"""Room for the database to work in."""


@dataclass(frozen=True)
class Prepared:
    """What the supervisor starts from: the bound port, and where each local model lies."""

    listener: socket.socket
    model_paths: dict[str, Path]


def prepare(config: Config) -> Prepared:
    """Check everything, pull what is missing, bind the port. Raises one `WootzError`."""
    check_secrets(config)
    local = {name: model for name, model in config.models.items() if model.is_local}
    if local and importlib.util.find_spec("torch") is None:
        raise MissingExtraError("engine", "engine", "torch")
    check_home(config.home)
    check_master_key(config)
    for name, model in local.items():
        if model.path is not None:
            check_model(name, model.path.expanduser())
    listener = bind(config.server.host, config.server.port)
    try:
        return Prepared(listener, {name: model_path(config, name) for name in local})
    except BaseException:
        listener.close()
        raise


def check_secrets(config: Config) -> None:
    """Every reference that a running platform will need can be resolved now."""
    _ = config.database_url
    for name, model in config.models.items():
        if not model.is_local:
            endpoint_of(config, name)


def check_master_key(config: Config) -> None:
    """What is kept for users is encrypted with keys that it locks: it can be had, and locks. A first start makes it."""
    if config.secrets.master_key is None and config.database.url is not None:
        # One in the home would be lost with the home, or be another one on each replica, and all that is kept with it.
        own = config.home / "secrets.key"
        hint = f'it was "file:{own}" so far' if own.exists() else "make one with: openssl rand -base64 32"
        raise ConfigError(
            "secrets.master_key: has to be named where the database is elsewhere (database.url)", hint=hint
        )
    try:
        wrapper_of(config, create=True)().wrap(bytes(KEY_BYTES), b"wootz start")
    except ConfigError as error:
        raise ConfigError(f"secrets.master_key: {error.message}", hint=error.hint) from None


def check_home(home: Path) -> None:
    """The home folder exists (made private if it did not), can be written, and has room."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"\0" * 65536)
            file.flush()
    except OSError as error:
        raise ConfigError(
            f"home folder {home} can't be written: {error.strerror}", hint="choose another with --home"
        ) from None
    free = shutil.disk_usage(home).free
    if free < SMALLEST_FREE_BYTES:
        raise ConfigError(
            f"the disk of {home} is full ({free / 1e6:.0f} MB free, {SMALLEST_FREE_BYTES / 1e6:.0f} MB needed)",
            hint="free some space or choose another folder with --home",
        )


def check_model(name: str, path: Path) -> None:
    """There is a whole model at this path, as far as its headers tell."""
    if not path.exists():
        raise ConfigError(f'models.{name}.path: there is no "{path}"')
    try:
        inspect_model(path)
    except ModelFileError as error:
        raise ConfigError(f"models.{name}.path: {error}") from None
    except OSError as error:
        raise ConfigError(f'models.{name}.path: "{path}" can\'t be read ({error.strerror})') from None


def bind(host: str, port: int) -> socket.socket:
    """A listening socket that the HTTP process inherits: once bound, nobody can take the port away.

    ``port=0`` takes a free one.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f'server.host: "{host}" is no address of this machine ({error.strerror})') from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is in use", hint="stop what uses it or choose another with --port"
            ) from None
        raise ConfigError(
            f"can't listen on {host}:{port}: {error.strerror}", hint="choose another with --port"
        ) from None
    return listener


def model_path(config: Config, name: str) -> Path:
    """Where a local model's files are; one that names a source and is not here yet is pulled."""
    model = config.models[name]
    if model.path is not None:
        return model.path.expanduser().absolute()
    assert model.source is not None
    store = ModelStore(config.models_dir)
    try:
        return store.path_of(name)
    except NotFoundError:
        with progress_bar(f"Pulling {name}", unit="bytes") as progress:
            return store.pull(model.source, name=name, progress=progress).path


@asynccontextmanager
async def open_database(config: Config) -> AsyncIterator[Database]:
    """The platform's database, its tables up to date."""
    if config.database.url is None:
        check_home(config.home)
    database = Database(config.database_url)
    try:
        await database.migrate()
        yield database
    finally:
        await database.close()
