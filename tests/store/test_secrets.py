"""The local store: what lies on the disk, who may read it, and the life of a version."""

from __future__ import annotations

import base64
import os
import sqlite3
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wootz.core import Config, ConfigError
from wootz.core.secrets import Secret, resolve_secret, use_stores
from wootz.store.secrets import InvalidSecretVersion, LocalStore, open_local, open_source
from wootz.store.secrets.envelope import MasterKey, make_master_key, master_key
from wootz.store.secrets.local import DAY

VALUE = "a-value-that-is-nowhere-else"


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> LocalStore:
    key = MasterKey(os.urandom(32))
    store = LocalStore(tmp_path / "secrets.db", lambda: key, clock=clock)
    store.set("openai", VALUE)
    return store


def test_nothing_on_the_disk_has_the_value_and_only_the_owner_may_read(tmp_path: Path, store: LocalStore) -> None:
    store.rotate("openai", VALUE + "2")
    for file in tmp_path.iterdir():
        assert VALUE.encode() not in file.read_bytes()
        assert file.stat().st_mode & 0o077 == 0
    assert (store.current("openai").value, store.current("openai").version) == (VALUE + "2", 2)


def test_a_row_in_anothers_place_does_not_open(tmp_path: Path, store: LocalStore) -> None:
    store.set("other", "the-other-value")
    db = sqlite3.connect(tmp_path / "secrets.db")
    db.execute(
        "update versions set (ciphertext, wrapped_key) ="
        " (select ciphertext, wrapped_key from versions where name = 'other') where name = 'openai'"
    )
    db.commit()
    with pytest.raises(ConfigError, match="does not open"):
        store.current("openai")


def test_a_changed_row_does_not_open(tmp_path: Path, store: LocalStore) -> None:
    db = sqlite3.connect(tmp_path / "secrets.db")
    db.execute("update versions set ciphertext = cast(substr(ciphertext, 1, 20) || x'0001' as blob)")
    db.commit()
    with pytest.raises(ConfigError, match="was changed"):
        store.current("openai")


def test_the_version_before_stays_valid_for_the_overlap_and_then_no_longer(store: LocalStore, clock: Clock) -> None:
    store.rotate("openai", "new-value")
    clock.now += 29 * DAY
    assert store.get("openai", 1).value == VALUE
    clock.now += 2 * DAY
    with pytest.raises(InvalidSecretVersion, match="past its overlap"):
        store.get("openai", 1)
    assert store.current("openai").value == "new-value"


def test_a_version_in_use_is_not_retired(store: LocalStore, clock: Clock) -> None:
    store.rotate("openai", "new-value")
    store.count_uses("openai", {1: 3, 2: 5}, "providers.openai.api_key on a-host")
    clock.now += 60
    with pytest.raises(ConfigError, match=r"in use: providers\.openai\.api_key on a-host used it 60 s ago"):
        store.retire("openai", 1)
    with pytest.raises(ConfigError, match="is current"):
        store.retire("openai", 2, force=True)
    clock.now += 3600
    store.retire("openai", 1)
    with pytest.raises(InvalidSecretVersion, match="is retired"):
        store.get("openai", 1)
    assert [one.uses for one in store.about("openai").versions] == [3, 5]


def test_what_was_current_a_moment_ago_is_not_retired(store: LocalStore, clock: Clock) -> None:
    """Servers have it in memory, and have not told of it yet."""
    store.rotate("openai", "new-value")
    with pytest.raises(ConfigError, match="was current a moment ago"):
        store.retire("openai", 1, quiet=5)
    clock.now += 6
    store.retire("openai", 1, quiet=5)


def test_what_is_retired_can_be_had_back_until_it_is_destroyed(store: LocalStore, clock: Clock) -> None:
    store.rotate("openai", "new-value")
    clock.now += 60
    store.retire("openai", 1)
    clock.now += 6 * DAY
    assert store.destroy_overdue() == []
    store.recover("openai", 1)
    assert store.get("openai", 1).value == VALUE
    clock.now += 60
    store.retire("openai", 1)
    clock.now += 8 * DAY
    assert store.destroy_overdue() == [("openai", 1)]
    with pytest.raises(InvalidSecretVersion, match="can't be had back"):
        store.recover("openai", 1)
    assert [event.action for event in store.events("openai") if event.version == 1] == [
        "pending", "current", "previous", "retired", "previous", "retired", "destroyed",
    ]  # fmt: skip


def test_a_staged_version_is_read_by_nobody_until_it_is_promoted_and_back_again(store: LocalStore) -> None:
    assert store.stage("openai", "next-value") == 2
    assert store.current("openai").version == 1
    store.promote("openai", 2)
    assert store.current("openai").value == "next-value"
    store.promote("openai", 1)
    assert store.current("openai").value == VALUE


def test_old_keys_are_stale(store: LocalStore, clock: Clock) -> None:
    store.set("young", "another-value", max_age=200 * DAY)
    clock.now += 91 * DAY
    assert [about.name for about in store.stale()] == ["openai"]
    store.rotate("openai", "new-value")
    assert store.stale() == []
    assert [about.name for about in store.stale(older_than=30 * DAY)] == ["young"]


