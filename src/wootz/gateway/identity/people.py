"""People and the groups they are in. A person is a user of the accounts whom somebody else vouches for: SCIM, which
makes, changes and ends them, or an identity provider, through which they sign in.

What a person may do follows from their groups (those that SCIM keeps, and those that the last sign-in claimed) by
``[identity.groups]``, and from roles that were granted to them here. Any change of these takes effect in the same
transaction (`_settle`): keys and sessions of somebody who is no longer active end, and a key of theirs loses the roles
that they lost.

In the console a person acts through a key that has no token anywhere, so that limits, attributes, the ledger and the
audit log know them as they know every key.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from wootz.core import BadRequestError, NotFoundError
from wootz.core.acting import actor
from wootz.core.sections import IdentityConfig
from wootz.core.wire import new_id
from wootz.gateway import accounts
from wootz.gateway.accounts import AccountRow
from wootz.gateway.identity.roles import ROLE_NAMES, permissions, roles_of_groups
from wootz.gateway.identity.rows import GroupRow, MemberRow, PersonRow, alike, find, held
from wootz.gateway.identity.sessions import end_sessions
from wootz.gateway.keys import Key, KeyRow, KeyStore
from wootz.gateway.limits import NO_LIMITS

CONSOLE_PREFIX = "(console)"


@dataclass(frozen=True)
class Person:
    id: str
    name: str
    active: bool
    groups: Mapping[str, str]
    """By id, the names of those that SCIM keeps."""
    claimed_groups: Sequence[str]
    granted: Sequence[str]
    roles: Sequence[str]
    """All together; empty for one who is not active."""
    external_id: str | None
    profile: Mapping[str, Any]
    created_at: datetime
    changed_at: datetime


@dataclass(frozen=True)
class Group:
    id: str
    name: str
    external_id: str | None
    members: Mapping[str, str]
    """Names by id."""
    created_at: datetime
    changed_at: datetime


class Settled(NamedTuple):
    """What became of a person's roles, keys and sessions; ``ended`` says how many of each."""

    gained: list[str]
    lost: list[str]
    ended: dict[str, int]


