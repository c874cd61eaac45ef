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
from wootz.gateway.keys import Key
from wootz.store import Base, Database

responses = Table(
    "responses",
    Base.metadata,
    Column("id", String, primary_key=True),
    # The key's id; empty where there are no accounts. No foreign key: keys are revoked, never deleted.
    Column("owner", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("previous_id", String),
    Column("input", Text, nullable=False),
    Column("response", Text, nullable=False),
    Column("user", String),
    Index(None, "created_at"),
)

KEPT_SECONDS = 30 * 86_400
"""As long as OpenAI keeps them."""
SWEEP_SECONDS = 3600
MAX_TURNS = 500
"""Of one conversation."""

Item = dict[str, Any]


class ResponseStore:
    def __init__(self, database: Database) -> None:
        self.database = database
        self._swept = 0.0

    async def save(self, key: Key | None, response: dict[str, Any], input: list[Item], user: str | None) -> None:
        """Durable when it returns. Those that are too old go, now and then."""
        now = time.time()
        row = {
            "id": response["id"],
            "owner": owner_of(key),
            "created_at": response["created_at"],
            "previous_id": response["previous_response_id"],
            "input": _text(input),
            "response": _text(response),
            "user": user,
        }
        async with self.database.session() as session:
            await session.execute(insert(responses), [row])
            if now > self._swept + SWEEP_SECONDS:
                self._swept = now
                await session.execute(delete(responses).where(responses.c.created_at < now - KEPT_SECONDS))

    async def get(self, key: Key | None, id: str) -> tuple[dict[str, Any], list[Item]]:
        """The response and its own input. Raises `NotFoundError`, also for another key's."""
        c = responses.c
        async with self.database.session() as session:
            query = select(c.response, c.input).where(*_own(key, id))
            row = (await session.execute(query)).one_or_none() if id.isprintable() else None
        if row is None:
            raise NotFoundError(f'there is no response "{id[:100]}"', code="response_not_found", param="response_id")
        return json.decode(row.response), json.decode(row.input)

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


def _own(key: Key | None, id: str) -> tuple[Any, ...]:
    return responses.c.id == id, responses.c.owner == owner_of(key)


def _text(value: Any) -> str:
    # PostgreSQL has no text with a zero character; inside JSON strings it is always escaped.
    return json.encode(value).decode()
