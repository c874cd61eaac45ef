"""A prompt's keyed hash: the ledger tells that the same was asked again, and how long it was, without the text.

Keyed BLAKE2b (RFC 7693) and no plain hash, for prompts are often short and guessable: who reads the ledger could hash
all guesses. The key lies beside the database, not in it (``WOOTZ_HOME/prompt-hash.key``, made at the first start), or
wherever ``telemetry.hash_key`` refers to, where several gateways are to agree. The text itself is kept only where
``telemetry.store_bodies`` is on, and each reading of it is audited.

An application's prompts mostly begin with the same instructions, and what changes from one to the next comes after
them. So the hash of the system messages that a chat begins with tells which template a prompt was made of, and that it
was edited, also where no client names a ``prompt_version``.
"""

from __future__ import annotations

import os
import secrets
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from wootz.core import Config, ConfigError, resolve_secret

KEY_FILE = "prompt-hash.key"
DIGEST_BYTES = 12
"""96 bits, so that two prompts in one ledger do not share one."""


INSTRUCTIONS = ("system", "developer")


class Hashes(NamedTuple):
    prompt: str
    num_chars: int
    template: str | None
    """None for a prompt that begins without instructions."""


class PromptHasher:
    def __init__(self, key: bytes) -> None:
        short = key if len(key) <= blake2b.MAX_KEY_SIZE else blake2b(key).digest()
        self._keyed = blake2b(key=short, digest_size=DIGEST_BYTES)

    @classmethod
    def of(cls, config: Config) -> PromptHasher:
        """Raises `ConfigError` where there is no key and none can be made."""
        if reference := config.telemetry.hash_key:
            return cls(resolve_secret(reference, used_by="telemetry.hash_key").encode())
        return cls(_own_key(config.home / KEY_FILE))

    def __call__(self, request: BaseModel) -> Hashes:
        """Of what a model is to read; its length is in characters."""
        digest, num_chars, template = self._keyed.copy(), 0, None
        begins = True
        for part in _parts(request):
            if begins and part[0] not in INSTRUCTIONS:
                begins = False
                template = digest.hexdigest() if num_chars else None
            for text in part:
                encoded = text.encode(errors="surrogatepass")
                digest.update(len(encoded).to_bytes(8, "big") + encoded)
            num_chars += len(part[-1])
        return Hashes(digest.hexdigest(), num_chars, template)


def _parts(request: Any) -> list[tuple[str, ...]]:
    """Each with its text last."""
    if messages := getattr(request, "messages", None):
        return [(str(message.role), message.text) for message in messages]
    for name in ("prompt", "input", "query"):
        if (value := getattr(request, name, None)) is not None:
            return [(value if isinstance(value, str) else repr(value),)]
    return []


def _own_key(file: Path) -> bytes:
    """Whoever is first makes it; linking puts it there whole or not at all."""
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            fresh = file.with_name(f"{file.name}.{os.getpid()}-{secrets.token_hex(4)}")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(secrets.token_hex(32).encode())
            try:
                os.link(fresh, file)
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"the key of prompt hashes, {file}: {error.strerror}") from None
