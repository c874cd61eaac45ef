"""From the configuration to the stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from wootz.core import Config, ConfigError
from wootz.core.secrets import SecretSource
from wootz.store.secrets.aws import AwsSecrets
from wootz.store.secrets.envelope import KeyWrapper, make_master_key, master_key
from wootz.store.secrets.local import LocalStore
from wootz.store.secrets.vault import Transit, Vault, VaultSecrets


def open_source(config: Config, scheme: str) -> SecretSource:
    """What answers references of this scheme for a server: of the local store, no more than its config names."""
    if scheme == "vault":
        return VaultSecrets(Vault(config.secrets))
    if scheme == "aws":
        return AwsSecrets()
    allowed = config.secrets.allow
    names = frozenset(_named(config.model_dump()) if allowed is None else allowed)
    return LocalStore(config.home / "secrets.db", wrapper_of(config), names=names)


def open_local(config: Config) -> LocalStore:
    """The whole local store, for who administers it."""
    return LocalStore(config.home / "secrets.db", wrapper_of(config, create=True))


def wrapper_of(config: Config, *, create: bool = False) -> Callable[[], KeyWrapper]:
    """What opens the local store's data keys; with ``create`` a new store gets a master key."""
    reference, own = config.secrets.master_key, config.home / "secrets.key"

    @cache
    def wrapper() -> KeyWrapper:
        if reference is None:
            if create and not (config.home / "secrets.db").exists():
                make_master_key(own)
            elif not own.exists():
                raise ConfigError(f"the master key {own} is gone", hint="restore it; without it nothing opens")
            return master_key(f"file:{own}")
        return key_wrapper(config, reference)

    return wrapper


def key_wrapper(config: Config, reference: str) -> KeyWrapper:
    if reference.startswith("transit:"):
        return Transit(Vault(config.secrets), reference.removeprefix("transit:"))
    return master_key(reference)


def _named(tree: Any) -> Iterator[str]:
    if isinstance(tree, str) and tree.startswith("store:"):
        yield tree.removeprefix("store:")
    elif isinstance(tree, dict | list | tuple):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _named(part)
