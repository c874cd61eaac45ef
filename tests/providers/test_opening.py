"""From ``[providers.NAME]`` and ``[models.NAME]`` to models that answer."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from fakes import openai as fake
from fakes.far_end import SECRET
from pydantic import ValidationError

from wootz.core import Config, ConfigError, collect_chat
from wootz.core.sections import ProviderKind
from wootz.core.wire import ChatRequest
from wootz.providers import AnthropicModel, GeminiModel, OpenAICompatibleModel, Timeouts, open_models
from wootz.providers.opening import BASE_URLS, PROVIDERS, endpoint_of


def config_of(tmp_path: Path, toml: str) -> Config:
    return Config.model_validate({"home": tmp_path, **tomllib.loads(toml)})


ACCOUNTS = """
[providers.claude]
kind = "anthropic"
api_key = "env:FAR_KEY"
connect_seconds = 2
first_token_seconds = 5
total_seconds = 50
headers = {anthropic-beta = "a-beta", x-secret = "env:OTHER_KEY"}
[providers.google]
kind = "gemini"
api_key = "env:FAR_KEY"
[providers.bailian]
kind = "dashscope-compatible"
region = "ap-southeast-1"
api_key = "env:FAR_KEY"
[models.opus]
provider = "claude"
upstream_model = "claude-opus-4-8"
timeout_seconds = 7
[models.haiku]
provider = "claude"
upstream_model = "claude-haiku-4-5"
[models.gemini-flash]
provider = "google"
[models.qwen-plus]
provider = "bailian"
[models.bare]
base_url = "http://127.0.0.1:1/v1/"
"""


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", SECRET)
    monkeypatch.setenv("OTHER_KEY", "of-the-account")


async def test_models_of_one_account(tmp_path: Path, keys: None) -> None:
    config = config_of(tmp_path, ACCOUNTS)
    models = open_models(config, {})
    kinds = [type(model) for model in models.values()]
    assert kinds == [AnthropicModel, AnthropicModel, GeminiModel, OpenAICompatibleModel, OpenAICompatibleModel]
    assert [model.provider for model in models.values()] == [
        "api.anthropic.com", "api.anthropic.com", "generativelanguage.googleapis.com", "dashscope-intl.aliyuncs.com",
        "127.0.0.1",
    ]  # fmt: skip
    opus = endpoint_of(config, "opus")
    assert (opus.upstream_model, opus.api_key.value, opus.kind) == ("claude-opus-4-8", SECRET, "anthropic")
    assert opus.timeouts == Timeouts(connect=2, first_token=5, silence=7, total=50)
    assert opus.headers["anthropic-beta"] == "a-beta"
    assert [secret.value for secret in opus.secrets] == [SECRET, "of-the-account"]
    assert SECRET not in repr(opus) + repr(config)
    assert "of-the-account" not in repr(opus) + repr(config)
    assert endpoint_of(config, "bare").base_url == "http://127.0.0.1:1/v1"
    for model in models.values():
        await model.close()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('[models.m]\nprovider = "nobody"', "models.m.provider: there is no [providers.nobody]"),
        ('[providers.p]\n[models.m]\nprovider = "p"\nbase_url = "http://x"', "give one of the two"),
        ('[providers.p]\n[models.m]\nprovider = "p"\napi_key = "env:X"', "leave this one out"),
        ('[providers.p]\n[models.m]\nprovider = "p"\npath = "/m"', 'give either "provider" or "base_url"'),
        ('[providers.p]\nkind = "carrier-pigeon"', "carrier-pigeon"),
        ('[providers.p]\napi_key = "sk-live-123"', "not the key itself"),
        ("[providers.p]\ntotal_seconds = 0", "greater than 0"),
        ("[providers.p]\nask_whole = true\nfirst_token_seconds = 9", "no first token is seen"),
        ('[providers.p]\nask_whole = true\nkind = "gemini"', "gemini has its own"),
        ("[providers.p]\nurl = 'x'", "Extra inputs"),
    ],
)
def test_a_config_that_cannot_be_meant(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(ValidationError) as failure:
        config_of(tmp_path, toml)
    assert message in str(failure.value)


@pytest.mark.parametrize(
    ("account", "message"),
    [
        ('kind = "vllm"', "providers.p.base_url: is missing"),
        ('kind = "wootz"', "providers.p.base_url: is missing"),
        (
            'kind = "dashscope"\nregion = "mars"',
            "providers.p.region: must be one of ap-southeast-1, cn-beijing, cn-hongkong, us-east-1",
        ),
        ('base_url = "file:///etc/passwd"', "providers.p.base_url: not an http:// or https:// address"),
        ('base_url = "//host/v1"', "providers.p.base_url: not an http:// or https:// address"),
        ('base_url = "https://user:word@host/v1"', "providers.p.base_url: holds a password; give it as api_key"),
        ('api_key = "env:NOT_SET"', 'providers.p.api_key: secret "env:NOT_SET" is not set'),
        ('headers = {x-a = "env:NOT_SET"}', 'providers.p.headers.x-a: secret "env:NOT_SET" is not set'),
        ('headers = {x-a = "a\\r\\nhost: b"}', "providers.p.headers.x-a: holds characters that no header has"),
        ('headers = {"x a" = "b"}', "providers.p.headers.x a: is no name of a header"),
    ],
)
def test_what_cannot_work_refuses_to_start(tmp_path: Path, account: str, message: str) -> None:
    config = config_of(tmp_path, f'[providers.p]\n{account}\n[models.m]\nprovider = "p"')
    with pytest.raises(ConfigError) as refusal:
        open_models(config, {})
    assert str(refusal.value) == message


def test_every_kind_is_made_somehow_and_has_an_address_or_needs_one() -> None:
    kinds = set(get_args(ProviderKind))
    assert set(PROVIDERS) == kinds - {"dashscope"} or set(PROVIDERS) == kinds
    assert {kind for kind, _ in BASE_URLS} == kinds - {"vllm", "wootz"}


@pytest.fixture
def far_end() -> Iterator[fake.OpenAI]:
    with fake.OpenAI() as far_end:
        yield far_end


async def test_an_account_from_the_config_to_the_answer(tmp_path: Path, keys: None, far_end: fake.OpenAI) -> None:
    far_end.answer = fake.DEEPSEEK_THOUGHT
    account = f'kind = "deepseek"\nbase_url = "{far_end.url}/deepseek/v1"\napi_key = "env:FAR_KEY"'
    config = config_of(tmp_path, f'[providers.p]\n{account}\n[models.deepseek-v4-pro]\nprovider = "p"')
    (model,) = open_models(config, {}).values()
    messages: Any = [{"role": "user", "content": "hi"}]
    answer = await collect_chat(model.chat(ChatRequest(model="deepseek-v4-pro", messages=messages)))
    assert answer.choices[0].message.reasoning_content == "27 x 453"
    await model.close()


PAGE = Path(__file__).parents[2] / "docs" / "providers.md"


def test_the_page_shows_configs_that_hold_and_the_addresses_that_are(tmp_path: Path) -> None:
    text = PAGE.read_text()
    for block in re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        config_of(tmp_path, block)
    for kind, region in BASE_URLS:
        assert f"`{kind}`" in text
        assert region is None or region in text
    for kind in ("openai", "anthropic", "gemini", "deepseek", "ollama"):
        assert f"| `{kind}` | `{BASE_URLS[kind, None]}` |" in text
