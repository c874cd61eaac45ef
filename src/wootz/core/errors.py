"""One error family for the whole house.

An error says what was wrong, where, and what to do. The same object becomes an HTTP status with an
OpenAI-shaped body at the gateway, and one line with a non-zero exit code on the command line. A message
is written for the user: it never holds a secret and never needs a traceback to be understood.

OpenAI's error body is ``{"error": {"message", "type", "param", "code"}}``
(https://platform.openai.com/docs/guides/error-codes).
"""

from __future__ import annotations

from typing import Any, ClassVar


class WootzError(Exception):
    """Base of every error a user can cause or meet.

    ``status``, ``type`` and ``code`` are class defaults; ``code``, ``param`` and ``hint`` may be given per
    raise. ``retryable`` says that the very same request may succeed later.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = "internal_error"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.hint = hint
        if code is not None:
            self.code = code

    def to_openai(self) -> dict[str, Any]:
        """The OpenAI error body, ready to be sent as JSON."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class ConfigError(WootzError):
    """The configuration cannot be used as it is: refuse to start."""

    code = "config_error"
    exit_code = 2


class ModelFileError(ConfigError):
    """A model's files are damaged, incomplete, or of a kind that is not supported."""

    code = "model_file_error"


class BadRequestError(WootzError):
    """The request can never succeed as it is written."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"
    exit_code = 2


class UnsupportedError(BadRequestError):
    """Well formed, but this model or provider cannot do it. Refused, never dropped in silence."""

    code = "unsupported_parameter"


class AuthenticationError(WootzError):
    """No key, an unknown key or a revoked key."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionError_(WootzError):
    """A known key that may not do this. (Underscored: `PermissionError` is Python's own.)"""

    status = 403
    type = "invalid_request_error"
    code = "permission_denied"


class NotFoundError(WootzError):
    """The named model, key, file or page does not exist, or this key may not see it."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"
    exit_code = 2


class PayloadTooLargeError(WootzError):
    """The request body is larger than `server.max_body_bytes`."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RateLimitError(WootzError):
    """A limit is used up. ``retry_after`` is in seconds; infinite: no waiting helps."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retryable = True

    def __init__(self, message: str, *, retry_after: float = 1.0, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after
        self.headers: dict[str, str] = {}
        """Of the answer, besides ``retry-after``."""


class UnavailableError(WootzError):
    """The model's process is down, restarting or draining; nothing was wrong with the request."""

    status = 503
    code = "model_unavailable"
    retryable = True


class UpstreamError(WootzError):
    """A remote provider failed or answered something that is not its own protocol. ``retry_after``, in seconds, is when
    it asked to be tried again, if it did."""

    status = 502
    code = "upstream_error"
    retryable = True

    def __init__(
        self, message: str, *, code: str | None = None, retry_after: float | None = None, hint: str | None = None
    ):
        super().__init__(message, code=code, hint=hint)
        self.retry_after = retry_after


class MissingExtraError(WootzError):
    """A room was imported without the extra that installs its dependencies."""

    code = "missing_extra"
    exit_code = 2

    def __init__(self, room: str, extra: str, module: str) -> None:
        super().__init__(f'wootz.{room} needs "{module}"', hint=f"pip install 'wootz[{extra}]'")
