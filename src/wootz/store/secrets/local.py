"""The local store: ``WOOTZ_HOME/secrets.db``, versions of secrets with a life.

    pending ─► current ─► previous ─► retired ─► destroyed
                  ▲___________│          │  (within the recovery window: back to previous)

Readers ask for the current version and never name one. Rotating makes another version current; the one before stays
valid for the overlap, so that whoever read it a moment ago is not refused. It can be retired when nobody used it for a
while (the uses are counted here), and until the recovery window is over it can be had back; then its key is destroyed.

SQLite by itself, not the platform's database: who can read that one (a replica, a backup, a report) must not hold this.
Every operation opens its own connection and is one transaction, so several processes may share the file.
"""

from __future__ import annotations

import getpass
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wootz.core import ConfigError
from wootz.core.secrets import Secret
from wootz.store.secrets.envelope import KeyWrapper, Sealed, rewrapped, seal, unseal

State = Literal["pending", "current", "previous", "retired", "destroyed"]

DAY = 86400.0
OVERLAP_SECONDS = 30 * DAY
RECOVERY_SECONDS = 7 * DAY
MAX_AGE_SECONDS = 90 * DAY
QUIET_SECONDS = 3600.0
"""A version used this short a time ago is still in use. Far longer than a server needs to write its uses down."""
SETTLING_SECONDS = 10.0
"""After a rotation servers go on with the version before until they read again, every two seconds, and write down what
they used with the same delay: until then nothing here says that it is not in use."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")

TABLES = """
create table if not exists secrets (
    name text primary key, description text not null,
    overlap real not null, recovery real not null, max_age real not null
);
create table if not exists versions (
    name text not null references secrets, version integer not null, state text not null,
    ciphertext blob, wrapped_key blob, created real not null, current_since real, previous_since real, retired_at real,
    primary key (name, version)
);
create unique index if not exists one_current on versions (name) where state = 'current';
create table if not exists uses (
    name text not null, version integer not null, used_by text not null,
    count integer not null, first real not null, last real not null, primary key (name, version, used_by)
);
create table if not exists events (
    at real not null, name text not null, version integer, action text not null, who text not null
);
"""


class InvalidSecretVersion(ConfigError):
    """A version that is not there, not yet valid or no longer so."""

    code = "InvalidSecretVersion"


@dataclass(frozen=True, kw_only=True)
class Version:
    """What may be shown of a version. Times are seconds since 1970."""

    name: str
    version: int
    state: State
    created: float
    current_since: float | None
    previous_since: float | None
    retired_at: float | None
    uses: int
    last_used: float | None


@dataclass(frozen=True, kw_only=True)
class About:
    """A secret without its values. The three spans are in seconds."""

    name: str
    description: str
    overlap: float
    recovery: float
    max_age: float
    versions: tuple[Version, ...]

    @property
    def current(self) -> Version | None:
        return next((one for one in self.versions if one.state == "current"), None)


@dataclass(frozen=True)
class Event:
    at: float
    name: str
    version: int | None
    action: str
    who: str


class LocalStore:
    """``names`` are the secrets whose values may be read; None is for whoever administers the store."""

    def __init__(
        self,
        path: Path,
        wrapper: Callable[[], KeyWrapper],
        *,
        names: frozenset[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path, self._wrapper, self._names, self._clock = path, wrapper, names, clock

    # --- reading ------------------------------------------------------------------------------------------------

    def current(self, name: str) -> Secret:
        self._check_scope(name)
        with self._connect() as db:
            row = db.execute("select * from versions where name = ? and state = 'current'", (name,)).fetchone()
            if row is None:
                raise self._missing(db, name)
        return self._open(row)

    def get(self, name: str, version: int) -> Secret:
        """A certain version, for a drill or a rollback. Raises `InvalidSecretVersion` once its overlap is over."""
        self._check_scope(name)
        with self._connect() as db:
            row, about = self._row(db, name, version), self._about(db, name)
        over = row["state"] == "previous" and self._clock() > row["previous_since"] + about.overlap
        if over or row["state"] in ("retired", "destroyed"):
            raise InvalidSecretVersion(
                f'version {version} of "{name}" is {"past its overlap" if over else row["state"]}'
            )
        return self._open(row)

    def count_uses(self, name: str, uses: Mapping[int, int], used_by: str) -> None:
        now = self._clock()
        with self._connect() as db:
            db.executemany(
                "insert into uses values (?, ?, ?, ?, ?, ?) on conflict (name, version, used_by)"
                " do update set count = count + excluded.count, last = max(last, excluded.last)",
                [(name, version, used_by, count, now, now) for version, count in uses.items()],
            )

    def about(self, name: str) -> About:
        with self._connect() as db:
            return self._about(db, name)

    def list(self) -> list[About]:
        with self._connect() as db:
            return [self._about(db, row["name"]) for row in db.execute("select name from secrets order by name")]

    def stale(self, older_than: float | None = None) -> list[About]:
        """Secrets whose current version is older than this many seconds; by default, than their own limit."""
        now = self._clock()
        return [
            about
            for about in self.list()
            if (current := about.current)
            and now - current.created > (about.max_age if older_than is None else older_than)
        ]

    def uses(self, name: str) -> list[tuple[int, str, int, float, float]]:
        """Version, who used it, how many times, first and last."""
        with self._connect() as db:
            rows = db.execute("select * from uses where name = ? order by version, used_by", (name,))
            return [(row["version"], row["used_by"], row["count"], row["first"], row["last"]) for row in rows]

    def events(self, name: str | None = None) -> list[Event]:
        with self._connect() as db:
            rows = db.execute("select * from events where ? is null or name = ? order by rowid", (name, name))
            return [Event(**dict(row)) for row in rows]

    def readable_values(self) -> Iterator[tuple[str, str]]:
        """Every value that still exists, with ``NAME@VERSION``: what a scan looks for."""
        with self._connect() as db:
            rows = db.execute("select * from versions where state != 'destroyed' order by name, version").fetchall()
        for row in rows:
            if self._names is None or row["name"] in self._names:
                yield f"{row['name']}@{row['version']}", self._open(row).value

    # --- the life of a version ----------------------------------------------------------------------------------

    def set(
        self,
        name: str,
        value: str,
        *,
        description: str = "",
        overlap: float = OVERLAP_SECONDS,
        recovery: float = RECOVERY_SECONDS,
        max_age: float = MAX_AGE_SECONDS,
    ) -> int:
        """A new secret, its first version current. One that is there already is rotated, not set."""
        if not NAME.fullmatch(name):
            raise ConfigError(f'"{name}" is no name of a secret', hint="letters, digits and ._/- (no *)")
        self._wrapper()  # A store is not begun without a master key.
        with self._connect(create=True) as db:
            if db.execute("select 1 from secrets where name = ?", (name,)).fetchone():
                raise ConfigError(f'there is a secret "{name}"', hint=f"wootz secrets rotate {name}")
            db.execute("insert into secrets values (?, ?, ?, ?, ?)", (name, description, overlap, recovery, max_age))
            version = self._add(db, name, value)
            self._promote(db, name, version)
        return version

    def stage(self, name: str, value: str) -> int:
        """A new version that nobody reads yet."""
        with self._connect() as db:
            self._about(db, name)
            return self._add(db, name, value)

    def rotate(self, name: str, value: str) -> int:
        """A new version, current at once; the one before stays valid for the overlap."""
        with self._connect() as db:
            self._about(db, name)
            version = self._add(db, name, value)
            self._promote(db, name, version)
        return version

    def promote(self, name: str, version: int) -> None:
        """A staged version becomes current, or a previous one again (a rotation undone)."""
        with self._connect() as db:
            row = self._row(db, name, version)
            if row["state"] not in ("pending", "previous"):
                raise InvalidSecretVersion(
                    f'version {version} of "{name}" is {row["state"]}, so it can\'t become current'
                )
            self._promote(db, name, version)

    def retire(self, name: str, version: int, *, quiet: float = QUIET_SECONDS, force: bool = False) -> None:
        """No longer valid. Refused for the current version, and while it was used in the last ``quiet`` seconds or was
        current a moment ago, unless ``force`` (it has leaked)."""
        with self._connect() as db:
            row = self._row(db, name, version)
            if row["state"] == "current":
                raise ConfigError(
                    f'version {version} of "{name}" is current', hint=f"wootz secrets rotate {name} first"
                )
            if row["state"] in ("retired", "destroyed"):
                raise InvalidSecretVersion(f'version {version} of "{name}" is {row["state"]} already')
            last = db.execute(
                "select used_by, last from uses where name = ? and version = ? order by last desc", (name, version)
            ).fetchone()
            if last and not force and (ago := self._clock() - last["last"]) < quiet:
                raise ConfigError(
                    f'version {version} of "{name}" is in use: {last["used_by"]} used it {max(ago, 0):.0f} s ago',
                    hint=f"retire it when it was quiet for {quiet:.0f} s (wootz secrets audit {name}), or --force",
                )
            since = row["previous_since"]
            if since is not None and not force and self._clock() - since < min(quiet, SETTLING_SECONDS):
                raise ConfigError(
                    f'version {version} of "{name}" was current a moment ago; servers may still send it',
                    hint=f"retire it in {SETTLING_SECONDS:.0f} s, or --force",
                )
            self._move(db, name, version, "retired", "retired_at")

    def recover(self, name: str, version: int) -> None:
        """A retired version is valid again, as a previous one; until its recovery window is over."""
        with self._connect() as db:
            row, about = self._row(db, name, version), self._about(db, name)
            if row["state"] != "retired" or self._clock() > row["retired_at"] + about.recovery:
                raise InvalidSecretVersion(f'version {version} of "{name}" can\'t be had back')
            self._move(db, name, version, "previous", "previous_since")

    def destroy_overdue(self) -> list[tuple[str, int]]:
        """Delete the values and keys of retired versions whose recovery window is over."""
        with self._connect() as db:
            rows = db.execute(
                "select name, version from versions join secrets using (name)"
                " where state = 'retired' and retired_at + recovery < ?",
                (self._clock(),),
            ).fetchall()
            for row in rows:
                db.execute(
                    "update versions set ciphertext = null, wrapped_key = null where name = ? and version = ?",
                    tuple(row),
                )
                self._move(db, row["name"], row["version"], "destroyed", None)
        return [(row["name"], row["version"]) for row in rows]

    def rewrap(self, old: KeyWrapper) -> int:
        """Lock with the present master key what ``old`` locked; returns how many. All of them or, raising, none."""
        with self._connect() as db:
            rows = db.execute(
                "select name, version, wrapped_key from versions where wrapped_key is not null"
            ).fetchall()
            number = 0
            for row in rows:
                name, version = row["name"], row["version"]
                wrapped = rewrapped(row["wrapped_key"], _context(name, version), self._wrapper(), old)
                if wrapped is not None:
                    db.execute(
                        "update versions set wrapped_key = ? where name = ? and version = ?", (wrapped, name, version)
                    )
                    self._write_down(db, name, version, "rewrapped")
                    number += 1
        return number

    # --- rows ---------------------------------------------------------------------------------------------------

    def _add(self, db: sqlite3.Connection, name: str, value: str) -> int:
        if not value:
            raise ConfigError(f'"{name}": an empty value is no secret')
        (last,) = db.execute("select coalesce(max(version), 0) from versions where name = ?", (name,)).fetchone()
        version, now = last + 1, self._clock()
        sealed = seal(value, _context(name, version), self._wrapper())
        db.execute(
            "insert into versions (name, version, state, ciphertext, wrapped_key, created)"
            " values (?, ?, 'pending', ?, ?, ?)",
            (name, version, sealed.ciphertext, sealed.wrapped_key, now),
        )
        self._write_down(db, name, version, "pending")
        return version

    def _promote(self, db: sqlite3.Connection, name: str, version: int) -> None:
        row = db.execute("select version from versions where name = ? and state = 'current'", (name,)).fetchone()
        if row:
            self._move(db, name, row["version"], "previous", "previous_since")
        self._move(db, name, version, "current", "current_since")

    def _move(self, db: sqlite3.Connection, name: str, version: int, state: State, stamp: str | None) -> None:
        stamped = f", {stamp} = :now" if stamp else ""
        db.execute(
            f"update versions set state = :state{stamped} where name = :name and version = :version",
            {"state": state, "now": self._clock(), "name": name, "version": version},
        )
        self._write_down(db, name, version, state)

    def _write_down(self, db: sqlite3.Connection, name: str, version: int, action: str) -> None:
        db.execute("insert into events values (?, ?, ?, ?, ?)", (self._clock(), name, version, action, _who()))

    def _row(self, db: sqlite3.Connection, name: str, version: int) -> sqlite3.Row:
        row = db.execute("select * from versions where name = ? and version = ?", (name, version)).fetchone()
        if row is None:
            raise InvalidSecretVersion(f'there is no version {version} of "{name}"')
        return row

    def _about(self, db: sqlite3.Connection, name: str) -> About:
        about = db.execute("select * from secrets where name = ?", (name,)).fetchone()
        if about is None:
            raise self._missing(db, name)
        rows = db.execute(
            "select name, version, state, created, current_since, previous_since, retired_at,"
            " (select coalesce(sum(count), 0) from uses u where u.name = v.name and u.version = v.version) uses,"
            " (select max(last) from uses u where u.name = v.name and u.version = v.version) last_used"
            " from versions v where name = ? order by version",
            (name,),
        )
        return About(**dict(about), versions=tuple(Version(**dict(row)) for row in rows))

    def _open(self, row: sqlite3.Row) -> Secret:
        name, version = row["name"], row["version"]
        sealed = Sealed(row["ciphertext"], row["wrapped_key"])
        return Secret(unseal(sealed, _context(name, version), self._wrapper()), version)

    def _check_scope(self, name: str) -> None:
        if self._names is not None and name not in self._names:
            raise ConfigError("this process may not read it", hint="name it in secrets.allow")

    def _missing(self, db: sqlite3.Connection, name: str) -> ConfigError:
        known = db.execute("select 1 from secrets where name = ?", (name,)).fetchone()
        if known:
            return InvalidSecretVersion(f'no version of "{name}" is current')
        return ConfigError(f'the store has no secret "{name}"', hint=f"wootz secrets set {name}")

    @contextmanager
    def _connect(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the file for writing: what it decides on cannot change under it."""
        if create:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        elif not self.path.exists():
            raise ConfigError("there is no secret store yet", hint="wootz secrets set NAME makes one")
        db = sqlite3.connect(self.path, timeout=10, isolation_level=None)
        db.row_factory = sqlite3.Row
        try:
            db.execute("pragma secure_delete = on")
            if create:
                db.executescript(TABLES)
            db.execute("begin immediate")
            yield db
            db.execute("commit")
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{self.path} can't be used ({error})") from None
        finally:
            db.close()


def _context(name: str, version: int) -> bytes:
    return f"wootz secret\0{name}\0{version}".encode()


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
