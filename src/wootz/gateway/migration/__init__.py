"""From one model to another: shadow, canary, ramp, with a gate before every step and a way back from all of them."""

from wootz.gateway.migration.controller import Controller
from wootz.gateway.migration.plan import Plan
from wootz.gateway.migration.store import Migration, MigrationStore, Step

__all__ = ["Controller", "Migration", "MigrationStore", "Plan", "Step"]
