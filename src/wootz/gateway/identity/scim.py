"""SCIM 2.0, ``/scim/v2``: an identity provider makes, changes and ends users and groups here, by itself.

What a message means (paths and filters, PATCH, which attributes go out, how errors look) is the library's; ours is what
it does to people (`people`). A user who is deactivated or deleted loses all keys and sessions in that very transaction.
The identity provider shows a key with the role ``provisioner``.

Sources: RFC 7643 (schema), RFC 7644 (protocol).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError
from scim2_models import (
    AuthenticationScheme,
    Bulk,
    ChangePassword,
    Context,
    EnterpriseUser,
    Error,
    ETag,
    Filter,
    GroupMember,
    GroupMembership,
    ListResponse,
    Meta,
    Patch,
    PatchOp,
    Reference,
    ResourceType,
    Schema,
    SCIMException,
    ScimProvider,
    SearchRequest,
    ServiceProviderConfig,
    Sort,
    UniquenessException,
)
from scim2_models import Group as ScimGroup
from scim2_models import User as CoreUser
from scim2_models.path import CompareOperator, Comparison, FilterNode, LogicalExpr, LogicalOperator

from wootz.core import NotFoundError, WootzError
from wootz.gateway.entrance import router_with_key
from wootz.gateway.gateway import Gateway
from wootz.gateway.identity.people import Group, People, Person

ScimUser = CoreUser[EnterpriseUser]
JSON = "application/scim+json"
ROOT = "/scim/v2"
PAGE = 100
OWN_FIELDS = {"id", "userName", "externalId", "active", "groups", "meta", "password", "schemas"}
"""What we keep in columns, make ourselves, or will not keep: passwords are the identity provider's business."""

READ_ONLY = ("ServiceProviderConfig", "ResourceTypes", "Schemas")

CONFIG = ServiceProviderConfig(
    patch=Patch(supported=True),
    bulk=Bulk(supported=False),
    filter=Filter(supported=True, max_results=PAGE),
    change_password=ChangePassword(supported=False),
    sort=Sort(supported=True),
    etag=ETag(supported=False),
    authentication_schemes=[
        AuthenticationScheme(
            type=AuthenticationScheme.Type.oauthbearertoken,
            name="Bearer",
            description="A Wootz key with the role provisioner",
        )
    ],
)
PROVIDER = ScimProvider(
    models=[CoreUser, EnterpriseUser, ScimGroup],
    resource_types=[ResourceType.from_resource(ScimUser), ResourceType.from_resource(ScimGroup)],
    config=CONFIG,
)


def router(gateway: Gateway, people: People) -> APIRouter:
    """All of SCIM's routes. Their errors are SCIM's too."""
    routes = router_with_key(gateway, "provision", error_body=_error_body, prefix=ROOT, include_in_schema=False)
    routes.route_class = _scim_route(routes.route_class)
    _add_discovery(routes)
    users = Kind(
        "Users", ScimUser, "username", _user, _said_of,
        people.list, people.get, people.create, people.change, people.remove,
    )  # fmt: skip
    groups = Kind(
        "Groups", ScimGroup, "displayname", _group, _said_of_group,
        people.groups, people.group, people.create_group, people.change_group, people.remove_group,
    )  # fmt: skip
    for kind in (users, groups):
        _add_resource(routes, kind)

    @routes.post("/.search")
    async def search(request: Request) -> Response:
        """Users and groups."""
        return await _found(request, [users, groups], await request.json())

    @routes.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def nothing_here(request: Request, path: str) -> Response:
        if path.partition("/")[0] in READ_ONLY and request.method != "GET":
            error = Error(status=405, detail=f"{path[:100]} can only be read")
            return JSONResponse(error.model_dump(scim_ctx=Context.DEFAULT), status_code=405, media_type=JSON)
        raise NotFoundError(f"there is no {path[:100]}")

    return routes


class Kind(NamedTuple):
    """A resource that can be changed: what it is called, and how it is shown, read and kept."""

    path: str
    model: Any
    name: str
    """The attribute, in small letters, that is `people`'s ``name``."""
    shown: Callable[[Request, Any], Any]
    said: Callable[[Any], dict[str, Any]]
    list: Callable[..., Awaitable[Sequence[Any]]]
    get: Callable[[str], Awaitable[Any]]
    create: Callable[..., Awaitable[Any]]
    change: Callable[[str, Callable[[Any], Any]], Awaitable[Any]]
    remove: Callable[[str], Awaitable[None]]


