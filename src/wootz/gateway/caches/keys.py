"""What a cached answer belongs to: everything that could have made it another one, and everybody who may see it.

A key is the SHA-256 of one JSON text: tenant, permissions, the config of all models, and the request with all that it
holds. The text is unambiguous, so no two different requests have one key, whatever their fields contain. Fields
that we do not know are sent to the provider and may change the answer: they are part of the key. Left out are
only those that change how the answer is delivered or counted (`DELIVERY`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from wootz.core import Config
from wootz.core.tool_wire import ModelRequest
from wootz.core.wire import ChatRequest, SamplingFields
from wootz.gateway.keys import Key

DELIVERY = {"stream", "user", "safety_identifier", "priority"}
LAYOUT = 2
"""Raise it when the layout of keys or of kept answers changes: what other versions left in Redis is then not found."""


def owner_of(key: Key | None, tenant: str) -> list[Any]:
    """Whose an answer is: a tenant, and within it those of the same permissions, regions and tags (by which routes
    choose)."""
    if key is None:
        return [tenant]
    regions, classes = key.standing.regions, sorted(key.standing.data_classes)
    bounds = [None if regions is None else sorted(regions), classes]
    return [tenant, sorted(key.scopes), None if key.models is None else sorted(key.models), dict(key.tags), bounds]


def fingerprint(config: Config) -> str:
    """Changes with everything in the config that says what a model's name stands for."""
    parts = config.model_dump(mode="json", include={"models", "routes", "providers"})
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def exact_key(owner: list[Any], models: str, request: SamplingFields) -> bytes:
    return _digest("exact", owner, models, _body(request))


def semantic_partition(owner: list[Any], models: str, request: ChatRequest) -> bytes:
    """All but the text of the last message: only within one partition may questions be compared."""
    body = _body(request)
    body["messages"][-1].pop("content")
    return _digest("semantic", owner, models, body)


def text_keys(
    kind: str,
    owner: list[Any],
    models: str,
    request: ModelRequest,
    texts: Sequence[str | list[int]],
    company: Sequence[str],
) -> list[bytes]:
    """Of each text of a batch: all of the request but the other texts, or with them where they matter (``company``).
    What they share is digested once."""
    body = request.model_dump(
        exclude_unset=True, exclude=DELIVERY | {"input", "documents", "top_n", "return_documents"}
    )
    shared = hashlib.sha256(_digest(kind, owner, models, {**body, "company": company}))
    keys = []
    for text in texts:
        key = shared.copy()
        key.update(msgspec.json.encode(text))
        keys.append(key.digest())
    return keys


def _body(request: SamplingFields) -> dict[str, Any]:
    body = request.model_dump(exclude_unset=True, exclude=DELIVERY)
    if options := body.pop("stream_options", None):
        options.pop("include_usage", None)
        if options:
            body["stream_options"] = options
    return body


def _digest(kind: str, owner: list[Any], models: str, body: dict[str, Any]) -> bytes:
    text = [LAYOUT, kind, owner, models, body]
    return hashlib.sha256(msgspec.json.encode(text, order="sorted")).digest()


def user_of(request: ModelRequest) -> str:
    """As the ledger has it (`RequestRecord.user`), so that erasing a user finds the answers too."""
    return request.journey.user or request.user or ""
