"""The migration's state machine under everything that can go wrong at once: replicas that act on what they saw a while
ago, people who push and roll back, and processes that are killed at any statement."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from fresh_database import fresh_sqlite
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import event

from wootz.core import BadRequestError, Config, NotFoundError
from wootz.gateway.migration import Controller, Migration, MigrationStore, Plan
from wootz.gateway.migration.gates import Gate, Verdict
from wootz.gateway.migration.live import Migrations
from wootz.gateway.migration.plan import ENDED, ROLLED_BACK, SHARES, STAGES
from wootz.store import Database
from wootz.store.audit import AuditLog

ALIASES = ("a", "b")
PLAN = Plan(durations=dict.fromkeys(STAGES[:-1], 60.0), margins={"errors": 0.02})


class Killed(BaseException):
    """The process is gone, at this statement."""


class TestController(Controller):
    """Its gates say what the test says."""

    __test__ = False
    verdict: Verdict = "pass"

    async def gates(self, migration: Migration) -> list[Gate]:
        return [Gate(name="errors", verdict=self.verdict, old=0, new=0, worse=0, margin=0, old_count=1, new_count=1)]


@contextmanager
def killed_at(database: Database, statement: int):
    """At the so-many-th statement of the block, its commits counted too."""
    left = [statement]

    def count(*_args, **_options) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    engine = database.engine.sync_engine
    for name in ("before_cursor_execute", "commit"):
        event.listen(engine, name, count)
    try:
        yield
    except Killed:
        pass
    finally:
        for name in ("before_cursor_execute", "commit"):
            event.remove(engine, name, count)


async def check(database: Database) -> list[Migration]:
    """Everything that must hold of what is in the database, whatever happened."""
    store, audit = MigrationStore(database), AuditLog(database)
    assert (await audit.verify()).holds
    found = await store.list(limit=1000)
    told = await audit.entries(action="migration.", limit=100_000)
    assert len(told) == sum(one.step + 1 for one in found)
    for one in found:
        steps = await store.steps(one.id)
        assert [step.number for step in steps] == list(range(one.step + 1))
        stages = [step.stage for step in steps]
        assert stages[-1] == one.stage
        assert steps[-1].at == one.stage_at
        assert not any(stage in ENDED for stage in stages[:-1])
        good = stages[:-1] if stages[-1] == ROLLED_BACK else stages
        assert tuple(good) == STAGES[: len(good)]
        mine = [entry for entry in told if entry.subject == one.id]
        assert [entry.detail["stage"] for entry in reversed(mine)] == stages
        assert [entry.actor for entry in reversed(mine)] == [step.actor for step in steps]
    open = [one.alias for one in found if one.is_open]
    assert len(open) == len(set(open))
    for alias in ALIASES:
        line = [one for one in reversed(found) if one.alias == alias]
        answers = alias
        for one in line:
            assert one.old == answers
            answers = one.new if one.share == 1 else one.old
        assert not line or await store.newest(alias) == line[-1]
    return found


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="wootz-machine-"))
        self.url = fresh_sqlite(self.folder / "wootz.db")
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.databases = [Database(self.url) for _ in range(2)]
        self.controllers = [TestController(MigrationStore(one, lambda: self.now)) for one in self.databases]
        self.live = [self._process(one) for one in self.databases]
        self.seen: list[Migration] = []

    def _process(self, database: Database) -> Migrations:
        models = {name: SimpleNamespace(name=name, provider="x") for name in (*ALIASES, "c", "d")}
        return Migrations(SimpleNamespace(config=Config(), database=database, models=models))  # type: ignore[arg-type]

    def teardown(self) -> None:
        for database in self.databases:
            self.runner.run(database.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def act(self, replica: int, kill_at: int, work) -> None:
        """``kill_at`` 0: nobody is killed."""

        async def run() -> None:
            try:
                with killed_at(self.databases[replica], kill_at or 10**9):
                    await work(self.controllers[replica])
            except (BadRequestError, NotFoundError):
                pass

        self.runner.run(run())

    replicas, kills = st.sampled_from((0, 1)), st.integers(0, 9)
    aliases = st.sampled_from(ALIASES)

    @rule(replica=replicas, kill=kills, alias=aliases, new=st.sampled_from((*ALIASES, "c", "d")))
    def start(self, replica: int, kill: int, alias: str, new: str) -> None:
        async def work(it: Controller) -> None:
            newest = await it.store.newest(alias)
            answers = alias if newest is None else newest.new if newest.share == 1 else newest.old
            may = (newest is None or not newest.is_open) and new != answers
            try:
                await it.store.start(alias=alias, new=new, plan=PLAN, actor="ann")
            except BadRequestError:
                assert not may
            else:
                assert may

        self.act(replica, kill, work)

    @rule(seconds=st.sampled_from((0, 1, 59, 61)))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(replica=replicas, kill=kills, verdict=st.sampled_from(("pass", "pass", "wait", "fail")))
    def tick(self, replica: int, kill: int, verdict: Verdict) -> None:
        self.controllers[replica].verdict = verdict
        self.act(replica, kill, lambda it: it.tick())

    @rule(verdict=st.sampled_from(("pass", "fail")))
    def both_tick_at_once(self, verdict: Verdict) -> None:
        async def run() -> None:
            for controller in self.controllers:
                controller.verdict = verdict
            moved = await asyncio.gather(*(controller.tick() for controller in self.controllers))
            ids = [one.id for each in moved for one in each]
            assert len(ids) == len(set(ids)), "two replicas took the same step"

        self.runner.run(run())

    @rule(replica=replicas, kill=kills, alias=aliases, force=st.booleans())
    def advance(self, replica: int, kill: int, alias: str, force: bool) -> None:
        self.act(replica, kill, lambda it: it.advance(alias, actor="bob", force=force))

    @rule(replica=replicas, kill=kills, alias=aliases)
    def roll_back(self, replica: int, kill: int, alias: str) -> None:
        self.act(replica, kill, lambda it: it.roll_back(alias, actor="eve", why="to see"))

    @rule(replica=replicas)
    def look(self, replica: int) -> None:
        self.seen += self.runner.run(self.controllers[replica].store.list())

    @rule(replica=replicas, choice=st.integers(0, 1000), to=st.sampled_from((*STAGES, ROLLED_BACK)))
    def act_on_what_was_seen_long_ago(self, replica: int, choice: int, to: str) -> None:
        if not self.seen:
            return
        seen = self.seen[choice % len(self.seen)]

        async def work(it: Controller) -> None:
            before = await it.store.get(seen.id)
            moved = await it.store.move(seen, to, actor="late", why="")
            assert (moved is None) == (before.step != seen.step)
            assert before.step == seen.step or await it.store.get(seen.id) == before

        self.act(replica, 0, work)

    @rule(replica=replicas)
    def restart(self, replica: int) -> None:
        """What a process had in memory is gone."""
        self.live[replica] = self._process(self.databases[replica])

    @invariant()
    def what_is_kept_holds(self) -> None:
        self.runner.run(check(self.databases[0]))

    @invariant()
    def every_replica_does_what_the_database_says(self) -> None:
        async def run() -> None:
            newest = {one.alias: one for one in await self.controllers[0].store.deciding()}
            for live in self.live:
                await live.reload()
                for alias, one in newest.items():
                    assert SHARES[one.stage] == one.share
                    at = live._live.get(alias)
                    assert at is None if one.stage == ROLLED_BACK and one.old == alias else at.migration == one

        self.runner.run(run())


def case_of(examples: int, steps: int) -> type:
    limits = {"max_examples": examples, "stateful_step_count": steps, "deadline": None}
    test = type("TestMachine", (Machine.TestCase,), {})
    test.settings = settings(**limits, suppress_health_check=list(HealthCheck))
    return test


TestMachine = case_of(8, 20)
TestMachineForLong = pytest.mark.timeout(900)(pytest.mark.slow(case_of(150, 40)))

CHILD = """
import asyncio, sys
from wootz.core import BadRequestError
from wootz.gateway.migration import Controller, MigrationStore, Plan
from wootz.gateway.migration.plan import STAGES
from wootz.store import Database

