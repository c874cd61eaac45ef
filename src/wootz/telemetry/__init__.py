"""What each request leaves behind: a ledger row, an OpenTelemetry span, and metrics."""

from wootz.telemetry.bodies import BodyStore, SealedBody, StoredBody
from wootz.telemetry.ledger import Ledger
from wootz.telemetry.metrics import CONTENT_TYPE
from wootz.telemetry.observe import KeepBodies, Observation, Telemetry
from wootz.telemetry.price_book import PriceBook
from wootz.telemetry.prices import Price
from wootz.telemetry.record import AttemptRecord, RequestRecord, SpanRecord, Timeline
from wootz.telemetry.report import GROUPS, ReportRow, parse_period
from wootz.telemetry.spool import Spool
from wootz.telemetry.under_way import UnderWay

__all__ = [
    "CONTENT_TYPE",
    "GROUPS",
    "AttemptRecord",
    "BodyStore",
    "KeepBodies",
    "Ledger",
    "Observation",
    "Price",
    "PriceBook",
    "ReportRow",
    "RequestRecord",
    "SealedBody",
    "SpanRecord",
    "Spool",
    "StoredBody",
    "Telemetry",
    "Timeline",
    "UnderWay",
    "parse_period",
]
