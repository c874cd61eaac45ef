"""The same events come out however the bytes were cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wootz.providers import sse
from wootz.providers.sse import EventReader


def read(*pieces: bytes) -> list[str]:
    reader = EventReader()
    return [data for piece in pieces for data in reader.feed(piece)] + reader.end()


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: one\n\ndata: two\n\n", ["one", "two"]),
        (b"data:one\n\n", ["one"]),
        (b"data:  one\n\n", [" one"]),
        (b"data: a\ndata: b\ndata:\ndata\n\n", ["a\nb\n\n"]),
        (b": ping\n\nevent: x\nid: 1\nretry: 5\ndata: one\n\n\n\n", ["one"]),
        (b"event: nothing\n\n", []),
        (b"data: cut off", []),
        (b"data: whole line\n", ["whole line"]),
        (b"data: one\r\rdata: two\r\r", ["one", "two"]),
        (b"", []),
    ],
)
def test_events(stream: bytes, expected: list[str]) -> None:
    assert read(stream) == expected


@given(
    events=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1), max_size=4
    ),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_any_cut_gives_the_same_events(events: list[str], end: str, cuts: list[int]) -> None:
    stream = "".join(f": hi{end}data: {event}{end}{end}" for event in events).encode()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert read(*pieces) == events


class LineByLine(EventReader):
    def _plain(self, piece: bytes) -> list[str] | None:
        return None


@given(
    parts=st.lists(
        st.sampled_from(["data: a", "data:b", "data: ", ": hi", "id: 1", "\n", "\n", "\n\n", "\r\n", "\r", "ü"])
    ),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_the_short_way_reads_what_the_long_one_does(parts: list[str], cuts: list[int]) -> None:
    stream = "".join(parts).encode()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    short, long = EventReader(), LineByLine()
    for a, b in itertools.pairwise(edges):
        assert short.feed(stream[a:b]) == long.feed(stream[a:b])
    assert short.end() == long.end()


def test_what_is_no_text_or_has_no_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="utf-8"):
        read(b"data: \xff\n\n")
    monkeypatch.setattr(sse, "MAX_LINE_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        read(*[b"data: xxxxxxxxxx"] * 20)
