"""Files that are encrypted in pieces: read from any place, and nothing but what was written is read."""

from __future__ import annotations

import io
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wootz.store import sealed_file
from wootz.store.sealed_file import EXTRA, MAGIC, DamagedFile, SealedFile, write_sealed

KEY, PIECE = bytes(range(32)), 64
STEP = PIECE + EXTRA
Change = Callable[[list[bytes], list[bytes]], list[bytes]]


def opened(path: Path, key: bytes = KEY, context: bytes = b"mine") -> io.BufferedReader:
    return io.BufferedReader(SealedFile(path.open("rb"), key, context))


def sealed(path: Path, content: bytes, context: bytes = b"mine") -> Path:
    write_sealed(path, KEY, context, [content])
    return path


@pytest.fixture(autouse=True)
def small_pieces() -> object:
    with patch.object(sealed_file, "PIECE", PIECE):
        yield


@given(st.data())
def test_it_is_read_whole_and_from_any_place(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.binary(max_size=150), max_size=8))
    content, path = b"".join(parts), tmp_path_factory.mktemp("sealed") / "file"
    assert write_sealed(path, KEY, b"mine", parts) == len(content)
    assert path.stat().st_size == len(MAGIC) + len(content) + EXTRA * max(1, -(-len(content) // PIECE))
    with opened(path) as file:
        assert file.read() == content
        for _ in range(5):
            start, length = data.draw(st.integers(0, len(content) + 9)), data.draw(st.integers(0, 200))
            file.seek(start)
            assert file.read(length) == content[start : start + length]
    with SealedFile(path.open("rb"), KEY, b"mine") as raw:
        assert raw.size == len(content)


CHANGES: dict[str, Change] = {
    "the last piece cut off": lambda mine, _: mine[:-1],
    "all but the first cut off": lambda mine, _: mine[:1],
    "all cut off": lambda mine, _: [],
    "half a piece cut off": lambda mine, _: [*mine[:-1], mine[-1][:-5]],
    "one byte cut off": lambda mine, _: [*mine[:-1], mine[-1][:-1]],
    "two exchanged": lambda mine, _: [mine[1], mine[0], *mine[2:]],
    "the last two exchanged": lambda mine, _: [*mine[:-2], mine[-1], mine[-2]],
    "one left out": lambda mine, _: [mine[0], *mine[2:]],
    "one twice": lambda mine, _: [mine[0], *mine],
    "one of another file": lambda mine, other: [mine[0], other[1], *mine[2:]],
    "the last of another file": lambda mine, other: [*mine[:-1], other[-1]],
    "another file": lambda _, other: other,
    "something added": lambda mine, _: [*mine, b"more"],
    "one of its pieces added": lambda mine, _: [*mine, mine[0]],
    "a bit of a nonce": lambda mine, _: [flipped(mine[0], 3), *mine[1:]],
    "a bit of the text": lambda mine, _: [mine[0], flipped(mine[1], 20), *mine[2:]],
    "a bit of a tag": lambda mine, _: [*mine[:-1], flipped(mine[-1], -1)],
}


def flipped(piece: bytes, at: int) -> bytes:
    changed = bytearray(piece)
    changed[at] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("num_bytes", [4 * PIECE, 4 * PIECE + 7])
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_not_read(tmp_path: Path, change: str, num_bytes: int) -> None:
    mine = pieces(sealed(tmp_path / "mine", os.urandom(num_bytes)))
    other = pieces(sealed(tmp_path / "other", os.urandom(num_bytes), b"other"))
    (tmp_path / "mine").write_bytes(MAGIC + b"".join(CHANGES[change](mine, other)))
    with pytest.raises(DamagedFile, match="not what was stored under this id"), opened(tmp_path / "mine") as file:
        file.read()


def pieces(path: Path) -> list[bytes]:
    data = path.read_bytes().removeprefix(MAGIC)
    return [data[start : start + STEP] for start in range(0, len(data), STEP)]


@pytest.mark.parametrize(("key", "context"), [(bytes(32), b"mine"), (KEY, b"ours")])
def test_another_key_or_place_opens_nothing(tmp_path: Path, key: bytes, context: bytes) -> None:
    path = sealed(tmp_path / "file", b"text")
    with pytest.raises(DamagedFile):
        opened(path, key, context)


def test_nothing_of_it_lies_on_the_disk_and_no_two_are_alike(tmp_path: Path) -> None:
    content = b"the-heron-flies-at-noon " * 20
    one, two = (sealed(tmp_path / name, content).read_bytes() for name in ("one", "two"))
    assert b"heron" not in one
    assert one.startswith(MAGIC)
    assert one != two


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    with patch.object(sealed_file, "PIECE", 2**16):
        tracemalloc.start()
        write_sealed(tmp_path / "file", KEY, b"mine", (bytes(2**20) for _ in range(48)))
        with opened(tmp_path / "file") as file:
            while file.read(2**18):
                pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 6 * 2**20


def test_an_empty_file_is_one(tmp_path: Path) -> None:
    path = sealed(tmp_path / "file", b"")
    with opened(path) as file:
        assert file.read() == b""
    path.write_bytes(MAGIC)
    with pytest.raises(DamagedFile):
        opened(path)
