"""The rules as a rules file of Prometheus, for those who alert from there.

Only what our metrics say enough for: a ledger knows users, features and conversations, and no metric has them as a
label (a million users would be a million time series). Those rules are named in a comment, not silently missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta

from wootz.telemetry.alerts.notices import alert_name
from wootz.telemetry.alerts.rules import Rule


def rules_file(rules: Mapping[str, Rule], runbook_url: str) -> str:
    """YAML. https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/"""
    there = [rule for rule in rules.values() if rule.enabled]
    lines = ["groups:", "- name: wootz", "  rules:"]
    for rule in there:
        if rule.promql is not None:
            lines += _alert(rule, runbook_url)
    without = [rule.name for rule in there if rule.promql is None]
    lines += ["# Not here, as no metric tells them apart; `wootz alerts` evaluates them on the ledger:"]
    lines += [f"#   {name}" for name in without]
    return "\n".join(lines) + "\n"


def _alert(rule: Rule, runbook_url: str) -> list[str]:
    """JSON strings are YAML strings."""
    assert rule.promql is not None
    expression = rule.promql.replace("{fires}", f"{rule.fires:g}")
    return [
        f"  - alert: {alert_name(rule.name)}",
        f"    expr: {json.dumps(expression)}",
        f"    for: {_duration(max(rule.hold, timedelta(minutes=1)))}",
        f"    keep_firing_for: {_duration(rule.quiet)}",
        "    labels:",
        f"      severity: {rule.severity}",
        f"      rule: {rule.name}",
        "    annotations:",
        f"      summary: {json.dumps(rule.about)}",
        f"      runbook_url: {json.dumps(runbook_url.replace('{runbook}', rule.runbook))}",
    ]


def _duration(span: timedelta) -> str:
    return f"{int(span.total_seconds())}s"