async def main():
    store = MigrationStore(Database(sys.argv[1]))
    plan = Plan(durations=dict.fromkeys(STAGES[:-1], 0.0))
    print("up", flush=True)
    turn = 0
    while True:
        for alias in "ab":
            newest = await store.newest(alias)
            if newest is None or not newest.is_open:
                answers = alias if newest is None else newest.new if newest.share == 1 else newest.old
                await store.start(alias=alias, new={"c": "d"}.get(answers, "c"), plan=plan, actor="child")
        await Controller(store).tick()
        if (turn := turn + 1) % 5 == 0:
            try:
                await Controller(store).roll_back("a", actor="child", why="every fifth")
            except BadRequestError:
                pass

asyncio.run(main())
"""


def child(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, url], stdout=subprocess.PIPE)


@pytest.mark.parametrize(
    "moment", [0.047, *(pytest.param(n / 1000, marks=pytest.mark.slow) for n in (11, 23, 37, 61, 83, 113, 151))]
)
async def test_a_process_killed_at_any_moment_loses_nothing(tmp_path: Path, moment: float) -> None:
    url = fresh_sqlite(tmp_path / "wootz.db")
    process = child(url)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    await asyncio.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    database = Database(url)
    before = await check(database)
    moved = await Controller(MigrationStore(database)).tick()
    assert {one.id for one in moved} == {one.id for one in before if one.is_open}
    await check(database)
    await database.close()
