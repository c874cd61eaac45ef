"""Where secrets are kept: an encrypted file with versions that rotate, or Vault. See ``docs/secrets.md``."""

from wootz.store.secrets.drill import rehearse
from wootz.store.secrets.local import About, Event, InvalidSecretVersion, LocalStore, Version
from wootz.store.secrets.opening import key_wrapper, open_local, open_source, wrapper_of

__all__ = [
    "About",
    "Event",
    "InvalidSecretVersion",
    "LocalStore",
    "Version",
    "key_wrapper",
    "open_local",
    "open_source",
    "rehearse",
    "wrapper_of",
]
