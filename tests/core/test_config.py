"""Config: which layer wins, where each value came from, and what a mistake says."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from wootz.core import EMBEDDED_MODEL, ConfigError, LoadedConfig, load_config, resolve_secret


class Setup:
    """A home and a working directory of our own, each with a wootz.toml if one is written, and an environment."""

    def __init__(self, tmp_path: Path) -> None:
        self.home, self.cwd = tmp_path / "home", tmp_path / "work"
        self.home.mkdir()
        self.cwd.mkdir()
        self.environ = {"WOOTZ_HOME": str(self.home), "PATH": "/bin"}

    def load(self, flags: dict[str, Any] | None = None) -> LoadedConfig:
        return load_config(flags, environ=self.environ, cwd=self.cwd)

    def origin(self, key: str, flags: dict[str, Any] | None = None) -> tuple[Any, str]:
        return next((o.value, o.origin) for o in self.load(flags).origins() if o.key == key)

    def error(self, flags: dict[str, Any] | None = None) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(flags)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


# --- layers ---------------------------------------------------------------------------------------------------


def test_with_nothing_set_the_embedded_model_is_served(setup: Setup) -> None:
    config = setup.load().config
    assert config.server.port == 8080
    assert list(config.models) == [EMBEDDED_MODEL]
    assert config.models[EMBEDDED_MODEL].is_local
    assert setup.origin("server.port") == (8080, "default")


def test_each_layer_overrides_the_one_before(setup: Setup) -> None:
    in_home, in_cwd = setup.home / "wootz.toml", setup.cwd / "wootz.toml"
    in_home.write_text('[server]\nport = 1\nhost = "from-home"')
    assert setup.origin("server.port") == (1, str(in_home))
    in_cwd.write_text("[server]\nport = 2")
    assert setup.origin("server.port") == (2, str(in_cwd))
    assert setup.origin("server.host") == ("from-home", str(in_home))  # a table is merged, not replaced
    setup.environ["WOOTZ_SERVER__PORT"] = "3"
    assert setup.origin("server.port") == (3, "WOOTZ_SERVER__PORT")
    assert setup.origin("server.port", {"server.port": 4}) == (4, "--port")
    assert setup.origin("server.port", {"server.port": None}) == (3, "WOOTZ_SERVER__PORT")
    assert setup.origin("server.drain_seconds") == (10.0, "default")


def test_a_file_that_is_both_homes_and_cwds_is_read_once(setup: Setup) -> None:
    setup.cwd = setup.home
    (setup.home / "wootz.toml").write_text("[server]\nport = 1")
    assert [name for name, _ in setup.load().layers] == [str(setup.home / "wootz.toml"), "WOOTZ_HOME"]


def test_home_is_a_flag_or_a_variable_or_the_users(setup: Setup, tmp_path: Path) -> None:
    assert setup.origin("home") == (setup.home, "WOOTZ_HOME")
    assert setup.origin("home", {"home": str(tmp_path / "flag")}) == (tmp_path / "flag", "--home")
    for setup.environ in ({}, {"WOOTZ_HOME": ""}):
        assert setup.origin("home") == (Path.home() / ".wootz", "default")
    setup.environ = {"WOOTZ_HOME": "~/elsewhere"}
    assert setup.load().config.models_dir == Path.home() / "elsewhere" / "models"


def test_home_in_a_file_is_refused_for_it_would_come_too_late(setup: Setup) -> None:
    (setup.cwd / "wootz.toml").write_text('home = "/srv"')
    assert setup.error() == f"{setup.cwd}/wootz.toml: home can't be set in a file; set WOOTZ_HOME or give --home"


def test_models_of_a_file_replace_the_embedded_one_and_merge_with_variables(setup: Setup) -> None:
    (setup.home / "wootz.toml").write_text('[models."qwen2.5"]\npath = "/m"\n[models.far]\nbase_url = "http://x/v1"')
    setup.environ["WOOTZ_MODELS__FAR__PRICE__INPUT"] = "0.1"
    models = setup.load().config.models
    assert list(models) == ["qwen2.5", "far"]
    assert (models["qwen2.5"].is_local, models["far"].is_local) == (True, False)
    assert models["far"].price.input == Decimal("0.1")


# --- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("WOOTZ_SERVER__PORT", "9000", "server.port", 9000),
        ("WOOTZ_SERVER__HOST", "10", "server.host", "10"),  # looks like a number, but the key wants text
        ("WOOTZ_SERVER__HOST", "[::1]", "server.host", "[::1]"),  # looks like a list, but is none
        ("WOOTZ_TELEMETRY__SERVICE_NAME", "2026-01-01", "telemetry.service_name", "2026-01-01"),
        ("WOOTZ_TELEMETRY__SERVICE_NAME", "a # b", "telemetry.service_name", "a # b"),
        ("WOOTZ_ENGINE__PREFIX_CACHING", "false", "engine.prefix_caching", False),
        ("WOOTZ_SERVER__DRAIN_SECONDS", "0.5", "server.drain_seconds", 0.5),
        ("WOOTZ_MODELS", '{ m = { path = "/m" } }', "models.m.path", Path("/m")),
    ],
)
def test_a_variable_is_read_as_its_key_wants_it(variable: str, text: str, key: str, value: Any, setup: Setup) -> None:
    setup.environ[variable] = text
    assert setup.origin(key) == (value, variable)


def test_variables_for_other_purposes_are_no_settings(setup: Setup) -> None:
    setup.environ |= {"WOOTZ_API_KEY": "sk-1", "WOOTZ_DEBUG": "1", "HOME": "/", "WOOTZY": "x"}
    setup.load()


def test_prices_are_exact(setup: Setup) -> None:
    (setup.home / "wootz.toml").write_text('[models.m]\npath = "/m"\nprice = { input = 0.1, output = "0.30" }')
    price = setup.load().config.models["m"].price
    assert (price.input, price.output, price.cached_input) == (Decimal("0.1"), Decimal("0.30"), None)


def test_the_database_url_names_an_async_driver(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup.load().config.database_url == f"sqlite+aiosqlite:///{setup.home}/wootz.db"
    monkeypatch.setenv("DSN", "postgresql://u@h/d")
    setup.environ["WOOTZ_DATABASE__URL"] = "env:DSN"
    assert setup.load().config.database_url == "postgresql+asyncpg://u@h/d"
    setup.environ["WOOTZ_DATABASE__URL"] = "sqlite:////tmp/x.db"
    assert setup.load().config.database_url == "sqlite+aiosqlite:////tmp/x.db"


# --- mistakes -------------------------------------------------------------------------------------------------


def test_a_typo_is_an_error_with_its_place(setup: Setup) -> None:
    setup.environ["WOOTZ_SERVER__PROT"] = "1"
    assert setup.error() == "server.prot: unknown key (from WOOTZ_SERVER__PROT)"
    del setup.environ["WOOTZ_SERVER__PROT"]
    file = setup.cwd / "wootz.toml"
    file.write_text('[models.m]\npath = "/m"\ntemprature = 1')
    assert setup.error() == f"models.m.temprature: unknown key (from {file})"
    file.write_text("[sever]\nport = 1")
    assert setup.error() == f"sever: unknown key (from {file})"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[server]\nport = 99999", "server.port: Input should be less than or equal to 65535 (from "),
        ('[server]\nport = "http"', "server.port: Input should be a valid integer"),
        ("server = 1", "server: Input should be a valid dictionary"),
        ('[engine]\ndtype = "int3"', "engine.dtype: Input should be 'auto', 'float32', 'bfloat16' or 'float16'"),
        (
            "[models.m]\nprice = {}",
            'models.m: give either "provider" or "base_url" (remote), or one of "path" and "source" (local)',
        ),
        ('[models.m]\npath = "/m"\nbase_url = "http://x"', 'models.m: give either "provider" or "base_url"'),
        ("[server\nport = 1", "Expected ']' at the end of a table declaration"),
    ],
)
def test_a_wrong_value_says_what_is_allowed_and_where_it_stands(content: str, says: str, setup: Setup) -> None:
    file = setup.cwd / "wootz.toml"
    file.write_text(content)
    error = setup.error()
    assert says in error
    assert str(file) in error


def test_the_layer_to_blame_is_the_one_that_won(setup: Setup) -> None:
    (setup.home / "wootz.toml").write_text("[server]\nport = 1")
    setup.environ["WOOTZ_SERVER__PORT"] = "-1"
    assert setup.error().endswith("(from WOOTZ_SERVER__PORT)")
    assert setup.error({"server.port": -2}).endswith("(from --port)")


def test_a_file_that_is_not_text(setup: Setup) -> None:
    (setup.cwd / "wootz.toml").write_bytes(b"\xff\xfe")
    assert str(setup.cwd / "wootz.toml") in setup.error()


def test_the_tree_cannot_be_changed(setup: Setup) -> None:
    with pytest.raises(ValueError, match="frozen"):
        setup.load().config.server.port = 1


# --- secrets --------------------------------------------------------------------------------------------------


def test_a_secret_is_found_behind_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "s3cret")
    (tmp_path / "key").write_text("  s3cret\n")
    assert resolve_secret("env:KEY", used_by="x") == "s3cret"
    assert resolve_secret(f"file:{tmp_path}/key", used_by="x") == "s3cret"
    assert resolve_secret("no reference", used_by="x") == "no reference"


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("env:ABSENT_KEY", 'm.api_key: secret "env:ABSENT_KEY" is not set'),
        ("env:", 'm.api_key: secret "env:" is not set'),
        ("file:/nowhere/key", 'm.api_key: secret "file:/nowhere/key" can\'t be read (No such file or directory)'),
        ("store:key", 'm.api_key: secret "store:key": no "store" secret store is set up'),
        ("vault:a/b#c", 'm.api_key: secret "vault:a/b#c": no "vault" secret store is set up'),
    ],
)
def test_a_secret_that_cannot_be_had_names_the_reference(reference: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_secret(reference, used_by="m.api_key")
    assert str(caught.value) == says


def test_an_empty_or_binary_secret_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\n")
    with pytest.raises(ConfigError, match="is not set"):
        resolve_secret(f"file:{tmp_path}/key", used_by="x")
    (tmp_path / "key").write_bytes(b"\xff\x00secret")
    with pytest.raises(ConfigError, match=r"can't be read \(not text\)") as caught:
        resolve_secret(f"file:{tmp_path}/key", used_by="x")
    assert "secret\\x" not in str(caught.value)


def test_a_key_in_the_clear_is_refused_and_not_repeated(setup: Setup) -> None:
    (setup.cwd / "wootz.toml").write_text('[models.m]\nbase_url = "http://x"\napi_key = "sk-live-123"')
    error = setup.error()
    assert error.startswith("models.m.api_key: must be a reference (env:…, file:…")
    assert "sk-live-123" not in error
