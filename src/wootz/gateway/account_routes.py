"""``/admin/keys``, ``/admin/teams``, ``/admin/users``, ``/admin/tags``: who may do what, for administrators."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Response

from wootz.core import BadRequestError
from wootz.gateway.accounts import AccountKind
from wootz.gateway.keys import KeyStore
from wootz.gateway.schemas import (
    AccountInfo,
    AccountList,
    AccountRequest,
    KeyChange,
    KeyInfo,
    KeyList,
    KeyRequest,
    Limits,
    NewKeyInfo,
    RotationRequest,
)


def add_routes(router: APIRouter, keys: KeyStore) -> None:
    _add_key_routes(router, keys)
    for kind in ("team", "user", "tag"):
        _add_account_routes(router, keys, kind)


def _add_key_routes(router: APIRouter, keys: KeyStore) -> None:
    @router.post("/admin/keys", status_code=201)
    async def create_key(body: KeyRequest, response: Response) -> NewKeyInfo:
        key, token = await keys.create(**dict(body))
        response.headers["cache-control"] = "no-store"
        return NewKeyInfo(**dict(KeyInfo.of(key)), key=token)

    @router.get("/admin/keys")
    async def list_keys() -> KeyList:
        return KeyList(data=[KeyInfo.of(key) for key in await keys.list()])

    @router.post("/admin/keys/{id_or_name:path}/rotate")
    async def rotate_key(id_or_name: str, body: RotationRequest, response: Response) -> NewKeyInfo:
        """A new secret for the same key; the one before holds for ``overlap_seconds`` more."""
        key, token = await keys.rotate(id_or_name, timedelta(seconds=body.overlap_seconds))
        response.headers["cache-control"] = "no-store"
        return NewKeyInfo(**dict(KeyInfo.of(key)), key=token)

    @router.patch("/admin/keys/{id_or_name:path}")
    async def change_key(id_or_name: str, body: KeyChange) -> KeyInfo:
        """What is not given stays; limits that are given replace all limits of the key."""
        if not body.model_fields_set:
            raise BadRequestError("the body names nothing to change")
        return KeyInfo.of(await keys.update(id_or_name, **body.model_dump(exclude_unset=True)))

    @router.delete("/admin/keys/{id_or_name:path}")
    async def revoke_key(id_or_name: str) -> KeyInfo:
        """The key is refused from now on; it stays in the list, and so does what it used."""
        return KeyInfo.of(await keys.revoke(id_or_name))


def _add_account_routes(router: APIRouter, keys: KeyStore, kind: AccountKind) -> None:
    path = f"/admin/{kind}s"

    @router.post(path, status_code=201, name=f"create_{kind}", response_model_exclude_none=True)
    async def create(body: AccountRequest) -> AccountInfo:
        return AccountInfo.of(await keys.create_account(kind, **dict(body)))

    @router.get(path, name=f"list_{kind}s", response_model_exclude_none=True)
    async def list_all() -> AccountList:
        return AccountList(data=[AccountInfo.of(account) for account in await keys.list_accounts(kind)])

    @router.put(f"{path}/{{id_or_name:path}}", name=f"limit_{kind}", response_model_exclude_none=True)
    async def limit(id_or_name: str, body: Limits) -> AccountInfo:
        """These limits in the place of those that it had."""
        return AccountInfo.of(await keys.limit_account(kind, id_or_name, **dict(body)))

    @router.delete(f"{path}/{{id_or_name:path}}", name=f"delete_{kind}", response_model_exclude_none=True)
    async def delete(id_or_name: str) -> AccountInfo:
        """Refused while keys belong to it."""
        return AccountInfo.of(await keys.delete_account(kind, id_or_name))
