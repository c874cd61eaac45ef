"""Alerts and runbooks as data: rules over the ledger and the signals, incidents, who is told, and what is done."""

from wootz.telemetry.alerts.actions import Actor, Plan
from wootz.telemetry.alerts.forget import forget_person
from wootz.telemetry.alerts.incidents import IncidentRow, Incidents, NoticeRow, SilenceRow
from wootz.telemetry.alerts.loading import load_rules
from wootz.telemetry.alerts.notices import Links, Messenger, Receiver, secret_bytes, told
from wootz.telemetry.alerts.prometheus import rules_file
from wootz.telemetry.alerts.replay import replay
from wootz.telemetry.alerts.rules import Rule
from wootz.telemetry.alerts.watch import Watch

__all__ = [
    "Actor",
    "IncidentRow",
    "Incidents",
    "Links",
    "Messenger",
    "NoticeRow",
    "Plan",
    "Receiver",
    "Rule",
    "SilenceRow",
    "Watch",
    "forget_person",
    "load_rules",
    "replay",
    "rules_file",
    "secret_bytes",
    "told",
]
