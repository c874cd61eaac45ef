"""``[identity]``: who signs in, which groups have which roles, and how long a session lasts."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from wootz.core.sections.providers import KeyReference
from wootz.core.sections.section import Section


class OidcConfig(Section):
    issuer: str = Field(description="The identity provider, as its tokens name it; e.g. https://login.example.com")
    client_id: str
    client_secret: KeyReference | None = Field(default=None, description="A reference; none for a public client.")
    console_url: str = Field(description="Where people reach the console; the provider sends them back there.")
    scopes: list[str] = Field(default=["openid", "profile", "email"])
    groups_claim: str = Field(default="groups", description="The claim of the id token that lists a person's groups.")
    name_claim: str = Field(
        default="email", description="The claim that a user is called by here. An email address must be verified."
    )
    provisioned_only: bool = Field(default=False, description="Only people whom SCIM, or an admin, made users.")
    leeway_seconds: float = Field(default=60.0, ge=0, le=600, description="How far the provider's clock may be off.")

    @field_validator("issuer", "console_url")
    @classmethod
    def _is_https(cls, value: str) -> str:
        if not re.match(r"https://[^/]|http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)", value):
            raise ValueError("must begin with https:// (plain http only on this machine)")
        return value.removesuffix("/")


class IdentityConfig(Section):
    oidc: OidcConfig | None = None
    groups: dict[str, list[str]] = Field(default_factory=dict, description="The roles that a group's members have.")
    data_classes: list[str] = Field(
        default_factory=list, description="Classes of data, the most harmless first. Given, all models need one."
    )
    session_hours: float = Field(default=24.0, gt=0, description="After that a person signs in again.")
    idle_minutes: float = Field(default=120.0, gt=0, description="A session that is not used for so long is over.")
