"""``[server]`` and ``[database]``: the HTTP process, and where it keeps its records."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Literal

from pydantic import Field, field_validator

from wootz.core.sections.section import Section


class ServerConfig(Section):
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    master_key: str | None = Field(
        default=None,
        description="A reference (env:NAME, file:PATH) to an administrator's key. Default: the first start makes one.",
    )
    region: str | None = Field(
        default=None, description="Where this gateway, its database and its local models stand, e.g. eu-central."
    )
    trusted_proxies: list[str] = Field(
        default_factory=list,
        description="Addresses and networks of balancers, whose X-Forwarded-For and X-Forwarded-Proto are believed.",
    )
    max_body_bytes: int = Field(default=8 * 2**20, ge=1024, description="Larger request bodies are refused with 413.")
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    drain_seconds: float = Field(default=10.0, ge=0, description="How long running answers may go on after Ctrl-C.")
    drain_notice_seconds: float = Field(
        default=0.0, ge=0, description="How long it goes on while /readyz says 503 already; load balancers need it."
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        for network in value:
            ip_network(network)
        return value


class DatabaseConfig(Section):
    url: str | None = Field(
        default=None,
        description="SQLAlchemy URL, or a reference to one (env:NAME, file:PATH). Default: SQLite in WOOTZ_HOME.",
    )
