"""A gate's figures as people read them, on the command line and on the console's page."""

from __future__ import annotations

from wootz.gateway.migration.gates import Gate

RATIOS = ("first_token", "duration", "cost")
LABELS = {
    "errors": "Errors",
    "refusals": "Refusals",
    "first_token": "First token, p95",
    "duration": "Whole answer, p95",
    "cost": "Cost of a request",
    "satisfaction": "Mean rating",
}


def figure(gate: Gate, value: float | None) -> str:
    if value is None:
        return "–"
    match gate.name:
        case "first_token" | "duration":
            return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"
        case "cost":
            return f"${value:.3g}"
        case "satisfaction":
            return f"{value:.2f}"
    return f"{value:.2%}"


def worse(gate: Gate) -> str:
    return "–" if gate.worse is None else _by(gate, gate.worse)


def margin(gate: Gate) -> str:
    return _by(gate, gate.margin)


def _by(gate: Gate, value: float) -> str:
    if gate.name in RATIOS:
        return f"×{value:.2f}"
    return f"{value:+.2f}" if gate.name == "satisfaction" else f"{100 * value:+.2f} pp"
