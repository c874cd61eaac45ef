"""Responses that are kept, so that a later request can go on from one by its id.

Each is kept with its own input only; a conversation is the chain of them. So whoever deletes a response deletes its
words, and a later request cannot go on from beyond it. A key sees its own responses and no other's.
"""

from __future__ import annotations

import time
from typing import Any

from msgspec import json
from sqlalchemy import BigInteger, Column, Index, String, Table, Text, delete, insert, select

from wootz.core import BadRequestError, NotFoundError
from wootz.gateway.kept import Kept, Thing, sealed_columns
from wootz.gateway.keys import Key
from wootz.store import Base, Database
from wootz.store.secrets.data_keys import DataKey

responses = Table(
    "responses",
    Base.metadata,
    Column("id", String, primary_key=True),
    # The key's id; empty where there are no accounts. No foreign key: keys are revoked, never deleted.
    Column("owner", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("previous_id", String),
    # In plain, of before they were encrypted.
    Column("input", Text, nullable=False),
    Column("response", Text, nullable=False),
    Column("user", String),
    *sealed_columns(),
    Index(None, "created_at"),
)

KEPT_SECONDS = 30 * 86_400
"""As long as OpenAI keeps them."""
MAX_TURNS = 500
"""Of one conversation."""

Item = dict[str, Any]


class ResponseStore:
    def __init__(self, database: Database, kept: Kept) -> None:
        self.database, self.kept = database, kept

    async def save(self, key: Key | None, response: dict[str, Any], input: list[Item], user: str | None) -> None:
        """Durable when it returns."""
        thing = Thing("response", owner_of(key), response["id"])
        row = {
            "id": thing.id,
            "owner": thing.owner,
            "created_at": response["created_at"],
            "previous_id": response["previous_response_id"],
            "user": user,
        }
        row |= sealed_response(self.kept, await self.kept.key(), thing, json.encode(response), json.encode(input))
        async with self.database.session() as session:
            await session.execute(insert(responses), [row])

    async def get(self, key: Key | None, id: str) -> tuple[dict[str, Any], list[Item]]:
        """The response and its own input. Raises `NotFoundError`, also for another key's."""
        c = responses.c
        async with self.database.session() as session:
            query = select(c.response, c.input, c.sealed, c.sealed_with).where(*_own(key, id))
            row = (await session.execute(query)).one_or_none() if id.isprintable() else None
        if row is None:
            raise NotFoundError(f'there is no response "{id[:100]}"', code="response_not_found", param="response_id")
        if (text := await self.kept.open(Thing("response", owner_of(key), id), row)) is not None:
            response, input = json.decode(text)
            return response, input
        return json.decode(row.response), json.decode(row.input)

    async def sweep(self) -> None:
        """Delete those that are too old."""
        too_old = responses.c.created_at < int(time.time()) - KEPT_SECONDS
        async with self.database.session() as session:
            await session.execute(delete(responses).where(too_old))

    async def delete(self, key: Key | None, id: str) -> None:
        await self.get(key, id)
        async with self.database.session() as session:
            await session.execute(delete(responses).where(*_own(key, id)))

    async def conversation(self, key: Key | None, id: str | None) -> tuple[list[Item], str]:
        """All that was said up to and with this response, oldest first, and the id of the first one."""
        turns: list[list[Item]] = []
        first = ""
        while id is not None:
            first = id
            try:
                response, input = await self.get(key, id)
            except NotFoundError:
                message = f'there is no response "{id[:100]}" to go on from'
                raise BadRequestError(
                    message, code="previous_response_not_found", param="previous_response_id"
                ) from None
            turns.append([*input, *response["output"]])
            if len(turns) == MAX_TURNS:
                message = f"a conversation may have {MAX_TURNS} turns"
                raise BadRequestError(message, param="previous_response_id", hint='send what matters of it as "input"')
            id = response["previous_response_id"]
        return [item for turn in reversed(turns) for item in turn], first


def owner_of(key: Key | None) -> str:
    return "" if key is None else key.id


def sealed_response(kept: Kept, key: DataKey, thing: Thing, response: bytes, input: bytes) -> dict[str, Any]:
    """The row's values of what was said; both are JSON."""
    return kept.seal(key, thing, f"[{response.decode()},{input.decode()}]") | {"response": "", "input": ""}


def _own(key: Key | None, id: str) -> tuple[Any, ...]:
    return responses.c.id == id, responses.c.owner == owner_of(key)
