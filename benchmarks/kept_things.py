"""What it costs that kept things are encrypted: each beside the same in plain, on SQLite and this machine's disk.

    python benchmarks/kept_things.py [--out kept.json]

Medians; files of 256 MB are on the disk (fsync) when they count as written, and in the page cache when they are read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec.json import decode, encode
from sqlalchemy import insert, select

from wootz.gateway.kept import Kept
from wootz.gateway.surfaces.batch_journal import Journal
from wootz.gateway.surfaces.response_store import ResponseStore, responses
from wootz.store import Database
from wootz.store.sealed_file import SealedFile, write_sealed
from wootz.store.secrets.envelope import MasterKey

MB, FILE_MB, AT_ONCE = 2**20, 256, 2**18
CONTEXT = b"a benchmark"


def parts() -> Iterator[bytes]:
    part = os.urandom(MB)
    return (part for _ in range(FILE_MB))


def seconds(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def files(folder: Path, rounds: int) -> Iterator[tuple[str, float, float]]:
    key, sealed, plain = os.urandom(32), folder / "sealed", folder / "plain"

    def write_plain() -> None:
        with plain.open("wb") as file:
            file.writelines(parts())
            file.flush()
            os.fsync(file.fileno())

    def read(file: Any) -> None:
        with file:
            while file.read(AT_ONCE):
                pass

    written = seconds(lambda: write_sealed(sealed, key, CONTEXT, parts()), rounds), seconds(write_plain, rounds)
    yield "write a file, MB/s", FILE_MB / written[0], FILE_MB / written[1]
    was_read = (
        seconds(lambda: read(SealedFile(sealed.open("rb"), key, CONTEXT)), rounds),
        seconds(lambda: read(plain.open("rb")), rounds),
    )
    yield "read a file, MB/s", FILE_MB / was_read[0], FILE_MB / was_read[1]


async def rows(folder: Path, rounds: int) -> list[tuple[str, float, float]]:
    database = Database(f"sqlite+aiosqlite:///{folder / 'wootz.db'}")
    await database.migrate()
    master = MasterKey(os.urandom(32))
    kept = Kept(database, lambda: master)
    store, found = ResponseStore(database, kept), list[tuple[str, float, float]]()
    for size in (4, 100):
        said = [{"text": "x" * (size << 9)}]

        async def save(id: str, said: Any = said) -> None:
            response = {"id": f"sealed{id}", "created_at": 1, "previous_response_id": None, "output": said}
            await store.save(None, response, said, None)

        async def save_plain(id: str, said: Any = said) -> None:
            row = {"id": f"plain{id}", "owner": "", "created_at": 1, "input": encode(said).decode()}
            async with database.session() as session:
                await session.execute(insert(responses), [row | {"response": encode({"output": said}).decode()}])

        async def get(id: str) -> None:
            await store.get(None, f"sealed{id}")

        async def get_plain(id: str) -> None:
            async with database.session() as session:
                query = select(responses.c.response, responses.c.input).where(responses.c.id == f"plain{id}")
                row = (await session.execute(query)).one()
            decode(row.response)
            decode(row.input)

        for name, sealed, plain in (("save", save, save_plain), ("read", get, get_plain)):
            taken = [await each(work, f" of {size} KB", 100 * rounds) for work in (sealed, plain)]
            found.append((f"{name} a response of {size} KB, ms", taken[0], taken[1]))
    journal, line = Journal(folder / "journal", await kept.key(), CONTEXT), {"custom_id": "x" * 2048}
    with (folder / "plain.jsonl").open("ab", buffering=0) as plain:
        lines = 1000 * rounds
        sealed_line = seconds(lambda: [journal.append("output", line) for _ in range(lines)], 1) / lines
        plain_line = seconds(lambda: [plain.write(encode(line) + b"\n") for _ in range(lines)], 1) / lines
    journal.close()
    await database.close()
    return [*found, ("write a batch's line of 2 KB, ms", 1000 * sealed_line, 1000 * plain_line)]


async def each(work: Callable[[str], Awaitable[None]], label: str, number: int) -> float:
    """Milliseconds."""
    taken = []
    for one in range(number):
        began = time.perf_counter()
        await work(f"{label} {one}")
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wootz-kept-") as name:
        found = [*files(Path(name), options.rounds), *asyncio.run(rows(Path(name), options.rounds))]
    print(f"{'':36} {'encrypted':>10} {'in plain':>10}")
    for what, sealed, plain in found:
        print(f"{what:36} {sealed:10.3g} {plain:10.3g}")
    if options.out:
        options.out.write_text(json.dumps([dict(zip(("what", "sealed", "plain"), one, strict=True)) for one in found]))


if __name__ == "__main__":
    main()
