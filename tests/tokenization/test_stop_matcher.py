"""A stop string ends the text at the same place however the text is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wootz.tokenization import StopMatcher

stops = st.lists(st.text("abc", max_size=4), max_size=3)


def run(stop: list[str], pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stop)
    shown = "".join(matcher.push(piece) for piece in pieces)
    return shown + matcher.finish(), matcher.stopped_by


@given(pieces=st.lists(st.text("abc", max_size=6), max_size=12), stop=stops)
@example(pieces=["cab", "c"], stop=["ab", "cabc"])
@example(pieces=["cabc"], stop=["ab", "cabc"])
def test_the_pieces_do_not_matter(pieces: list[str], stop: list[str]) -> None:
    text = "".join(pieces)
    assert run(stop, pieces) == run(stop, list(text)) == run(stop, [text])


@given(text=st.text("abc", max_size=30), stop=stops)
def test_the_text_is_cut_before_the_match_that_ends_first(text: str, stop: list[str]) -> None:
    shown, stopped_by = run(stop, [text])
    matches = [(end, text[:end].removesuffix(s), s) for end in range(1, len(text) + 1) for s in stop if s]
    matches = [match for match in matches if text[: match[0]].endswith(match[2])]
    if not matches:
        assert (shown, stopped_by) == (text, None)
    else:
        end = matches[0][0]
        longest = max((m for m in matches if m[0] == end), key=lambda m: len(m[2]))
        assert (shown, stopped_by) == longest[1:]


@pytest.mark.parametrize("may_stop_first", [True, False])
def test_nothing_comes_after_a_stop(may_stop_first: bool) -> None:
    matcher = StopMatcher(["</s>"])
    assert matcher.push("one</", may_stop=may_stop_first) == ("one" if may_stop_first else "one</")
    assert matcher.push("s> two</s>three") == ("" if may_stop_first else "s> two")
    assert matcher.stopped_by == "</s>"
    assert matcher.push("four") == matcher.finish() == ""
