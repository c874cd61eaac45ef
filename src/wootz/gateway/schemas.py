"""What the gateway's own routes take and give, where OpenAI's protocol has no type for it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from wootz.core import LanguageModel
from wootz.gateway.accounts import MAX_NAME_CHARS, Account
from wootz.gateway.identity.attributes import NO_ATTRIBUTES, Attributes
from wootz.gateway.identity.roles import Role
from wootz.gateway.keys import Key
from wootz.gateway.limits import Limits


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = Field(description="The field to mend, for example messages[0].content.")
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class ModelInfo(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    parent: str | None = Field(default=None, description="Of an adapter: the model that it is on.")

    @classmethod
    def of(cls, model: LanguageModel, created: int) -> ModelInfo:
        parent = model.parent.name if model.parent else None
        return cls(id=model.name, created=created, owned_by=model.provider, parent=parent)


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Health(BaseModel):
    status: Literal["ok", "ready", "loading", "draining"]
    waiting_for: list[str] = Field(default=[], description="The models that do not answer yet.")


class KeyChange(Limits):
    scopes: list[Role] = Field(default=["inference"], min_length=1, description="Roles: what it may do.")
    models: list[str] | None = Field(default=None, min_length=1, description="Default: all.")
    expires_at: AwareDatetime | None = Field(default=None, strict=False, description="Default: never.")
    team: str | None = Field(default=None, description="Its name or id.")
    user: str | None = Field(default=None, description="Its name or id.")
    tags: dict[str, str] = Field(default={}, description="What its requests are counted under, besides.")
    attributes: Attributes = Field(default=NO_ATTRIBUTES, description="Where, and up to which class of data.")


class KeyRequest(KeyChange):
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)


class RotationRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    overlap_seconds: int = Field(default=0, ge=0, le=366 * 86400, description="How long the old secret holds too.")


class KeyInfo(Limits):
    model_config = ConfigDict(strict=False)

    object: Literal["key"] = "key"
    id: str
    name: str
    prefix: str
    scopes: list[str]
    models: list[str] | None
    team: str | None
    user: str | None
    tags: dict[str, str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    rotated_until: datetime | None = Field(description="Until when the secret before this one holds too.")
    attributes: Attributes = NO_ATTRIBUTES

    @classmethod
    def of(cls, key: Key) -> KeyInfo:
        fields = {name: getattr(key, name) for name in cls.model_fields if name in Key.__dataclass_fields__}
        belongs = {"team": key.team and key.team.name, "user": key.user and key.user.name}
        return cls.model_validate(dict(key.limits) | fields | belongs)


class NewKeyInfo(KeyInfo):
    key: str = Field(description="The key itself. It is shown this once and never again.")


class KeyList(BaseModel):
    object: Literal["list"] = "list"
    data: list[KeyInfo]


class AccountRequest(Limits):
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS, description="Of a tag: feature=support.")


class AccountInfo(Limits):
    object: Literal["team", "user", "tag"]
    id: str
    name: str
    created_at: datetime
    attributes: Attributes | None = None

    @classmethod
    def of(cls, account: Account) -> AccountInfo:
        fields = {name: getattr(account, name) for name in ("id", "name", "created_at")}
        attributes = account.attributes if account.attributes != NO_ATTRIBUTES else None
        return cls(**dict(account.limits), object=account.kind, attributes=attributes, **fields)


class AccountList(BaseModel):
    object: Literal["list"] = "list"
    data: list[AccountInfo]
