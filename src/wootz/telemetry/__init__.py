"""What each request leaves behind: a ledger row, an OpenTelemetry span, and metrics."""

from wootz.telemetry.ledger import Ledger
from wootz.telemetry.metrics import CONTENT_TYPE
from wootz.telemetry.observe import Observation, Telemetry
from wootz.telemetry.record import RequestRecord
from wootz.telemetry.report import GROUPS, ReportRow, parse_period

__all__ = [
    "CONTENT_TYPE",
    "GROUPS",
    "Ledger",
    "Observation",
    "ReportRow",
    "RequestRecord",
    "Telemetry",
    "parse_period",
]
