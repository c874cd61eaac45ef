"""``[secrets]``: what opens the secret stores, and which secrets this setup may read."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from wootz.core.sections.providers import KeyReference
from wootz.core.sections.section import Section


def _is_a_name(name: str) -> str:
    if "*" in name:
        raise ValueError("must name each secret: * would open all of them to whoever breaks in")
    return name


class SecretsConfig(Section):
    master_key: str | None = Field(
        default=None,
        pattern="^(env:|file:|vault:|aws:|transit:).",
        description="What wraps the data keys of secrets, of stored bodies and of what is kept for users: file:PATH "
        "(0600), env:NAME, vault:PATH#KEY or aws:NAME with 32 bytes in base64, or transit:NAME, a key that never "
        "leaves Vault. Default: secrets.key in WOOTZ_HOME, made at the first start. Has to be named with database.url.",
    )
    allow: list[Annotated[str, AfterValidator(_is_a_name)]] | None = Field(
        default=None,
        description="The secrets of the local store that a server may read. Default: those that its config names.",
    )
    vault_address: str | None = Field(
        default=None, pattern="^https?://.", description="Of HashiCorp Vault or OpenBao, e.g. https://vault:8200."
    )
    vault_token: KeyReference | None = Field(default=None, description="A reference (env:, file:) to a token.")
    vault_role_id: str | None = Field(default=None, description="Sign in by AppRole instead; no secret by itself.")
    vault_secret_id: KeyReference | None = Field(default=None, description="A reference to the AppRole's secret id.")
    vault_jwt: KeyReference | None = Field(
        default=None,
        description="Or by workload identity: a reference (file:PATH) to the token that the platform renews there.",
    )
    vault_jwt_role: str | None = Field(default=None, description="Vault's role for it.")
    vault_jwt_mount: str = Field(default="kubernetes", description="Where its auth method is: kubernetes, jwt, ….")
    vault_namespace: str | None = Field(default=None)
