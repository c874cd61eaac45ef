"""``[alerts]``: which rules are looked at and how often, who is told, and what may be done without asking."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from wootz.core.sections.section import Section

AlertAction = Literal["limit_caller", "fail_over", "roll_back"]
AlertSeverity = Literal["info", "warning", "critical"]


class WebhookConfig(Section):
    url: str = Field(description="Where to POST, or a reference to it (env:NAME, store:NAME): it may hold a token.")
    secret: str = Field(description="A reference to what the messages are signed with, at least 24 characters.")
    least_severity: AlertSeverity = "warning"
    private: bool = Field(default=False, description="It lies in our own network, so private addresses are meant.")


class AlertsConfig(Section):
    enabled: bool = True
    every_seconds: float = Field(default=15.0, ge=1, description="Between two looks; rules may ask for rarer ones.")
    file: Path | None = Field(
        default=None, description="Rules of your own: [[rule]] tables, which change those that ship by their names."
    )
    acting: list[AlertAction] = Field(
        default_factory=list,
        description="Actions that are really done. Of the others it is only said what would be done (dry run).",
    )
    limit_requests_per_minute: int = Field(default=6, ge=1, description="What `limit_caller` leaves a caller.")
    webhooks: dict[str, WebhookConfig] = Field(default_factory=dict)
    alertmanager: str | None = Field(
        default=None, description="Base URL of an Alertmanager, or a reference to it: open incidents are pushed there."
    )
    runbook_url: str = Field(default="docs/operations/{runbook}.md", description="Where notices point to.")
    console_url: str | None = Field(default=None, description="Of this platform's console, for links in notices.")
