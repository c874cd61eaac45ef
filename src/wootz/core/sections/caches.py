"""``[caches]``: answers that are given again."""

from __future__ import annotations

from pydantic import Field, model_validator

from wootz.core.sections.section import Section


class ExactCacheConfig(Section):
    """The same request of the same tenant gets the same answer."""

    enabled: bool = Field(default=False, description="Off by default: an answer given again is a decision.")
    ttl_seconds: float = Field(default=3600.0, gt=0)
    max_bytes: int = Field(default=256 * 2**20, ge=1, description="Least recently used answers give way.")
    max_entry_bytes: int = Field(default=2**20, ge=1, description="Longer answers are not kept.")
    sampled_models: list[str] = Field(
        default_factory=list,
        description="Models and routes whose answers are kept although they were sampled. Others' only at temperature "
        "0 or with a seed.",
    )


class SemanticCacheConfig(Section):
    """A question that means the same gets the answer that was given to the other."""

    models: list[str] = Field(default_factory=list, description="Models and routes that have it. Default: none.")
    embedder: str | None = Field(default=None, description="The model under [models] that turns questions to vectors.")
    threshold: float = Field(
        default=0.95, ge=0.5, le=1, description="Least cosine of a hit; `wootz semcache tune` finds it from pairs."
    )
    guard: bool = Field(default=True, description="Refuse hits that differ in a number, a name or a negation.")
    ttl_seconds: float = Field(default=3600.0, gt=0)
    max_entries: int = Field(default=10_000, ge=1)
    max_chars: int = Field(
        default=500, ge=1, description="Longer questions are not looked up: encoders read only their beginning."
    )

    @model_validator(mode="after")
    def _has_an_embedder(self) -> SemanticCacheConfig:
        if self.models and self.embedder is None:
            raise ValueError('"models" needs "embedder": a model under [models] that has embeddings')
        return self


class CachesConfig(Section):
    redis: str | None = Field(
        default=None,
        description="redis://… or a reference to one (env:NAME, file:PATH), where all HTTP processes keep exact "
        "answers together. Default: each keeps its own.",
    )
    exact: ExactCacheConfig = Field(default_factory=ExactCacheConfig)
    semantic: SemanticCacheConfig = Field(default_factory=SemanticCacheConfig)
