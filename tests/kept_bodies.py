"""Records whose words are kept, as a server with ``telemetry.store_bodies`` leaves them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

from wootz.store.secrets.envelope import KeyWrapper, MasterKey
from wootz.telemetry import BodyStore, Ledger, RequestRecord, StoredBody


def some_master_key() -> Callable[[], KeyWrapper]:
    key = MasterKey(os.urandom(32))
    return lambda: key


async def write_with_body(
    ledger: Ledger, record: RequestRecord, request: str, answer: str, wrapper: Callable[[], KeyWrapper]
) -> BodyStore:
    store = BodyStore(ledger.database, wrapper)
    said = StoredBody(
        request_id=record.request_id,
        user=record.user,
        expires_at=record.started_at + timedelta(days=7),
        request=request,
        answer=answer,
    )
    await ledger.write(record, await store.seal(record, said))
    return store
