"""`wootz secrets`: what it takes, prints and exits with."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from wootz.cli.main import app

FIRST, SECOND = "the-first-value-of-all", "the-second-value-of-all"


def test_a_life_by_hand(tmp_path: Path) -> None:
    said = ""

    def wootz(*arguments: str, value: str | None = None, code: int = 0) -> str:
        nonlocal said
        result = CliRunner().invoke(app, ["--home", str(tmp_path / "home"), "secrets", *arguments], input=value)
        assert result.exit_code == code, result.output
        said += result.output
        return result.output

    wootz("set", "openai", value=FIRST + "\n")
    wootz("rotate", "openai", value=SECOND)
    wootz("retire", "openai", "2", code=2)
    wootz("retire", "openai", "1", code=2)
    wootz("retire", "openai", "1", "--force")
    assert [word in wootz("show", "openai") for word in ("retired", "current")] == [True, True]
    wootz("list", "--stale", "--older-than-days", "0", code=1)
    assert '"action": "retired"' in wootz("audit", "openai", "--json")
    (tmp_path / "gateway.log").write_text(f"sent {SECOND} and {FIRST[:12]}")
    assert wootz("scan", str(tmp_path / "gateway.log"), code=1).count("openai@") == 2
    assert FIRST not in said
    assert SECOND not in said
