"""AWS Secrets Manager with botocore as the client; the metadata service and the store answer as AWS documents them.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html and
https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from wootz.core import Config, ConfigError
from wootz.store.secrets import open_source

ACCESS_ID = re.compile(r"Credential=([\w-]+)/")


class FakeAws(BaseHTTPRequestHandler):
    """The metadata service (IMDSv2 only) and Secrets Manager on one port."""

    lives: timedelta
    issued: list[str]
    seen: list[str]
    version: int
    refuses: dict[str, str] | None

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        self._say(200, "a-session-of-the-metadata-service")

    def do_GET(self) -> None:
        if self.headers.get("x-aws-ec2-metadata-token") != "a-session-of-the-metadata-service":
            return self._say(401, "")
        cls, roles = type(self), "/latest/meta-data/iam/security-credentials/"
        if self.path == roles:
            return self._say(200, "wootz-task")
        if self.path == roles + "wootz-task":
            name = f"temporary-{len(cls.issued)}"
            cls.issued.append(name)
            ends = f"{datetime.now(UTC) + cls.lives:%Y-%m-%dT%H:%M:%SZ}"
            keys = {"AccessKeyId": name, "SecretAccessKey": "k", "Token": f"session-of-{name}", "Expiration": ends}
            return self._say(200, json.dumps({"Code": "Success", "Type": "AWS-HMAC", **keys}))
        if self.path.startswith("/latest/meta-data/placement/availability-zone"):
            return self._say(200, "eu-central-1a")
        self._say(404, "")

    def do_POST(self) -> None:
        cls, body = type(self), json.loads(self.rfile.read(int(self.headers["content-length"])))
        signed = ACCESS_ID.search(self.headers["authorization"])
        assert signed is not None
        cls.seen.append(signed[1])
        if self.headers.get("x-amz-security-token") != f"session-of-{signed[1]}":
            return self._say(400, json.dumps({"__type": "UnrecognizedClientException", "message": "who?"}))
        if cls.refuses:
            return self._say(400, json.dumps(cls.refuses))
        assert self.headers["x-amz-target"] == "secretsmanager.GetSecretValue"
        assert body["VersionStage"] == "AWSCURRENT"
        if body["SecretId"] not in ("wootz-prod/openai", "rds"):
            return self._say(400, json.dumps({"__type": "ResourceNotFoundException", "message": "it is a secret"}))
        text = {"rds": '{"username": "administrator", "password": "of-the-database"}'}
        value = text.get(body["SecretId"], f"a-key-{cls.version}")
        self._say(200, json.dumps({"SecretString": value, "CreatedDate": 1_700_000_000 + cls.version}))

    def _say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    fresh = {"lives": timedelta(hours=6), "issued": [], "seen": [], "version": 1, "refuses": None}
    handler = type("Handler", (FakeAws,), fresh)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_EC2_METADATA_DISABLED"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", url)
        # Static keys lie about, in both of the usual places.
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "static-in-the-environment")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "k")
        (tmp_path / "credentials").write_text(
            "[default]\naws_access_key_id = static-in-a-file\naws_secret_access_key = k\n"
        )
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        yield handler
        server.shutdown()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate({"home": tmp_path, "models": {}})


def test_a_machine_reads_with_temporary_credentials_of_its_role_and_no_others(aws: Any, config: Config) -> None:
    secret = open_source(config, "aws").current("wootz-prod/openai")
    assert (secret.value, secret.version) == ("a-key-1", 1_700_000_001)
    assert set(aws.seen) == {"temporary-0"}, "static keys that lie about are not used"


def test_credentials_are_taken_anew_before_they_end(aws: Any, config: Config) -> None:
    source = open_source(config, "aws")
    source.current("wootz-prod/openai")
    source.current("wootz-prod/openai")
    assert aws.issued == ["temporary-0"], "while they are good the metadata service is not asked again"
    aws.version = 2
    later = datetime.now(UTC) + aws.lives - timedelta(minutes=5)
    source._client._request_signer._credentials._time_fetcher = lambda: later  # type: ignore[attr-defined]
    assert source.current("wootz-prod/openai").value == "a-key-2"
    assert aws.seen == ["temporary-0", "temporary-0", "temporary-1"]


def test_a_field_of_a_secret_in_json(aws: Any, config: Config) -> None:
    source = open_source(config, "aws")
    assert source.current("rds#password").value == "of-the-database"
    with pytest.raises(ConfigError, match='no text "passwort" in rds'):
        source.current("rds#passwort")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"__type": "AccessDeniedException", "message": "User: arn:aws:sts::1:x is not authorized to perform: "
             "secretsmanager:GetSecretValue on resource: wootz-prod/openai"},
            "the role lacks secretsmanager:GetSecretValue for wootz-prod/openai",
        ),
        (
            {"__type": "AccessDeniedException", "message": "Access to KMS is not allowed"},
            "the role lacks kms:Decrypt for wootz-prod/openai",
        ),
        ({"__type": "InternalServiceError", "message": "the value was abc"}, "AWS refused (InternalServiceError)"),
    ],
)  # fmt: skip
def test_what_is_not_permitted_is_named(aws: Any, config: Config, said: dict[str, str], message: str) -> None:
    aws.refuses = said
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        open_source(config, "aws").current("wootz-prod/openai")
    assert "arn:aws" not in str(caught.value)
    assert "the value was" not in str(caught.value)


def test_without_an_identity_there_is_one_clear_error(
    aws: Any, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigError, match="no temporary credentials of AWS here"):
        open_source(config, "aws")
    assert not aws.seen
