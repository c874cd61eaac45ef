"""The thin way of deploy/examples: one provider, one model, limits. And what its most talkative log does not say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from fakes import openai as far_end

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
MASTER, AGENT, SCHEDULER = (f"{name}-{'k7Qm2xV9' * 5}" for name in ("master", "agent", "scheduler"))
QUESTION = "a question that nobody else may read"


@pytest.mark.slow
def test_one_provider_one_model_and_limits(start, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "wootz.toml").write_text((EXAMPLES / "rate-limit-only.toml").read_text())
    with far_end.OpenAI() as provider:
        provider.answer = far_end.HELLO
        secrets = {"PROVIDER_KEY": far_end.SECRET, "GATEWAY_MASTER_KEY": MASTER}
        away = {"WOOTZ_PROVIDERS__ONLY__BASE_URL": f"{provider.url}/openai/v1", "WOOTZ_SERVER__LOG_LEVEL": "debug"}
        platform = start("up", "--port", "0", home=home, **secrets, **away).wait_until_ready()
        assert [child.cmdline()[-1] for child in platform.children()] == ["wootz.app.http"], "one process, no engine"

        keys = {"RESEARCH_AGENT_KEY": AGENT, "SCHEDULE_AGENT_KEY": SCHEDULER}
        words = [str(Path(sys.executable).with_name("wootz")), "provision", str(EXAMPLES / "rate-limit-only.keys.toml")]
        environ = {**os.environ, **secrets, **keys, "WOOTZ_HOME": str(home)}
        done = subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

        client = openai.OpenAI(base_url=f"{platform.url}/v1", api_key=SCHEDULER, max_retries=0)
        ask = {"model": "gpt", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 5}
        for _ in range(10):
            assert client.chat.completions.create(**ask).choices[0].message.content == "Hello!"
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(**ask)
        assert refused.value.code == "requests_per_minute"
        assert float(refused.value.response.headers["retry-after"]) > 0
        assert client.with_options(api_key=AGENT).chat.completions.create(**ask).choices, "others go on"
        assert [model.id for model in client.models.list()] == ["gpt"]
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-nobody").chat.completions.create(**ask)
    platform.stop()
    log = platform.output
    assert "POST /v1/chat/completions" in log, "it was talkative"
    for secret in (QUESTION, "Hello!", far_end.SECRET, MASTER, AGENT, SCHEDULER):
        assert secret not in log
