"""The platform as a newcomer meets it: the real model, pulled on the first start, in a browser and through clients."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

pytestmark = pytest.mark.real

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PARIS = [{"role": "user", "content": "Name the capital of France."}]


def wootz(platform, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command line as another user of the same machine would use it."""
    environ = {**os.environ, "WOOTZ_HOME": str(platform.home), "WOOTZ_API_KEY": platform.key, "COLUMNS": "160"}
    command = [str(Path(sys.executable).with_name("wootz")), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environ, timeout=120)


def test_it_answers_sensibly(real_platform):
    with openai.OpenAI(base_url=f"{real_platform.url}/v1", api_key=real_platform.key) as client:
        answer = client.chat.completions.create(model="smollm2", messages=PARIS, max_tokens=24, temperature=0)
    assert "Paris" in answer.choices[0].message.content


def test_the_second_of_two_long_prompts_is_cached(real_platform):
    prefix = "The sea is wide and the ship is small. " * 100
    options = {"model": "smollm2", "max_tokens": 1}
    with openai.OpenAI(base_url=f"{real_platform.url}/v1", api_key=real_platform.key) as client:
        client.completions.create(prompt=prefix + "First", **options)
        usage = client.completions.create(prompt=prefix + "Second", **options).usage
    assert usage.prompt_tokens > 900
    assert usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens < 32


@pytest.mark.slow
def test_chatting_in_the_terminal(real_platform, tmp_path):
    url = ("--url", real_platform.url)
    once = wootz(real_platform, "chat", *url, "--temperature", "0", "--max-tokens", "24", PARIS[0]["content"])
    assert "Paris" in once.stdout, once.stderr

    saved = tmp_path / "talk.json"
    lines = ["/temp 0", "/system Answer in one word.", PARIS[0]["content"], f"/save {saved}", "/nonsense", "/exit"]
    talk = wootz(real_platform, "chat", *url, "--max-tokens", "24", stdin="\n".join(lines) + "\n")
    assert talk.returncode == 0, talk.stderr
    assert "Paris" in talk.stdout
    assert "tokens in" in talk.stdout
    assert "no command /nonsense" in talk.stderr
    roles = [message["role"] for message in json.loads(saved.read_text())["messages"]]
    assert roles == ["system", "user", "assistant"]


@pytest.mark.slow
def test_chatting_with_a_file_needs_no_platform(tiny_model_folder, tmp_path):
    environ = {**os.environ, "WOOTZ_HOME": str(tmp_path)}
    command = [str(Path(sys.executable).with_name("wootz")), "chat", "--model", str(tiny_model_folder)]
    result = subprocess.run(
        [*command, "--max-tokens", "5", "Hello"], capture_output=True, text=True, env=environ, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.slow
def test_bench_serve_sweeps_concurrency(real_platform, tmp_path):
    out = tmp_path / "bench"
    sizes = ("--concurrency", "1,2", "--requests", "2", "--input-len", "40", "--output-len", "4")
    result = wootz(real_platform, "bench", "serve", "--url", real_platform.url, *sizes, "--out", str(out), "--json")
    assert result.returncode == 0, result.stderr
    levels = json.loads(result.stdout)["levels"]
    assert [level["concurrency"] for level in levels] == [1, 2]
    assert all(level["completion_tokens_mean"] == 4 for level in levels)
    assert all(30 <= level["prompt_tokens_mean"] <= 50 for level in levels)
    assert all(level["time_to_first_token"]["p50"] > 0 for level in levels)
    assert json.loads((out / "serve.json").read_text())["levels"] == levels
    assert (out / "serve.png").read_bytes().startswith(b"\x89PNG")

    missed = wootz(real_platform, "bench", "serve", "--url", real_platform.url, *sizes, "--slo-ttft", "0.001")
    assert missed.returncode == 1
    assert "✗" in missed.stderr


def test_models_and_costs_show_what_was_done(real_platform):
    assert "135M" in wootz(real_platform, "models").stdout
    report = wootz(real_platform, "cost", "report", "--by", "key,model").stdout
    assert "admin" in report
    assert "smollm2" in report


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (chromium, google-chrome)")
def test_a_browser_signs_in_chats_stops_and_finds_the_request(real_platform):
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(base_url=real_platform.url)
        page.goto("/")
        page.get_by_test_id("login-key").fill(real_platform.key)
        page.get_by_test_id("login-submit").click()
        page.wait_for_selector("body[data-ready]")

        def is_seen_to_grow() -> bool:
            """Some stories are short, and over before they are looked at four times."""
            page.get_by_test_id("chat-input").fill("Tell me a very long story about a ship.")
            page.get_by_test_id("chat-input").press("Enter")
            content = page.get_by_test_id("message-assistant").last.get_by_test_id("message-content")
            lengths: set[int] = set()
            while page.get_by_test_id("message-assistant").last.get_attribute("data-state") in ("streaming", None):
                lengths.add(len(content.text_content() or ""))
                if len(lengths) == 4:
                    return True
            return False

        while not is_seen_to_grow():
            pass
        answer = page.get_by_test_id("message-assistant").last
        page.get_by_test_id("chat-stop").click()
        expect(answer).to_have_attribute("data-state", "stopped")
        request_id = answer.get_by_test_id("message-request").get_attribute("href").removeprefix("/requests/")

        while not (records := real_platform.ledger(f"request_id = '{request_id}'")):
            time.sleep(0.05)  # Nobody waits for the record of a request whose client left.
        assert records[0]["client_disconnected"]

        page.goto("/requests")
        row = page.locator(f'[data-request-id="{request_id}"]')
        expect(row.get_by_test_id("request-status")).to_contain_text("stopped")
        browser.close()
