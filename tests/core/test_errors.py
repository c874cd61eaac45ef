"""One error, three faces: an HTTP status with OpenAI's body, one line on the command line, and Python."""

from __future__ import annotations

import json

import pytest

from wootz.core import errors
from wootz.core.errors import (
    BadRequestError,
    ConfigError,
    MissingExtraError,
    RateLimitError,
    UnavailableError,
    UnsupportedError,
    WootzError,
)

FAMILY = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, WootzError)]


def make(kind: type[WootzError]) -> WootzError:
    return MissingExtraError("engine", "engine", "torch") if kind is MissingExtraError else kind("it broke")


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_every_error_has_a_whole_openai_body(kind: type[WootzError]) -> None:
    error = make(kind)
    body = json.loads(json.dumps(error.to_openai()))
    assert body == {"error": {"message": str(error), "type": error.type, "param": None, "code": error.code}}
    assert all(isinstance(part, str) for part in (error.type, error.code))
    assert 400 <= error.status < 600
    assert error.exit_code != 0


@pytest.mark.parametrize(
    ("name", "status", "retryable"),
    [
        ("BadRequestError", 400, False),
        ("UnsupportedError", 400, False),
        ("AuthenticationError", 401, False),
        ("PermissionError_", 403, False),
        ("NotFoundError", 404, False),
        ("PayloadTooLargeError", 413, False),
        ("RateLimitError", 429, True),
        ("UpstreamError", 502, True),
        ("UnavailableError", 503, True),
        ("WootzError", 500, False),
    ],
)
def test_statuses_are_those_clients_know(name: str, status: int, retryable: bool) -> None:
    kind = getattr(errors, name)
    assert (kind.status, kind.retryable) == (status, retryable)


def test_what_is_given_at_the_raise_wins() -> None:
    error = BadRequestError("too long", code="context_length_exceeded", param="messages", hint="shorten it")
    assert str(error) == "too long; shorten it"
    assert error.to_openai()["error"] == {
        "message": "too long; shorten it",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
    assert BadRequestError("other").code == "invalid_value"  # the class default is untouched


def test_kinds_can_be_caught_together() -> None:
    assert issubclass(UnsupportedError, BadRequestError)
    assert issubclass(errors.ModelFileError, ConfigError)
    assert all(issubclass(kind, WootzError) for kind in (ConfigError, UnavailableError))


def test_a_limit_says_when_to_come_back_and_an_extra_how_to_get_it() -> None:
    assert RateLimitError("slow down", retry_after=2.5).retry_after == 2.5
    assert (
        str(MissingExtraError("engine", "engine", "torch"))
        == "wootz.engine needs \"torch\"; pip install 'wootz[engine]'"
    )
