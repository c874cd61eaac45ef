"""The linter finds what was planted, where it was planted, and is silent about prompts that are as they should be."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from wootz.cli.main import app
from wootz.core import BadRequestError
from wootz.gateway.caches.lint import Prompt, lint, read_requests

RULES = "You answer questions about our products.\nBe brief, and say so when you do not know.\n" * 30
TOOLS = [
    {"type": "function", "function": {"name": "find", "description": "Looks it up.", "parameters": {"type": "object"}}}
]


def ask(system: str, question: str = "Why?", **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
        **more,
    }


@pytest.mark.parametrize(
    ("what", "texts"),
    [
        ("date or time", ["Today is 2026-11-28.", "Today is 2026-11-29."]),
        ("date or time", ["It is 10:31:07 now.", "It is 10:31:44 now."]),
        ("UUID", ["Session 5f0c9a0e-1111-4222-8333-944455556666.", "Session 5f0c9a0e-1111-4222-8333-944455556677."]),
        ("user's name or address", ["You speak with ada@example.org.", "You speak with bob@example.org."]),
        ("user's name or address", ["The user is Ada.", "The user is Bob."]),
        ("long number or id", ["Ticket 1234567890.", "Ticket 1234567899."]),
        ("changing text", ["Mood: sunny.", "Mood: rainy."]),
    ],
)
def test_what_changes_before_the_stable_part_is_named_and_priced(what: str, texts: list[str]) -> None:
    (group,) = lint([ask(f"{text}\n{RULES}", f"question {number}") for number, text in enumerate(texts * 5)])
    finding = group.findings[0]
    assert (finding.what, finding.where.split(" at ")[0]) == (what, "messages[0]")
    assert abs(finding.lost_tokens - len(RULES) // 4) < 20
    assert group.cacheable < 0.5
    (good,) = lint([ask(RULES, f"{text} question {number}") for number, text in enumerate(texts * 5)])
    assert good.findings == []
    assert good.lost_tokens == 0
    assert good.cacheable > 0.8
    assert group.saved(Decimal(3), Decimal("0.3")) == group.lost_tokens * Decimal("2.7") / 1_000_000


def test_tools_in_another_order_of_keys() -> None:
    other = [{"function": dict(reversed(TOOLS[0]["function"].items())), "type": "function"}]  # type: ignore[attr-defined]
    (group,) = lint([ask(RULES, tools=TOOLS), ask(RULES, tools=other)])
    assert [finding.what for finding in group.findings] == ["order of keys or tools"]
    assert group.findings[0].lost_tokens >= len(RULES) // 4 - 20


def test_a_single_request_is_searched_for_what_will_change() -> None:
    (group,) = lint([ask(f"Date: 2026-11-28.\n{RULES}")])
    assert [(finding.what, finding.text) for finding in group.findings] == [("date or time", "2026-11-28")]
    assert lint([ask(RULES + "Date: 2026-11-28.")])[0].findings == [], "at the end it breaks nothing"


def test_conversations_that_grow_break_nothing() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 5
    requests = [
        {"model": "m", "messages": [{"role": "system", "content": RULES}, *turns[: 2 * n + 1]]} for n in range(5)
    ]
    assert lint(requests)[0].findings == []


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_the_shared_beginning_is_the_longest(head: str, a: str, b: str) -> None:
    from wootz.gateway.caches.lint import _common

    one, two = head + a, head + b
    shared = next((n for n, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two)))
    assert _common(one, two) == shared
    assert Prompt.of(ask(a, b)).text == a + b


def test_the_command_reports_and_guards_a_change(tmp_path: Path) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    old.write_text("\n".join(json.dumps({"body": ask(RULES, str(n))}) for n in range(4)))
    new.write_text("\n".join(json.dumps(ask(f"2026-11-{n + 10}\n{RULES}", str(n))) for n in range(4)))
    run = CliRunner().invoke
    home = ["--home", str(tmp_path)]
    good = run(app, [*home, "prompts", "lint-cache", str(old)])
    assert good.exit_code == 0, good.output
    bad = run(app, [*home, "prompts", "lint-cache", str(new), "--baseline", str(old), "--input-price", "3", "--json"])
    assert bad.exit_code == 1, bad.output
    report = json.loads(bad.stdout)
    assert report[0]["findings"][0]["what"] == "date or time"
    assert Decimal(report[0]["saved_usd"]) > 0
    new.write_text('{"messages": [1]}')
    with pytest.raises(BadRequestError, match="line 1"):
        read_requests(new)
