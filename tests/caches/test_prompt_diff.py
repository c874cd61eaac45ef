"""Edits of a prompt, and what a provider's cache makes of them."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from wootz.cli import app
from wootz.gateway.caches.prompt_diff import PLACE, Template, Traffic, diff, read_template

RULES = "Answer like a librarian who has read everything and boasts of nothing. " * 100
TRAFFIC = Traffic(calls=300_000, input_price=Decimal(3), cached_price=Decimal("0.3"))


def template(text: str) -> Template:
    return Template(text, lambda at: f"character {at}")


def test_a_place_that_moves_to_the_front_makes_everybody_pay() -> None:
    old, new = (
        template(RULES + "Today is {{date}}. {{question}}"),
        template("Today is {{date}}. " + RULES + "{{question}}"),
    )
    found = diff(old, new, TRAFFIC)
    assert found.shrinks
    assert found.because.startswith("{{date}} stands at character 9")
    assert (found.new_kept, found.changed_at) == (0, 0)
    # By hand: 1,775 tokens at 3 instead of 0.3 USD per million, 300,000 times.
    assert found.old_kept == 1778
    assert found.change == 300_000 * Decimal(found.old_kept) * Decimal("2.7") / 1_000_000


def test_another_wording_is_read_once_more_and_kept_again() -> None:
    old, new = template(RULES + "{question}"), template(RULES.replace("boasts", "brags") + "{question}")
    found = diff(old, new, TRAFFIC)
    assert (found.breaks_once, found.shrinks) == (True, False)
    assert found.changed_at == RULES.index("boasts") + 1


def test_an_edit_behind_the_first_place_breaks_nothing() -> None:
    found = diff(template(RULES + "{question} Be brief."), template(RULES + "{question} Be very brief."), TRAFFIC)
    assert (found.breaks_once, found.shrinks) == (False, False)


def test_a_beginning_too_short_to_be_kept_can_not_be_broken() -> None:
    found = diff(template("Be kind. {question}"), template("{date} Be kind. {question}"), TRAFFIC)
    assert (found.old_kept, found.shrinks, found.breaks_once) == (0, False, False)


def test_cutting_a_prompt_short_is_no_harm() -> None:
    found = diff(template(RULES + "{question}"), template(RULES[: len(RULES) * 4 // 5] + "{question}"), TRAFFIC)
    assert found.new_kept < found.old_kept
    assert not found.shrinks
    assert found.change < 0


@pytest.mark.parametrize(
    ("text", "first"),
    [("a {{ name }} b", "{{ name }}"), ("a {name} b", "{name}"), ("a ${name} b", "${name}"), ("a <NAME> b", "<NAME>"),
     ("{% if x %}", "{% if x %}"), ('{"json": {"a": 1}} {x}', "{x}"), ("<b>bold</b>", None), ("{ not }", None)],
)  # fmt: skip
def test_places_of_the_usual_notations(text: str, first: str | None) -> None:
    found = PLACE.search(text)
    assert (found and found[0]) == first


@given(st.text("ab{}x ", max_size=60), st.text("ab{}x ", max_size=60), st.integers(0, 20))
def test_it_breaks_exactly_where_requests_would(old: str, new: str, least: int) -> None:
    """Against the definition: what two requests of a template begin with, whatever is filled in."""

    def kept(text: str) -> str:
        requests = [PLACE.sub(filling, text) for filling in ("1", "2")]
        return (
            "" if requests[0] == requests[1] else text[: next(n for n in range(80) if requests[0][n] != requests[1][n])]
        )

    found = diff(template(old), template(new), Traffic(calls=1, input_price=Decimal(1), cached_price=Decimal(0),
                                                       least_tokens=least), count=len)  # fmt: skip
    for size, text in ((found.old_kept, old), (found.new_kept, new)):
        stable = len(kept(text)) if PLACE.search(text) else len(text)
        assert size == (stable if stable >= least else 0)
    if found.changed_at is not None:
        assert old[: found.changed_at] == new[: found.changed_at]
        assert old[: found.changed_at + 1] != new[: found.changed_at + 1]


def test_a_request_is_read_as_the_provider_reads_it(tmp_path: Path) -> None:
    """Tools and system before all else, wherever they stand."""
    request = {"messages": [{"role": "user", "content": "{q}"}, {"role": "system", "content": "Rules."}], "tools": []}
    (tmp_path / "a.json").write_text(json.dumps(request))
    read = read_template(tmp_path / "a.json")
    assert (read.text, read.stable, read.where(7)) == ("Rules.{q}", "Rules.", "messages[0] at 1")


@pytest.mark.parametrize(
    ("new", "code", "words"),
    [
        ("{{date}}\n" + RULES + "{{q}}", 1, "less is kept in every request: {{date}} stands at line 1, column 1"),
        (RULES.replace("boasts", "brags") + "{{q}}", 0, "read once more"),
        (RULES + "{{q}}!", 0, "stays as it is"),
        (RULES + "{{q}}", 0, "Nothing changed"),
    ],
)
def test_the_command_says_it_and_fails_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: str, code: int, words: str
) -> None:
    monkeypatch.setenv("WOOTZ_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.txt").write_text(RULES + "{{q}}")
    (tmp_path / "new.txt").write_text(new)
    command = ["prompts", "diff", "old.txt", "new.txt", "--calls", "300000", "--input-price", "3"]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, words in result.output) == (code, True), result.output
    strict = CliRunner().invoke(app, [*command, "--strict"])
    assert strict.exit_code == (1 if code or "once more" in words else 0)


def test_bad_files_get_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WOOTZ_HOME", str(tmp_path))
    (tmp_path / "bad.json").write_text("[1]")
    for arguments in (["nowhere.txt", "nowhere.txt"], [str(tmp_path / "bad.json")] * 2):
        result = CliRunner().invoke(app, ["prompts", "diff", *arguments])
        assert result.exit_code == 2
