"""Vault by HTTP: a small server that answers as the documentation of KV version 2, AppRole and Transit shows."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from wootz.core import Config, ConfigError
from wootz.store.secrets import open_local, open_source

SECRET_ID, VALUE = "the-secret-id-of-the-role", "the-value-in-vault"


class FakeVault(BaseHTTPRequestHandler):
    """https://developer.hashicorp.com/vault/api-docs: sample requests and responses."""

    tokens: dict[str, bool]
    jwts: list[str]
    version: int
    may_decrypt: bool

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body: Any) -> None:
        cls = type(self)
        if self.path == "/v1/auth/approle/login":
            if body != {"role_id": "a-role", "secret_id": SECRET_ID}:
                return self._say(400, {"errors": ["invalid role or secret ID"]})
            token = f"token-{len(cls.tokens)}"
            cls.tokens[token] = True
            return self._say(200, {"auth": {"client_token": token, "lease_duration": 1200, "renewable": True}})
        if self.path == "/v1/auth/kubernetes/login":
            if body["role"] != "wootz-gateway" or not body["jwt"].startswith("a-service-accounts-token"):
                return self._say(403, {"errors": ["permission denied"]})
            cls.jwts.append(body["jwt"])
            token = f"token-{len(cls.tokens)}"
            cls.tokens[token] = True
            return self._say(200, {"auth": {"client_token": token, "lease_duration": 1200, "renewable": True}})
        if not cls.tokens.get(self.headers.get("x-vault-token", "")):
            return self._say(403, {"errors": ["permission denied"]})
        if self.path == "/v1/secret/data/team/openai":
            metadata = {"version": cls.version, "destroyed": False, "deletion_time": ""}
            return self._say(200, {"data": {"data": {"key": f"{VALUE}-{cls.version}"}, "metadata": metadata}})
        if self.path == "/v1/transit/encrypt/wootz":
            return self._say(200, {"data": {"ciphertext": "vault:v1:" + self._sealed(body["plaintext"], body)}})
        if self.path == "/v1/transit/decrypt/wootz" and cls.may_decrypt:
            plain, context = base64.b64decode(body["ciphertext"].removeprefix("vault:v1:")).decode().split("|")
            if context != body["associated_data"]:
                return self._say(400, {"errors": ["cipher: message authentication failed"]})
            return self._say(200, {"data": {"plaintext": plain}})
        self._say(404 if "decrypt" not in self.path else 403, {"errors": []})

    def _sealed(self, plain: str, body: Any) -> str:
        return base64.b64encode(f"{plain}|{body['associated_data']}".encode()).decode()

    def _say(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def vault() -> Iterator[Any]:
    handler = type("Handler", (FakeVault,), {"tokens": {}, "jwts": [], "version": 1, "may_decrypt": True})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        handler.url = f"http://127.0.0.1:{server.server_port}"
        yield handler
        server.shutdown()


@pytest.fixture
def config(vault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("SECRET_ID", SECRET_ID)
    role = {"vault_address": vault.url, "vault_role_id": "a-role", "vault_secret_id": "env:SECRET_ID"}
    return Config.model_validate({"home": tmp_path, "secrets": role})


def test_the_current_version_is_read_and_again_after_the_token_ended(vault: Any, config: Config) -> None:
    source = open_source(config, "vault")
    secret = source.current("secret/team/openai#key")
    assert (secret.value, secret.version) == (f"{VALUE}-1", 1)
    vault.tokens["token-0"], vault.version = False, 2
    assert source.current("secret/team/openai#key").version == 2


def test_a_service_account_signs_in_with_the_token_that_its_platform_keeps_fresh(vault: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-service-accounts-token-1")
    identity = {"vault_address": vault.url, "vault_jwt": f"file:{token}", "vault_jwt_role": "wootz-gateway"}
    source = open_source(Config.model_validate({"home": tmp_path, "secrets": identity}), "vault")
    assert source.current("secret/team/openai#key").version == 1
    token.write_text("a-service-accounts-token-2")
    vault.tokens["token-0"] = False
    source.current("secret/team/openai#key")
    assert vault.jwts == ["a-service-accounts-token-1", "a-service-accounts-token-2"]
    token.write_text("somebody-elses")
    vault.tokens["token-1"] = False
    with pytest.raises(ConfigError, match="Vault refused to sign in at auth/kubernetes/login") as caught:
        source.current("secret/team/openai#key")
    assert "somebody" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("secret/team/openai#nokey", 'Vault has no text "nokey" at secret/team/openai'),
        ("secret/other#key", "Vault has nothing at secret/data/other"),
        ("openai", "must be vault:MOUNT/PATH#KEY"),
        ("secret/../sys/raw#key", "must be vault:MOUNT/PATH#KEY"),
    ],
)
def test_what_is_not_there(config: Config, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_source(config, "vault").current(name)
    assert str(caught.value) == message


def test_a_token_that_may_not_read_names_what_it_lacks(vault: Any, config: Config, monkeypatch: Any) -> None:
    monkeypatch.setenv("TOKEN", "a-token-without-rights")
    mine = config.secrets.model_copy(update={"vault_role_id": None, "vault_token": "env:TOKEN"})
    with pytest.raises(ConfigError, match="its token lacks read on secret/data/team/openai") as caught:
        open_source(config.model_copy(update={"secrets": mine}), "vault").current("secret/team/openai#key")
    assert "a-token-without-rights" not in str(caught.value)


def test_a_vault_that_is_away(config: Config) -> None:
    mine = config.secrets.model_copy(update={"vault_address": "http://127.0.0.1:9"})
    with pytest.raises(ConfigError, match=r"Vault can't be reached \(ConnectError\)"):
        open_source(config.model_copy(update={"secrets": mine}), "vault").current("secret/team/openai#key")


def test_data_keys_are_wrapped_by_a_key_that_never_leaves_vault(vault: Any, config: Config, tmp_path: Path) -> None:
    config = config.model_copy(
        update={"secrets": config.secrets.model_copy(update={"master_key": "transit:wootz", "allow": ["local"]})}
    )
    open_local(config).set("local", "a-local-value")
    assert not (tmp_path / "secrets.key").exists()
    assert open_source(config, "store").current("local").value == "a-local-value"
    vault.may_decrypt = False
    with pytest.raises(ConfigError, match="its token lacks update on transit/decrypt/wootz"):
        open_source(config, "store").current("local")
