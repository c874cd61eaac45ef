"""Teams, users, tags and keys out of one TOML file. Applying it again changes nothing.

Accounts and keys that are not in it stay as they are, and so do the fields of a key that it doesn't name; limits are
replaced together, so one that is taken out of the file is taken from the key.

    rotation_overlap = "24h"        # how long a key's old secret holds after its reference gives a new one

    [teams.research]
    tokens_per_day = 2_000_000
    budget_usd = "800"
    budget_period = "daily"

    [keys.research-agent]
    secret = "env:RESEARCH_AGENT_KEY"
    team = "research"
    requests_per_minute = 120

A file holds references to secrets, never secrets; a new key must have one, so that nothing has to be printed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from wootz.core import ConfigError, NotFoundError, resolve_secret
from wootz.core.secrets import SECRET_SCHEMES
from wootz.gateway.accounts import KINDS, AccountKind
from wootz.gateway.keys import Key, KeyStore
from wootz.gateway.limits import Limits
from wootz.gateway.schemas import KeyChange
from wootz.telemetry import parse_period


class KeyEntry(KeyChange):
    secret: str | None = Field(default=None, description="env:NAME or file:PATH")

    @field_validator("secret")
    @classmethod
    def _is_a_reference(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(SECRET_SCHEMES):
            raise ValueError("write a reference (env:NAME, file:PATH), not the secret itself")
        return value


class ProvisioningFile(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    rotation_overlap: str = "24h"
    teams: dict[str, Limits] = {}
    users: dict[str, Limits] = {}
    tags: dict[str, Limits] = {}
    keys: dict[str, KeyEntry] = {}


@dataclass(frozen=True)
class Change:
    """One step. ``fields`` maps what changes to what it was and what it is to be."""

    action: Literal["create", "update", "rotate"]
    kind: Literal["team", "user", "tag", "key"]
    name: str
    fields: dict[str, tuple[Any, Any]] = field(default_factory=dict)


def read_file(file: Path) -> ProvisioningFile:
    """Raises `ConfigError` that names the place and never a value (it could be a secret)."""
    try:
        return ProvisioningFile.model_validate(tomllib.loads(file.read_text()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{file}: {where}: {reason}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file}: {error}") from None


async def plan(wanted: ProvisioningFile, store: KeyStore) -> Sequence[Change]:
    """What `apply` would do. Raises `ConfigError` for a new key without a secret, or a secret that can't be had."""
    changes: list[Change] = []
    for kind in KINDS:
        there = {account.name: account for account in await store.list_accounts(kind)}
        for name, limits in _accounts(wanted, kind).items():
            old = there[name].limits.plain if name in there else {}
            fields = _difference(old, limits.plain)
            if name not in there:
                changes.append(Change("create", kind, name, fields))
            elif fields:
                changes.append(Change("update", kind, name, fields))
    for name, entry in wanted.keys.items():
        changes += await _plan_key(name, entry, store)
    return changes


async def apply(wanted: ProvisioningFile, store: KeyStore) -> Sequence[Change]:
    """Bring the database to the file; returns what was done."""
    changes = await plan(wanted, store)
    for change in changes:
        if change.kind == "key":
            await _apply_key(change, wanted, store)
        else:
            write = store.create_account if change.action == "create" else store.limit_account
            await write(change.kind, change.name, **_accounts(wanted, change.kind)[change.name].plain)
    return changes


def _accounts(wanted: ProvisioningFile, kind: AccountKind) -> dict[str, Limits]:
    return {"team": wanted.teams, "user": wanted.users, "tag": wanted.tags}[kind]


async def _plan_key(name: str, entry: KeyEntry, store: KeyStore) -> list[Change]:
    secret = entry.secret and resolve_secret(entry.secret, used_by=f"keys.{name}.secret")
    try:
        key = await store.get(name)
    except NotFoundError:
        if secret is None:
            raise ConfigError(
                f"keys.{name} is new and names no secret", hint=f'add secret = "env:…", or `wootz keys create {name}`'
            ) from None
        return [Change("create", "key", name, _difference({}, _shown(entry)))]
    if key.revoked_at is not None:
        raise ConfigError(f"keys.{name}: the key was revoked, and a name means one key for ever", hint="use a new name")
    changes = []
    stored = {name: value for name, value in _stored_fields(key).items() if name in _named(entry)}
    if fields := _difference(stored, _shown(entry)):
        changes.append(Change("update", "key", name, fields))
    if secret is not None and not await store.has_secret(name, secret):
        changes.append(Change("rotate", "key", name))
    return changes


async def _apply_key(change: Change, wanted: ProvisioningFile, store: KeyStore) -> None:
    entry = wanted.keys[change.name]
    secret = entry.secret and resolve_secret(entry.secret, used_by=f"keys.{change.name}.secret")
    if change.action == "rotate":
        await store.rotate(change.name, _overlap(wanted), token=secret)
        return
    if change.action == "create":
        await store.create(change.name, token=secret, **_named(entry))
    else:
        await store.update(change.name, **_named(entry))


def _overlap(wanted: ProvisioningFile) -> timedelta:
    return parse_period(wanted.rotation_overlap)


def _named(entry: KeyEntry) -> dict[str, Any]:
    """The fields that the file names; of the limits all or none, so that one can be taken back."""
    names = entry.model_fields_set - {"secret"}
    if names & set(Limits.model_fields):
        names |= set(Limits.model_fields)
    return {name: getattr(entry, name) for name in names}


def _shown(entry: KeyEntry) -> dict[str, Any]:
    return {name: entry.plain.get(name) if name in Limits.model_fields else v for name, v in _named(entry).items()}


def _stored_fields(key: Key) -> dict[str, Any]:
    return {
        "scopes": list(key.scopes),
        "models": None if key.models is None else list(key.models),
        "team": key.team and key.team.name,
        "user": key.user and key.user.name,
        "tags": dict(key.tags),
        "expires_at": key.expires_at,
        **key.limits.plain,
    }


def _difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*new, *(name for name in old if name not in new)]
    return {
        name: (old.get(name), new.get(name)) for name in names if (old.get(name) or None) != (new.get(name) or None)
    }