def _add_resource(routes: APIRouter, kind: Kind) -> None:
    @routes.get(f"/{kind.path}")
    async def list_(request: Request) -> Response:
        return await _found(request, [kind])

    @routes.post(f"/{kind.path}/.search")
    async def search(request: Request) -> Response:
        return await _found(request, [kind], await request.json())

    @routes.post(f"/{kind.path}")
    async def create(request: Request) -> Response:
        asked = kind.model.model_validate(await request.json(), scim_ctx=Context.RESOURCE_CREATION_REQUEST)
        made = await kind.create(**kind.said(asked))
        return _one(request, kind.shown(request, made), Context.RESOURCE_CREATION_RESPONSE, 201)

    @routes.get(f"/{kind.path}/{{id}}")
    async def get(request: Request, id: str) -> Response:
        return _one(request, kind.shown(request, await kind.get(id)), Context.RESOURCE_QUERY_RESPONSE)

    @routes.put(f"/{kind.path}/{{id}}")
    async def put(request: Request, id: str) -> Response:
        asked = kind.model.model_validate(await request.json(), scim_ctx=Context.RESOURCE_REPLACEMENT_REQUEST)

        def edit(before: Any) -> Any:
            asked.replace(kind.shown(request, before))
            return replace(before, **kind.said(asked))

        changed = await kind.change(id, edit)
        return _one(request, kind.shown(request, changed), Context.RESOURCE_REPLACEMENT_RESPONSE)

    @routes.patch(f"/{kind.path}/{{id}}")
    async def patch(request: Request, id: str) -> Response:
        asked = PatchOp[kind.model].model_validate(await request.json(), scim_ctx=Context.RESOURCE_PATCH_REQUEST)

        def edit(before: Any) -> Any:
            resource = kind.shown(request, before)
            asked.patch(resource)
            return replace(before, **kind.said(resource))

        changed = await kind.change(id, edit)
        return _one(request, kind.shown(request, changed), Context.RESOURCE_PATCH_RESPONSE)

    @routes.delete(f"/{kind.path}/{{id}}")
    async def delete(id: str) -> Response:
        await kind.remove(id)
        return Response(status_code=204)


def _add_discovery(routes: APIRouter) -> None:
    @routes.get("/ServiceProviderConfig")
    async def config(request: Request) -> Response:
        return _one(request, _placed(request, CONFIG, "ServiceProviderConfig"), Context.RESOURCE_QUERY_RESPONSE)

    @routes.get("/ResourceTypes")
    async def types(request: Request) -> Response:
        found = [_placed(request, one, f"ResourceTypes/{one.id}") for one in PROVIDER.resource_types]
        return _page(_asked(request, ResourceType), ResourceType, found)

    @routes.get("/ResourceTypes/{id}")
    async def type_(request: Request, id: str) -> Response:
        found = next((one for one in PROVIDER.resource_types if one.id == id), None)
        return _one(request, _placed(request, found, f"ResourceTypes/{id}"), Context.RESOURCE_QUERY_RESPONSE)

    @routes.get("/Schemas")
    async def schemas(request: Request) -> Response:
        found = [_placed(request, one, f"Schemas/{one.id}") for one in PROVIDER.schemas]
        return _page(_asked(request, Schema), Schema, found)

    @routes.get("/Schemas/{id}")
    async def schema(request: Request, id: str) -> Response:
        found = next((one for one in PROVIDER.schemas if one.id == id), None)
        return _one(request, _placed(request, found, f"Schemas/{id}"), Context.RESOURCE_QUERY_RESPONSE)


# --- from here to there ---------------------------------------------------------------------------------------------


def _user(request: Request, person: Person) -> Any:
    groups = [
        GroupMembership(value=id, display=name, ref=Reference(_url(request, f"Groups/{id}")), type="direct")
        for id, name in person.groups.items()
    ]
    said = {**person.profile, "id": person.id, "userName": person.name, "externalId": person.external_id}
    user = ScimUser.model_validate(said | {"active": person.active})
    user.groups = groups or None
    user.meta = _meta(request, "User", f"Users/{person.id}", person)
    return user


def _said_of(user: Any) -> dict[str, Any]:
    said = user.model_dump(scim_ctx=Context.DEFAULT, exclude_none=True)
    return {
        "name": user.user_name,
        "external_id": user.external_id,
        "active": user.active is not False,
        "profile": {name: value for name, value in said.items() if name not in OWN_FIELDS},
    }


def _group(request: Request, group: Group) -> ScimGroup:
    members = [
        GroupMember(value=id, display=name, ref=Reference(_url(request, f"Users/{id}")), type="User")
        for id, name in group.members.items()
    ]
    found = ScimGroup(id=group.id, external_id=group.external_id, display_name=group.name, members=members or None)
    found.meta = _meta(request, "Group", f"Groups/{group.id}", group)
    return found