class People:
    def __init__(
        self, keys: KeyStore, config: IdentityConfig, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.keys, self.config, self._clock = keys, config, clock

    # --- people ---------------------------------------------------------------------------------------------------

    async def create(
        self,
        name: str,
        *,
        external_id: str | None = None,
        active: bool = True,
        profile: Mapping[str, Any] | None = None,
    ) -> Person:
        """A user of that name who is nobody's yet becomes this person; `BadRequestError` where it is another's."""
        async with self.keys.database.session() as sql:
            person = await self._create(sql, name)
            person.external_id, person.active, person.profile = external_id, active, dict(profile or {})
            await self._settle(sql, person)
            await self._tell(sql, "user.provisioned", person.user_id, active=active)
        return await self.get(person.user_id)

    async def change(self, user_id: str, edit: Callable[[Person], Person]) -> Person:
        """Name, external id, whether active, and profile, as ``edit`` makes them of those that are.

        It is called when nobody else can change them any more, so that no change is made of an old state and undoes
        another. Raises `NotFoundError`, and `BadRequestError` for a name in use.
        """
        async with self.keys.database.session() as sql:
            person = await find(sql, PersonRow, user_id, hold=True)
            (before,) = await self._persons(sql, [person])
            after = edit(before)
            if after.name != before.name:
                accounts.check_name(after.name, "a user's name")
                taken = select(AccountRow.id).where(AccountRow.kind == "user", AccountRow.name == after.name)
                if await sql.scalar(taken):
                    raise _taken(after.name)
                (await accounts.find_account(sql, "user", user_id)).name = after.name
            person.external_id, person.active, person.profile = after.external_id, after.active, dict(after.profile)
            ended = (await self._settle(sql, person)).ended
            action = "user.deactivated" if before.active and not after.active else "user.changed"
            await self._tell(sql, action, user_id, active=after.active, **ended)
        self.keys.cache.clear()
        return await self.get(user_id)

    async def remove(self, user_id: str) -> None:
        """No longer a person: keys and sessions end. The account stays, as what it used is still reported."""
        async with self.keys.database.session() as sql:
            person = await find(sql, PersonRow, user_id, hold=True)
            person.active = False
            ended = (await self._settle(sql, person)).ended
            await sql.execute(delete(MemberRow).where(MemberRow.user_id == user_id))
            await sql.delete(person)
            await self._tell(sql, "user.removed", user_id, **ended)
        self.keys.cache.clear()

    async def grant(self, id_or_name: str, roles: Collection[str]) -> Person:
        """These roles, besides those of their groups, in the place of those that were granted before."""
        if unknown := [role for role in roles if role not in ROLE_NAMES]:
            raise BadRequestError(
                f'"{unknown[0]}" is no role', hint=f"roles are {', '.join(ROLE_NAMES)}", param="roles"
            )
        async with self.keys.database.session() as sql:
            account = await accounts.find_account(sql, "user", id_or_name)
            person = await held(sql, PersonRow, account.id) or await self._create(sql, account.name)
            person.granted = [role for role in ROLE_NAMES if role in roles]
            ended = (await self._settle(sql, person)).ended
            await self._tell(sql, "user.granted", person.user_id, roles=person.granted, **ended)
        self.keys.cache.clear()
        return await self.get(person.user_id)

    async def get(self, user_id: str) -> Person:
        """Raises `NotFoundError`."""
        async with self.keys.database.session() as sql:
            return (await self._persons(sql, [await find(sql, PersonRow, user_id)]))[0]

    async def list(self, **equal: str) -> list[Person]:
        """All; or all whose ``id``, ``name`` and ``external_id`` are `alike` those that are given."""
        columns = {"id": PersonRow.user_id, "name": AccountRow.name, "external_id": PersonRow.external_id}
        query = select(PersonRow).join(AccountRow, AccountRow.id == PersonRow.user_id).where(*_alike(columns, equal))
        async with self.keys.database.session() as sql:
            rows = await sql.scalars(query.order_by(PersonRow.created_at, PersonRow.user_id))
            return await self._persons(sql, rows.all())

    async def signed_in(self, subject: str, name: str, groups: Sequence[str]) -> tuple[Person, Key | None]:
        """Whom the identity provider vouches for, and their key in the console; None for one without a single role.

        Known by ``subject``; the first time by ``name``. Raises `BadRequestError` where that name is somebody else's.
        """
        async with self.keys.database.session() as sql:
            user_id = await sql.scalar(select(PersonRow.user_id).where(PersonRow.subject == subject))
            named = select(AccountRow.id).where(AccountRow.kind == "user", AccountRow.name == name)
            user_id = user_id or await sql.scalar(named)
            found = await held(sql, PersonRow, user_id) if user_id else None
            if found is None and self.config.oidc is not None and self.config.oidc.provisioned_only:
                raise NotFoundError("nobody has made you a user here", hint="ask an administrator")
            if found is not None and found.subject not in (None, subject):
                raise _taken(name)
            is_known = found is not None and found.subject == subject
            person = found or await self._create(sql, name)
            person.subject, person.claimed_groups = subject, list(groups)
            changed = await self._settle(sql, person)
            key = await sql.get_one(KeyRow, _console_id(person.user_id))
            if not is_known or changed.gained or changed.lost or any(changed.ended.values()):
                action = "user.changed" if found else "user.created"
                is_bound = found is not None and not is_known
                told = {"gained": changed.gained, "lost": changed.lost, **changed.ended}
                await self._tell(sql, action, person.user_id, by="sign-in", bound=is_bound, **told)
        self.keys.cache.clear()
        return await self.get(person.user_id), await self.keys.get(key.id) if key.revoked_at is None else None

    async def settle_all(self) -> None:
        """When a server starts: ``[identity.groups]`` may give other roles than when people were last seen."""
        async with self.keys.database.session() as sql:
            people = await self._persons(sql, (await sql.scalars(select(PersonRow))).all())
            query = select(KeyRow.user_id, KeyRow.scopes).where(KeyRow.prefix == CONSOLE_PREFIX)
            have = dict((await sql.execute(query)).tuples().all())
            differ = sorted(one.id for one in people if list(one.roles) != have.get(one.id))
            ended = Counter[str]()
            for user_id in differ:
                if (person := await held(sql, PersonRow, user_id)) is not None:
                    ended.update((await self._settle(sql, person)).ended)
            if differ:
                await self._tell(sql, "people.settled", "", people=differ, **ended)
        self.keys.cache.clear()

    # --- groups ---------------------------------------------------------------------------------------------------

    async def create_group(self, name: str, *, external_id: str | None, members: Collection[str]) -> Group:
        now = self._clock()
        row = GroupRow(id=new_id("group"), name=name, external_id=external_id, created_at=now, changed_at=now)
        async with self.keys.database.session() as sql:
            await self._check_group_name(sql, name)
            sql.add(row)
            await sql.flush()
            await self._set_members(sql, row.id, members)
            await self._tell(sql, "group.created", row.id, name=name, members=sorted(members))
        self.keys.cache.clear()
        return await self.group(row.id)

    async def change_group(self, id: str, edit: Callable[[Group], Group]) -> Group:
        """Name, external id and members, as ``edit`` makes them of those that are; see `change`."""
        async with self.keys.database.session() as sql:
            row = await find(sql, GroupRow, id, hold=True)
            (before,) = await self._groups(sql, [row])
            after = edit(before)
            if after.name != before.name:
                await self._check_group_name(sql, after.name)
            row.name, row.external_id, row.changed_at = after.name, after.external_id, self._clock()
            await self._set_members(sql, id, after.members)
            await self._tell(sql, "group.changed", id, name=after.name, members=sorted(after.members))
        self.keys.cache.clear()
        return await self.group(id)

    async def remove_group(self, id: str) -> None:
        async with self.keys.database.session() as sql:
            row = await find(sql, GroupRow, id, hold=True)
            await self._set_members(sql, id, ())
            await sql.delete(row)
            await self._tell(sql, "group.removed", id, name=row.name)
        self.keys.cache.clear()

    async def group(self, id: str) -> Group:
        """Raises `NotFoundError`."""
        async with self.keys.database.session() as sql:
            return (await self._groups(sql, [await find(sql, GroupRow, id)]))[0]

    async def groups(self, **equal: str) -> list[Group]:
        """As `list`."""
        columns = {"id": GroupRow.id, "name": GroupRow.name, "external_id": GroupRow.external_id}
        query = select(GroupRow).where(*_alike(columns, equal)).order_by(GroupRow.created_at, GroupRow.id)
        async with self.keys.database.session() as sql:
            return await self._groups(sql, (await sql.scalars(query)).all())

    # --- what follows ---------------------------------------------------------------------------------------------

    async def _settle(self, sql: AsyncSession, person: PersonRow) -> Settled:
        """Make keys and sessions what the person's state says."""
        person.changed_at = self._clock()
        await sql.flush()
        roles = (await self._persons(sql, [person]))[0].roles
        console_id = _console_id(person.user_id)
        console = await sql.get(KeyRow, console_id)
        if console is None:
            account = await accounts.find_account(sql, "user", person.user_id)
            sql.add(console := _console_key(console_id, account, person.changed_at))
            await sql.flush()
        had = console.scopes
        lost = set(had) - set(roles)
        if "inference" in permissions(console.scopes) - permissions(roles):
            lost.add("inference")
        revoked, num_ended = [], 0
        for key in await sql.scalars(select(KeyRow).where(KeyRow.user_id == person.user_id).with_for_update()):
            key.scopes = list(roles) if key is console else [role for role in key.scopes if role not in lost]
            if not (person.active and key.scopes):
                num_ended += key.revoked_at is None
                key.revoked_at = key.revoked_at or person.changed_at
                revoked.append(key.id)
            elif key is console:
                key.revoked_at = None
        await sql.flush()
        ended = {"keys_ended": num_ended, "sessions_ended": await end_sessions(sql, revoked)}
        return Settled(sorted({*roles} - {*had}), sorted({*had} - {*roles}), ended)

    async def _set_members(self, sql: AsyncSession, group_id: str, members: Collection[str]) -> None:
        query = select(MemberRow.user_id).where(MemberRow.group_id == group_id)
        before, after = set((await sql.scalars(query)).all()), set(members)
        people = {user_id: await find(sql, PersonRow, user_id, hold=True) for user_id in sorted(before ^ after)}
        gone = delete(MemberRow).where(MemberRow.group_id == group_id, MemberRow.user_id.in_(before - after))
        await sql.execute(gone)
        sql.add_all([MemberRow(group_id=group_id, user_id=user_id) for user_id in after - before])
        await sql.flush()
        for person in people.values():
            await self._settle(sql, person)

    async def _create(self, sql: AsyncSession, name: str) -> PersonRow:
        query = select(AccountRow).where(AccountRow.kind == "user", AccountRow.name == name)
        account = await sql.scalar(query)
        if account is not None and await sql.get(PersonRow, account.id) is not None:
            raise _taken(name)
        user_id = account.id if account else (await accounts.create_account(sql, "user", name, NO_LIMITS)).id
        now = self._clock()
        person = PersonRow(
            user_id=user_id, active=True, granted=[], claimed_groups=[], profile={}, created_at=now, changed_at=now
        )
        sql.add(person)
        await sql.flush()
        return person

    async def _persons(self, sql: AsyncSession, rows: Sequence[PersonRow]) -> list[Person]:
        ids = [row.user_id for row in rows]
        query = select(AccountRow.id, AccountRow.name).where(AccountRow.id.in_(ids))
        names = dict((await sql.execute(query)).tuples().all())
        groups: dict[str, dict[str, str]] = {id: {} for id in ids}
        query = select(MemberRow.user_id, GroupRow.id, GroupRow.name).join(GroupRow, GroupRow.id == MemberRow.group_id)
        for user_id, group_id, name in await sql.execute(query.where(MemberRow.user_id.in_(ids))):
            groups[user_id][group_id] = name
        return [
            Person(
                id=row.user_id,
                name=names[row.user_id],
                active=row.active,
                groups=groups[row.user_id],
                claimed_groups=row.claimed_groups,
                granted=row.granted,
                roles=self._roles(row, groups[row.user_id].values()) if row.active else [],
                external_id=row.external_id,
                profile=row.profile,
                created_at=row.created_at,
                changed_at=row.changed_at,
            )
            for row in rows
        ]

    def _roles(self, row: PersonRow, groups: Collection[str]) -> list[str]:
        given = {*row.granted, *roles_of_groups({*groups, *row.claimed_groups}, self.config.groups)}
        return [role for role in ROLE_NAMES if role in given]

    async def _groups(self, sql: AsyncSession, rows: Sequence[GroupRow]) -> list[Group]:
        members: dict[str, dict[str, str]] = {row.id: {} for row in rows}
        query = select(MemberRow.group_id, AccountRow.id, AccountRow.name).join(
            AccountRow, AccountRow.id == MemberRow.user_id
        )
        for group_id, user_id, name in await sql.execute(query.where(MemberRow.group_id.in_(list(members)))):
            members[group_id][user_id] = name
        return [
            Group(row.id, row.name, row.external_id, members[row.id], row.created_at, row.changed_at) for row in rows
        ]

    async def _check_group_name(self, sql: AsyncSession, name: str) -> None:
        accounts.check_name(name, "a group's name")
        if await sql.scalar(select(GroupRow.id).where(GroupRow.name == name)) is not None:
            raise BadRequestError(f'a group named "{name}" exists already', code="name_taken", param="displayName")

    async def _tell(self, sql: AsyncSession, action: str, subject: str, **detail: Any) -> None:
        await self.keys.audit.append(actor=actor(), action=action, subject=subject, detail=detail, session=sql)


def _console_id(user_id: str) -> str:
    return f"console-{user_id}"


def _console_key(id: str, account: AccountRow, now: datetime) -> KeyRow:
    """Its hash is of nothing that anybody knows, so only a session can stand for it."""
    name = f"{account.name[:80]} in the console ({id[-6:]})"
    return KeyRow(
        id=id, name=name, hash=secrets.token_hex(32), prefix=CONSOLE_PREFIX, scopes=[], models=None,
        user_id=account.id, tags={}, limits={}, created_at=now, revoked_at=now,
    )  # fmt: skip


def _alike(columns: Mapping[str, Any], equal: Mapping[str, str]) -> list[ColumnElement[bool]]:
    return [alike(columns[name], value, exact=name != "name") for name, value in equal.items()]


def _taken(name: str) -> BadRequestError:
    return BadRequestError(f'the name "{name}" is another user\'s', code="name_taken", param="userName")
