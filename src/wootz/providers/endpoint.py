"""Where a remote model is answered: what every provider is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wootz.core.sections import ProviderKind
from wootz.providers.live_key import LiveKey


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """In seconds. ``silence`` is the longest wait for the next byte; None means as long as it takes."""

    connect: float = 10.0
    first_token: float | None = None
    silence: float = 600.0
    total: float | None = None


@dataclass(frozen=True)
class Endpoint:
    """One model at one account. ``api_key`` has the key itself: it is never logged, printed, or part of an error."""

    name: str
    """The name users call the model by."""
    base_url: str
    """http:// or https://. Only operators set it: a tenant who could would reach into our network."""
    api_key: LiveKey | str | None = field(default=None, repr=False)
    upstream_model: str = ""
    """The endpoint's own name for the model; empty means `name`."""
    kind: ProviderKind = "openai"
    region: str | None = None
    timeouts: Timeouts = Timeouts()
    headers: Mapping[str, LiveKey | str] = field(default_factory=dict, repr=False)
    """Sent with every request, for what an account needs (a workspace, a beta)."""
    prompt_cache: bool = True
    """Whether it is told which beginning of a prompt to keep (`providers/prompt_cache.py`)."""
    ask_whole: bool = False
    """Whether it is asked for whole answers where the caller wants one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "upstream_model", self.upstream_model or self.name)
        if isinstance(self.api_key, str):
            object.__setattr__(self, "api_key", LiveKey.of(self.api_key) if self.api_key else None)
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))

    @property
    def secrets(self) -> list[LiveKey]:
        return [one for one in (self.api_key, *self.headers.values()) if isinstance(one, LiveKey)]

    def conceal(self, text: str) -> str:
        """What the endpoint said, without what it was told in confidence."""
        for secret in self.secrets:
            text = secret.conceal(text)
        return text
