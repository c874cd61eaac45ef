"""Where things are kept: SQL (keys, sessions, the request ledger) and models."""

from wootz.store.columns import USD_DECIMALS, ExactUSD, Typed, UtcDateTime
from wootz.store.database import Base, Database
from wootz.store.inspect import ModelInfo, inspect_model
from wootz.store.models import ModelStore, StoredModel, model_name
from wootz.store.sqlite_writer import FEW_ROWS, Rows

__all__ = [
    "FEW_ROWS",
    "USD_DECIMALS",
    "Base",
    "Database",
    "ExactUSD",
    "ModelInfo",
    "ModelStore",
    "Rows",
    "StoredModel",
    "Typed",
    "UtcDateTime",
    "inspect_model",
    "model_name",
]
