"""``[providers.NAME]``: an account at an endpoint, which several models may name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from wootz.core.secrets import SECRET_SCHEMES
from wootz.core.sections.section import Section

ProviderKind = Literal[
    "openai", "anthropic", "gemini", "dashscope", "dashscope-compatible", "deepseek", "ollama", "vllm", "wootz"
]


def _is_reference(value: str) -> str:
    if not value.startswith(SECRET_SCHEMES):
        raise ValueError(f"must be a reference ({', '.join(s + '…' for s in SECRET_SCHEMES)}), not the key itself")
    return value


KeyReference = Annotated[str, AfterValidator(_is_reference)]
"""One of the `SECRET_SCHEMES`, never the key itself."""


class ProviderConfig(Section):
    kind: ProviderKind = Field(default="openai", description="The protocol it speaks, and its habits.")
    base_url: str | None = Field(default=None, description="Default: the kind's own. Needed for wootz and vllm.")
    api_key: KeyReference | None = Field(default=None, description="A reference: env:NAME or file:PATH.")
    region: str | None = Field(default=None, description="Of a kind that has several, e.g. cn-beijing, ap-southeast-1.")
    connect_seconds: float = Field(default=10.0, gt=0)
    first_token_seconds: float | None = Field(default=None, gt=0, description="From the request to the first chunk.")
    total_seconds: float | None = Field(default=None, gt=0, description="For a whole answer.")
    headers: dict[str, str] = Field(
        default_factory=dict, description="Sent with every request. A value may be a reference, as a key is."
    )
    prompt_cache: bool = Field(
        default=True, description="Tell it which beginning of a prompt to keep, where it has to be told."
    )
    ask_whole: bool = Field(
        default=False,
        description="Of OpenAI's protocol: ask for a whole answer where the caller wants one, not for a stream that is "
        "put together. Saves CPU; what an answer that is given up had written by then is not known.",
    )

    @model_validator(mode="after")
    def _whole_answers_have_no_first_token(self) -> ProviderConfig:
        if self.ask_whole and self.first_token_seconds is not None:
            raise ValueError("of an answer that is asked whole no first token is seen: use total_seconds")
        if self.ask_whole and self.kind in ("anthropic", "gemini", "dashscope"):
            raise ValueError(f"ask_whole is of OpenAI's protocol, and {self.kind} has its own")
        return self
