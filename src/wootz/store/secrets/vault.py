"""HashiCorp Vault (and OpenBao, which speaks the same): KV version 2 for secrets, Transit to wrap data keys.

https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2, …/auth/approle, …/secret/transit. Over httpx; blocks.
The token of an AppRole or of a workload's identity (…/auth/kubernetes, …/auth/jwt) ends after its lease: it is taken
anew when Vault says that the old one is no longer good.
"""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Mapping
from typing import Any

import httpx

from wootz.core import ConfigError, resolve_secret
from wootz.core.secrets import Secret
from wootz.core.sections import SecretsConfig

TIMEOUT_SECONDS = 5.0


class Vault:
    """A signed-in way to one Vault."""

    def __init__(self, config: SecretsConfig) -> None:
        if not config.vault_address:
            raise ConfigError("secrets.vault_address: is missing")
        by_role, by_jwt = (config.vault_role_id, config.vault_secret_id), (config.vault_jwt, config.vault_jwt_role)
        self._signs_in = all(by_role) or all(by_jwt)
        if not config.vault_token and not self._signs_in:
            ways = "vault_role_id and vault_secret_id, or vault_jwt and vault_jwt_role"
            raise ConfigError(f"secrets.vault_token (or {ways}): is missing")
        self._config = config
        headers = {"x-vault-namespace": config.vault_namespace} if config.vault_namespace else {}
        self._http = httpx.Client(base_url=config.vault_address, headers=headers, timeout=TIMEOUT_SECONDS)
        self._token: str | None = None
        self._signing_in = threading.Lock()

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer's ``data``. Raises `ConfigError` that says what was not permitted, and nothing that Vault said."""
        token = self._token or self._sign_in(None)
        answer = self._send(method, path, body, token)
        if answer.status_code == 403 and self._signs_in:
            answer = self._send(method, path, body, self._sign_in(token))
        if answer.status_code == 403:
            kind = "update" if method == "POST" else "read"
            raise ConfigError(f"Vault does not permit it: its token lacks {kind} on {path}")
        if answer.status_code == 404:
            raise ConfigError(f"Vault has nothing at {path}")
        return _data(answer)

    def _sign_in(self, worn_out: str | None) -> str:
        with self._signing_in:
            if self._token is None or self._token == worn_out:
                self._token = self._new_token()
            return self._token

    def _new_token(self) -> str:
        config = self._config
        if config.vault_token:
            return resolve_secret(config.vault_token, used_by="secrets.vault_token")
        if config.vault_jwt:
            # Read each time: the platform puts a new token there before the old one ends.
            jwt = resolve_secret(config.vault_jwt, used_by="secrets.vault_jwt")
            path, shown = f"auth/{config.vault_jwt_mount}/login", {"role": config.vault_jwt_role, "jwt": jwt}
        else:
            secret_id = resolve_secret(config.vault_secret_id or "", used_by="secrets.vault_secret_id")
            path, shown = "auth/approle/login", {"role_id": config.vault_role_id, "secret_id": secret_id}
        answer = self._send("POST", path, shown, None)
        try:
            return answer.raise_for_status().json()["auth"]["client_token"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            raise ConfigError(f"Vault refused to sign in at {path} (status {answer.status_code})") from None

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, token: str | None) -> httpx.Response:
        try:
            headers = {"x-vault-token": token} if token else {}
            return self._http.request(method, f"/v1/{path}", json=body, headers=headers)
        except httpx.HTTPError as error:
            raise ConfigError(f"Vault can't be reached ({type(error).__name__})") from None


class VaultSecrets:
    """``MOUNT/PATH#KEY`` of a KV version 2 engine. Vault keeps the versions, and the audit of who read them."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def current(self, name: str) -> Secret:
        path, _, key = name.partition("#")
        mount, _, rest = path.partition("/")
        if not (mount and rest and key) or ".." in path or "?" in path:
            raise ConfigError("must be vault:MOUNT/PATH#KEY")
        held = self._vault.ask("GET", f"{mount}/data/{rest}")
        fields, about = held.get("data"), held.get("metadata")
        value = fields.get(key) if isinstance(fields, dict) else None
        if not isinstance(value, str):
            raise ConfigError(f'Vault has no text "{key}" at {path}')
        version = about.get("version") if isinstance(about, dict) else None
        return Secret(value, version if isinstance(version, int) else None)

    def count_uses(self, name: str, uses: Mapping[int, int], used_by: str) -> None:
        """Nothing to do: the request's record names the version, and Vault has an audit log of its own."""


class Transit:
    """A `KeyWrapper`: the master key is Vault's and never leaves it."""

    def __init__(self, vault: Vault, key: str) -> None:
        self._vault, self._key = vault, key

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        sent = {"plaintext": _base64(data_key), "associated_data": _base64(context)}
        return self._text("encrypt", sent, "ciphertext").encode()

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        # What another master key locked is no text; Vault then refuses it.
        sent = {"ciphertext": wrapped.decode(errors="replace"), "associated_data": _base64(context)}
        try:
            return base64.b64decode(self._text("decrypt", sent, "plaintext"), validate=True)
        except binascii.Error:
            raise ConfigError("Vault's answer is not the Transit engine's") from None

    def _text(self, action: str, sent: Mapping[str, str], wanted: str) -> str:
        got = self._vault.ask("POST", f"transit/{action}/{self._key}", sent).get(wanted)
        if not isinstance(got, str):
            raise ConfigError("Vault's answer is not the Transit engine's")
        return got


def _data(answer: httpx.Response) -> dict[str, Any]:
    try:
        data = answer.raise_for_status().json()["data"]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
        raise ConfigError(f"Vault failed (status {answer.status_code})") from None
    if not isinstance(data, dict):
        raise ConfigError("Vault's answer is not a secret engine's")
    return data


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
