"""The Caches page: what was spared and how, forgotten on request, by administrators only."""

from __future__ import annotations

import re

from console_house import Browser, build_house

from wootz.core import Config


def numbers(page: str) -> list[str]:
    (row,) = re.findall(r'<tr data-testid="cache-row">(.*?)</tr>', page, re.DOTALL)
    return re.findall(r'<td class="num[^"]*">([^<]*)</td>', row)


async def test_what_was_spared_is_shown_and_forgotten(tmp_path):
    config = Config.model_validate({"caches": {"exact": {"enabled": True}}})
    house = await build_house(tmp_path, config=config)
    async with Browser(house.app) as admin:
        await admin.sign_in(await house.key("boss", scopes=["admin"]))
        assert "No request has come by" in (await admin.get("/caches")).text
        for temperature in (0, 0, 1):
            assert (await admin.chat("hi", temperature=temperature)).status_code == 200
        page = (await admin.get("/caches")).text
        assert numbers(page) == ["1", "0", "0", "1", "1", "50%"]
        assert '<dd data-testid="cache-entries">1</dd>' in page
        for fields in ({"model": "other"}, {"model": "scripted"}):
            assert (await admin.submit("/caches/purge", **fields)).status_code == 303
            left = int(fields["model"] == "other")
            assert f'<dd data-testid="cache-entries">{left}</dd>' in (await admin.get("/caches")).text
    await house.close()


async def test_without_caches_the_page_says_how_to_have_some(admin):
    assert "Set [caches.exact] or [caches.semantic] in wootz.toml" in (await admin.get("/caches")).text


async def test_caches_are_for_administrators(user):
    assert 'data-testid="nav-caches"' not in (await user.get("/models")).text
    assert (await user.get("/caches")).status_code == 403
    assert (await user.submit("/caches/purge")).status_code == 403
