"""The console in a real browser: Chromium, an empty profile, and no network but this machine's own."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from console_house import House, build_house
from fastapi import FastAPI
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page, expect, sync_playwright
from serving import Server, until

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (chromium, google-chrome)")

HOSTILE = """\
<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>

<svg onload=window.hacked=3><iframe src="javascript:parent.hacked=4"></iframe><style>body{display:none}</style>

![tracker](http://tracker.test/pixel.png) and ![](data:image/svg+xml,<svg/onload=hacked=5>)

[click](javascript:window.hacked=6) [data](data:text/html,<script>hacked=7</script>) [fine](https://example.test/a?b=1)

[up](/logout) <form action="/keys"><input name=name></form> <a href="/x" id="thread" onclick="hacked=8">x</a>

```js"onmouseover="hacked=9
</code></pre><img src=x onerror=hacked=10>
```

| a | b |
|---|---|
| <b onclick=hacked=11>c</b> | **bold** |
"""


class ConsoleServer(Server):
    house: House

    def __init__(self, folder: Path) -> None:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
            house = await build_house(folder)
            app.mount("/", house.app)
            self.house, self.key = house, await house.key("boss", scopes=("admin",))
            yield
            await house.close()

        app = FastAPI(lifespan=lifespan, openapi_url=None)
        super().__init__(app)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ConsoleServer]:
    with ConsoleServer(tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Chromium, server: ConsoleServer) -> Iterator[Page]:
    """Signed in, on the chat page. Script errors, breaches of the content policy and requests to elsewhere fail it."""
    context = chromium.new_context(base_url=server.url, viewport={"width": 1280, "height": 800})
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
    page.on("request", lambda request: request.url.startswith(server.url) or wrong.append(f"asked {request.url}"))
    page.on("console", lambda message: "Security Policy" in message.text and wrong.append(message.text))
    page.goto("/")
    page.get_by_test_id("login-key").fill(server.key)
    page.get_by_test_id("login-submit").click()
    page.wait_for_selector("body[data-ready]")
    yield page
    context.close()
    assert wrong == []


def ask(page: Page, text: str) -> None:
    page.get_by_test_id("chat-input").fill(text)
    page.get_by_test_id("chat-input").press("Enter")


def last_answer(page: Page):
    return page.get_by_test_id("message-assistant").last


def test_signing_in_chatting_and_finding_the_request(server, page):
    server.house.model.pause = 0.1
    ask(page, "What is steel?")
    answer = last_answer(page)
    content = answer.get_by_test_id("message-content")
    seen = set()
    while answer.get_attribute("data-state") == "streaming":
        seen.add(content.text_content())
    assert len(seen) > 2, "the answer grew on the page"
    expect(answer).to_have_attribute("data-state", "done")
    expect(content.locator("strong")).to_have_text("iron")
    stats = answer.get_by_test_id("message-stats")
    expect(stats).to_contain_text(re.compile(r"12 in.*8 cached.*7 out.*TTFT \d+.*tok/s"))

    request_id = answer.get_by_test_id("message-request").get_attribute("href").removeprefix("/requests/")
    page.keyboard.press("Escape")
    page.get_by_test_id("nav-requests").click()
    row = page.locator(f'[data-request-id="{request_id}"]')
    expect(row.get_by_test_id("request-status")).to_have_text("200")
    row.click()
    expect(page.get_by_test_id("request-id")).to_have_text(request_id)
    expect(page.get_by_test_id("request-timeline").locator("rect.generate")).to_be_visible()


@pytest.mark.parametrize("how", ["button", pytest.param("escape", marks=pytest.mark.slow)])
def test_an_answer_is_stopped_on_the_server_too(server, page, how):
    ask(page, "talk forever")
    content = last_answer(page).get_by_test_id("message-content")
    expect(content).to_contain_text("on and on on and on")
    if how == "button":
        page.get_by_test_id("chat-stop").click()
    else:
        page.keyboard.press("Escape")
    expect(last_answer(page)).to_have_attribute("data-state", "stopped")
    expect(last_answer(page).get_by_test_id("message-stats")).to_contain_text("Stopped")
    server.call(until(server.house.ledger.list))  # Nobody waits for the record of a request whose client left.
    page.goto("/requests")
    expect(page.get_by_test_id("request-row").get_by_test_id("request-status")).to_contain_text("stopped")
    assert server.house.model.num_cancelled == 1


def test_hostile_markdown_is_shown_and_never_run(server, page):
    server.house.model.script = HOSTILE
    ask(page, "attack")
    expect(last_answer(page)).to_have_attribute("data-state", "done")
    content = last_answer(page).get_by_test_id("message-content")
    assert content.locator("img, script, svg, iframe, style, form, input, object, [id], [style]").count() == 0
    assert content.evaluate("e => [...e.querySelectorAll('*')].flatMap(x => x.getAttributeNames())"
                            ".filter(name => name.startsWith('on'))") == []  # fmt: skip
    expect(content).to_contain_text('<img src=x onerror="window.hacked=1">')
    links = content.locator("a[href]").evaluate_all("all => all.map(a => [a.href, a.rel, a.target])")
    rel = "noopener noreferrer nofollow"
    assert ["https://example.test/a?b=1", rel, "_blank"] in links
    assert all(href.startswith(("http://tracker.test", "https://example.test")) for href, _, _ in links)
    expect(content.locator("td strong")).to_have_text("bold")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None


@pytest.mark.slow
def test_a_failed_answer_can_be_retried(server, page):
    script = server.house.model.script
    ask(page, "please fail")
    expect(last_answer(page).get_by_test_id("chat-error")).to_contain_text("the engine went away")
    server.house.model.chat = lambda request: type(server.house.model)(script=script).chat(
        request.model_copy(update={"messages": [request.messages[-1].model_copy(update={"content": "again"})]})
    )
    page.get_by_test_id("chat-retry").click()
    expect(last_answer(page)).to_have_attribute("data-state", "done")
    assert page.get_by_test_id("message-assistant").count() == 1


@pytest.mark.slow
def test_settings_and_history_reach_the_model(server, page):
    page.get_by_test_id("chat-system").fill("Be brief.")
    page.get_by_test_id("chat-temperature").fill("0.3")
    page.get_by_test_id("chat-max-tokens").fill("50")
    page.get_by_test_id("chat-seed").fill("7")
    ask(page, "first")
    expect(last_answer(page)).to_have_attribute("data-state", "done")
    ask(page, "second")
    expect(page.get_by_test_id("message-assistant")).to_have_count(2)
    expect(last_answer(page)).to_have_attribute("data-state", "done")
    request = server.house.model.requests[-1]
    said = [(message.role, message.text) for message in request.messages]
    script = server.house.model.script
    assert said == [("system", "Be brief."), ("user", "first"), ("assistant", script), ("user", "second")]
    assert (request.temperature, request.top_p, request.max_tokens, request.seed) == (0.3, None, 50, 7)


@pytest.mark.slow
def test_the_last_message_is_edited_and_the_last_answer_made_anew(server, page):
    ask(page, "first")
    expect(last_answer(page)).to_have_attribute("data-state", "done")
    ask(page, "seccond")
    expect(last_answer(page)).to_have_attribute("data-state", "done")
    page.get_by_test_id("message-user").last.hover()
    page.get_by_test_id("message-edit").last.click()
    expect(page.get_by_test_id("chat-input")).to_have_value("seccond")
    ask(page, "second")
    expect(page.get_by_test_id("message-user")).to_have_text(["first", "second"])
    expect(last_answer(page)).to_have_attribute("data-state", "done")
    page.get_by_test_id("message-regenerate").last.click()
    expect(page.get_by_test_id("message-assistant")).to_have_count(2)
    expect(last_answer(page)).to_have_attribute("data-state", "done")
    asked = [[m.text for m in request.messages if m.role == "user"] for request in server.house.model.requests]
    assert asked == [["first"], ["first", "seccond"], ["first", "second"], ["first", "second"]]


def test_the_conversation_outlives_a_reload_but_not_signing_out(server, page):
    ask(page, "remember me")
    expect(last_answer(page)).to_have_attribute("data-state", "done")
    page.reload()
    expect(page.get_by_test_id("message-user")).to_have_text(["remember me"])
    page.get_by_test_id("sign-out").click()
    page.wait_for_url("**/login")
    page.get_by_test_id("login-key").fill(server.key)
    page.get_by_test_id("login-submit").click()
    page.wait_for_selector("body[data-ready]")
    assert page.get_by_test_id("message-user").count() == 0


@pytest.mark.slow
def test_code_is_copied_as_it_is(server, page):
    server.house.model.script = "```python\nprint('<b>')\n```\n"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "code")
    expect(last_answer(page)).to_have_attribute("data-state", "done")
    page.get_by_test_id("code-copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == "print('<b>')\n"


def test_a_key_is_made_copied_and_revoked(server, page):
    page.goto("/keys")
    page.get_by_test_id("key-new").click()
    page.get_by_test_id("key-name").fill("<b>robot</b>")
    page.get_by_test_id("key-create").click()
    expect(page.get_by_test_id("key-plaintext")).to_be_visible()  # the script has opened the dialog: Escape closes it
    plaintext = page.get_by_test_id("key-plaintext").text_content()
    assert server.call(server.house.keys.authenticate(plaintext)).name == "<b>robot</b>"
    page.keyboard.press("Escape")
    row = page.get_by_test_id("key-row").filter(has_text="<b>robot</b>")
    row.get_by_test_id("key-revoke").click()
    expect(page.get_by_test_id("revoke-dialog")).to_contain_text("Revoke “<b>robot</b>”?")
    page.get_by_test_id("revoke-confirm").click()
    expect(row.get_by_test_id("key-state")).to_have_text("Revoked")


def test_requests_are_filtered_in_place(server, page):
    for text in ("one", "please fail"):
        ask(page, text)
        expect(last_answer(page)).not_to_have_attribute("data-state", "streaming")
    page.goto("/requests")
    expect(page.get_by_test_id("request-row")).to_have_count(2)
    page.get_by_test_id("filter-status").select_option("failed")
    expect(page.get_by_test_id("request-row")).to_have_count(1)
    assert page.url.endswith("/requests?status=failed")
    page.get_by_test_id("requests-search").fill("nothing like it")
    expect(page.get_by_test_id("empty")).to_be_visible()


@pytest.mark.slow
def test_shortcuts(server, page):
    page.keyboard.press("Escape")
    page.locator("#main").focus()
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    page.locator("#main").focus()
    page.keyboard.press("g")
    page.keyboard.press("r")
    page.wait_for_url("**/requests")
    page.keyboard.press("/")
    expect(page.get_by_test_id("requests-search")).to_be_focused()


@pytest.mark.slow
def test_the_theme_follows_the_system_until_one_is_chosen(server, page):
    def ground() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.emulate_media(color_scheme="dark")
    dark = ground()
    assert dark != light
    page.get_by_test_id("theme-toggle").click()
    assert ground() == light
    page.reload()
    assert ground() == light


def test_pages_fit_a_phone(server, page):
    page.set_viewport_size({"width": 360, "height": 740})
    for path in ("/chat", "/models", "/keys", "/requests"):
        page.goto(path)
        widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1], json.dumps([path, *widths])