class Life(RuleBasedStateMachine):
    """Whatever is done in whatever order: one version is current, numbers only grow, and what is destroyed is gone."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder, self.clock = tempfile.TemporaryDirectory(), Clock()
        key = MasterKey(bytes(32))
        self.store = LocalStore(Path(self.folder.name) / "secrets.db", lambda: key, clock=self.clock)
        self.values = {self.store.set("s", "value-1"): "value-1"}

    @rule(stage=st.booleans())
    def add(self, stage: bool) -> None:
        value = f"value-{len(self.values) + 1}"
        self.values[(self.store.stage if stage else self.store.rotate)("s", value)] = value

    @rule(
        what=st.sampled_from(["promote", "retire", "recover"]),
        version=st.integers(1, 5),
        days=st.sampled_from([0, 5, 40]),
    )
    def move(self, what: str, version: int, days: float) -> None:
        self.clock.now += days * DAY
        before = {one.version: one.state for one in self.store.about("s").versions}
        try:
            getattr(self.store, what)("s", version)
        except ConfigError:
            assert {one.version: one.state for one in self.store.about("s").versions} == before
        self.store.destroy_overdue()

    @invariant()
    def one_is_current_and_opens(self) -> None:
        about = self.store.about("s")
        assert [one.version for one in about.versions] == sorted(self.values)
        assert sum(one.state == "current" for one in about.versions) == 1
        current = self.store.current("s")
        assert current.value == self.values[current.version or 0]
        kept = {name for name, _ in self.store.readable_values()}
        assert kept == {f"s@{one.version}" for one in about.versions if one.state != "destroyed"}

    def teardown(self) -> None:
        self.folder.cleanup()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=6, stateful_step_count=10, deadline=None)


def test_a_server_reads_what_its_config_names_and_nothing_else(tmp_path: Path) -> None:
    tree = {"home": tmp_path, "models": {"m": {"base_url": "http://h", "api_key": "store:team/a"}}}
    config = Config.model_validate(tree)
    admin = open_local(config)
    admin.set("team/a", "value-of-a")
    admin.set("b", "value-of-b")
    assert (tmp_path / "secrets.key").stat().st_mode & 0o777 == 0o600
    use_stores(lambda scheme: open_source(config, scheme))
    try:
        assert resolve_secret("store:team/a", used_by="x") == "value-of-a"
        with pytest.raises(ConfigError, match=r'x: secret "store:b": this process may not read it'):
            resolve_secret("store:b", used_by="x")
    finally:
        use_stores(None)


@pytest.mark.parametrize("names", [["*"], ["team/*"]])
def test_a_wildcard_is_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="must name each secret"):
        Config.model_validate({"secrets": {"allow": names}})


def test_the_master_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(reference: str) -> Config:
        return Config.model_validate({"home": tmp_path, "secrets": {"master_key": reference}})

    monkeypatch.setenv("MASTER", base64.b64encode(bytes(32)).decode())
    open_local(config("env:MASTER")).set("a", "a-value")
    monkeypatch.setenv("MASTER", base64.b64encode(bytes(31) + b"1").decode())
    with pytest.raises(ConfigError, match="the master key does not open it"):
        open_local(config("env:MASTER")).current("a")
    monkeypatch.setenv("MASTER", "too short")
    with pytest.raises(ConfigError, match="does not hold 32 bytes in base64"):
        open_local(config("env:MASTER")).current("a")
    (tmp_path / "key").write_text(base64.b64encode(bytes(32)).decode())
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others; chmod 600"):
        open_local(config(f"file:{tmp_path}/key")).current("a")
    (tmp_path / "key").chmod(0o600)
    assert open_local(config(f"file:{tmp_path}/key")).current("a").value == "a-value"
    use_stores(lambda _: Elsewhere())
    try:
        for reference in ("vault:kv/wootz#master", "aws:wootz/master"):
            assert open_local(config(reference)).current("a").value == "a-value"
    finally:
        use_stores(None)


class Elsewhere:
    """A store that has the master key."""

    def current(self, name: str) -> Secret:
        return Secret(base64.b64encode(bytes(32)).decode())

    def count_uses(self, name: str, uses: object, used_by: str) -> None: ...


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file of root's")
def test_what_root_mounts_for_a_group_may_be_read_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(base64.b64encode(bytes(32)).decode())
    monkeypatch.setattr(os, "geteuid", lambda: 10001)  # As Kubernetes starts it, with 0440 for its group.
    for mode, is_good in ((0o440, True), (0o640, True), (0o444, False), (0o460, False), (0o400, True)):
        file.chmod(mode)
        if is_good:
            assert master_key(f"file:{file}")
        else:
            with pytest.raises(ConfigError, match="can be read by others"):
                master_key(f"file:{file}")


def test_a_master_key_is_there_as_a_whole_and_stays(tmp_path: Path) -> None:
    """However many start at once."""
    file, seen = tmp_path / "home" / "secrets.key", set[str]()

    def start() -> None:
        make_master_key(file)
        master_key(f"file:{file}")
        seen.add(file.read_text())

    starts = [threading.Thread(target=start) for _ in range(16)]
    for one in starts:
        one.start()
    for one in starts:
        one.join()
    assert len(seen) == 1
    assert [one.name for one in file.parent.iterdir()] == ["secrets.key"]
