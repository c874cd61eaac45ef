from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wootz.engine.output import TextStream


class Letters:
    """Token n is the n-th of these letters, and the end of the text is marked, as an unfinished character would be."""

    def __init__(self, letters: str = "abcd") -> None:
        self.letters = letters

    def push(self, token_ids) -> str:
        return "".join(self.letters[id] for id in token_ids)

    def flush(self) -> str:
        return ""


letters = st.text("abc", max_size=30)
stops = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple)


@given(letters, stops)
def test_text_ends_before_the_first_stop_string_and_shows_no_part_of_it(text, stop):
    stream = TextStream(Letters(), stop)
    shown = ""
    for position, letter in enumerate(text):
        shown += stream.push("abc".index(letter))
        so_far = text[: position + 1]
        if stream.stopped_by is not None:
            assert so_far.endswith(stream.stopped_by)
            assert shown == so_far.removesuffix(stream.stopped_by)
            assert not any(each in so_far[:-1] for each in stop), "stopped too late"
            return
        assert not any(each in so_far for each in stop), "did not stop"
        assert text.startswith(shown)
        held = so_far[len(shown) :]
        assert not held or any(each.startswith(held) for each in stop), "held back without need"
        assert not any(each.startswith(so_far[at:]) for at in range(len(shown)) for each in stop), "shown too early"
    assert shown + stream.finish() == text


def test_without_stop_strings_nothing_is_held_back():
    stream = TextStream(Letters())
    assert [stream.push(n) for n in (0, 1, 2)] == ["a", "b", "c"]


def test_stop_strings_are_plain_text_until_min_tokens():
    stream = TextStream(Letters(), ("ab",))
    assert stream.push(0, may_stop=False) + stream.push(1, may_stop=False) == "ab"
    assert stream.push(0) == ""
    assert stream.push(1) == ""
    assert stream.stopped_by == "ab"


def test_a_token_of_several_letters_is_cut_in_the_middle():
    class Words(Letters):
        def push(self, token_ids) -> str:
            return "".join(["Hello", " world. And"][id] for id in token_ids)

    stream = TextStream(Words(), ("rld",))
    assert stream.push(0) + stream.push(1) == "Hello wo"
    assert stream.stopped_by == "rld"
    assert stream.finish() == ""