def _said_of_group(group: ScimGroup) -> dict[str, Any]:
    members = {str(member.value): member.display or "" for member in group.members or [] if member.value}
    return {"name": group.display_name, "external_id": group.external_id, "members": members}


def _meta(request: Request, kind: str, path: str, of: Person | Group) -> Meta:
    location = Reference(_url(request, path))
    return Meta(resource_type=kind, location=location, created=of.created_at, last_modified=of.changed_at)


def _placed(request: Request, resource: Any, path: str) -> Any:
    if resource is None:
        raise NotFoundError(f"there is no {path}")
    placed = resource.model_copy()
    placed.meta = Meta(resource_type=type(resource).__name__, location=Reference(_url(request, path)))
    return placed


def _url(request: Request, path: str) -> str:
    return f"{request.url.scheme}://{request.url.netloc}{ROOT}/{path}"


# --- answers --------------------------------------------------------------------------------------------------------


def _one(request: Request, resource: Any, context: Context, status: int = 200) -> Response:
    asked = SearchRequest[type(resource)].model_validate(_query(request, "attributes", "excludedAttributes"))
    body = resource.model_dump(scim_ctx=context, response_parameters=asked)
    headers = {"location": str(resource.meta.location)}
    return JSONResponse(body, status_code=status, headers=headers, media_type=JSON)


async def _found(request: Request, kinds: Sequence[Kind], wanted: Any = None) -> Response:
    model = reduce(or_, (kind.model for kind in kinds))
    asked, found = _asked(request, model, wanted), []
    for kind in kinds:
        equal = dict(_equal(asked.filter.ast, kind)) if asked.filter is not None else {}
        found += [kind.shown(request, one) for one in await kind.list(**equal)]
    return _page(asked, model, found)


def _equal(node: FilterNode, kind: Kind) -> Iterator[tuple[str, str]]:
    """What whoever passes the filter is called, as far as it says so: a sync asks for one after the other of thousands.

    The library still holds those that are found against the whole filter.
    """
    if isinstance(node, LogicalExpr) and node.op == LogicalOperator.and_:
        for term in node.terms:
            yield from _equal(term, kind)
    elif isinstance(node, Comparison) and node.op == CompareOperator.eq and isinstance(node.value, str):
        names = {"id": "id", "externalid": "external_id", kind.name: "name"}
        if node.attr_path.sub_attr is None and (name := names.get(node.attr_path.attr.lower())):
            yield name, node.value


def _asked(request: Request, model: Any, wanted: Any = None) -> SearchRequest[Any]:
    """``wanted`` is the body of a search; else the query says it."""
    names = ("attributes", "excludedAttributes", "filter", "sortBy", "sortOrder", "startIndex", "count")
    return SearchRequest[model].model_validate(
        _query(request, *names) if wanted is None else wanted,
        scim_ctx=Context.DEFAULT if wanted is None else Context.SEARCH_REQUEST,
    )


def _page(asked: SearchRequest[Any], model: Any, found: list[Any]) -> Response:
    if asked.filter is not None:
        found = [one for one in found if asked.filter.match(one)]
    if asked.sort_by is not None:
        found = asked.sort(found)
    first, count = asked.start_index_0 or 0, PAGE if asked.count is None else min(asked.count, PAGE)
    page = found[first : first + count]
    answer = ListResponse[model](
        total_results=len(found), start_index=first + 1, items_per_page=len(page), resources=page or None
    )
    body = answer.model_dump(scim_ctx=Context.RESOURCE_QUERY_RESPONSE, response_parameters=asked)
    return JSONResponse(body, media_type=JSON)


def _query(request: Request, *names: str) -> dict[str, Any]:
    return {name: request.query_params[name] for name in names if name in request.query_params}


def _scim_route(route_class: type[APIRoute]) -> type[APIRoute]:
    """Routes whose library's errors are answered as SCIM has it."""

    class ScimRoute(route_class):  # pyright: ignore[reportGeneralTypeIssues]
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_scim(request: Request) -> Response:
                try:
                    with PROVIDER:
                        return await handle(request)
                except ValidationError as error:
                    answer = Error.from_validation_errors(error)
                    answer = answer[0] if isinstance(answer, list) else answer
                except SCIMException as error:
                    answer = error.to_error()
                except WootzError as error:
                    if error.code != "name_taken":
                        raise
                    answer = UniquenessException(detail=str(error)).to_error()
                body = answer.model_dump(scim_ctx=Context.DEFAULT)
                return JSONResponse(body, status_code=int(answer.status or 400), media_type=JSON)

            return handle_scim

    return ScimRoute


def _error_body(error: WootzError, _request_id: str) -> dict[str, Any]:
    return Error(status=error.status, detail=str(error)).model_dump(scim_ctx=Context.DEFAULT)
