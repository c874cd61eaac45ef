"""What the gateway's own routes take and give, where OpenAI's protocol has no type for it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from wootz.core import LanguageModel
from wootz.gateway.keys import MAX_NAME_CHARS, Key


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
    status: Literal["ok", "ready", "loading"]
    waiting_for: list[str] = Field(default=[], description="The models that do not answer yet.")


class KeyRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    scopes: list[Literal["inference", "admin"]] = Field(default=["inference"], min_length=1)
    models: list[str] | None = Field(default=None, min_length=1, description="Default: all.")
    requests_per_minute: int | None = Field(default=None, ge=1, lt=2**31, description="Default: no limit.")
    expires_at: AwareDatetime | None = Field(default=None, strict=False, description="Default: never.")


class KeyInfo(BaseModel):
    object: Literal["key"] = "key"
    id: str
    name: str
    prefix: str
    scopes: list[str]
    models: list[str] | None
    requests_per_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: Key) -> KeyInfo:
        return cls.model_validate(key, from_attributes=True)


class NewKeyInfo(KeyInfo):
    key: str = Field(description="The key itself. It is shown this once and never again.")


class KeyList(BaseModel):
    object: Literal["list"] = "list"
    data: list[KeyInfo]
