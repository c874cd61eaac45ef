"""Bodies that were stored before they were encrypted: sealed where they lie, when a server of this version starts.

Until that is done they are read as they are (`BodyStore.get`). Where it can't be done, for want of a master key, they
go when their days are over, as they always did.
"""

from __future__ import annotations

import logging

from sqlalchemy import select, update

from wootz.core import WootzError
from wootz.telemetry.bodies import BodyStore, StoredBody, bodies
from wootz.telemetry.ledger import requests
from wootz.telemetry.record import RequestRecord

log = logging.getLogger(__name__)

PAGE = 100


async def seal_plain_bodies(store: BodyStore) -> int:
    """Returns how many there were."""
    b, number = bodies.c, 0
    plain = select(requests, b.expires_at, b.request, b.answer, b.user.label("of")).join(
        bodies, b.request_id == requests.c.request_id
    )
    page = plain.where(b.sealed.is_(None)).order_by(b.expires_at.desc()).limit(PAGE)
    while True:
        async with store.database.session() as session:
            rows = (await session.execute(page)).all()
        for row in rows:
            *fields, expires_at, asked, answered, user = row
            record = RequestRecord(**dict(zip(requests.c.keys(), fields, strict=True)))
            said = StoredBody(
                request_id=record.request_id, user=user, expires_at=expires_at, request=asked, answer=answered
            )
            sealed = await store.seal(record, said)
            values = {"sealed": sealed.sealed, "sealed_with": sealed.sealed_with, "request": None, "answer": None}
            async with store.database.session() as session:
                await session.execute(update(bodies).where(b.request_id == record.request_id).values(values))
        number += len(rows)
        if len(rows) < PAGE:
            break
    if number:
        await store.database.vacuum()
    return number


async def keep_house(store: BodyStore) -> None:
    """For as long as a server runs."""
    try:
        if number := await seal_plain_bodies(store):
            log.info("bodies: %d that lay in plain are encrypted", number)
    except WootzError as error:
        log.error("bodies: those of an older Wootz stay as they are: %s", error)
    await store.sweep_for_ever()
