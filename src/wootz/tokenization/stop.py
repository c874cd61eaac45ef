"""`StopMatcher`: text ends exactly before the first stop string, wherever the pieces it comes in are cut."""

from __future__ import annotations

from collections.abc import Iterable


class StopMatcher:
    """Text in, text out, until one of ``stop`` is complete. What may be the beginning of one is held back until that is
    known, so no part of a stop string is ever given out.

    The match that *ends* first wins, and of those the longest: the one rule under which the result cannot depend on how
    the text was cut into pieces. (Looking for the match that begins first would prefer "cabs" to "ab" when both come in
    one piece, and "ab" when they come letter by letter.) An empty stop string never matches.
    """

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self.stop = tuple(text for text in stop if text)
        self.stopped_by: str | None = None
        """The stop string that was found. Text before it has been given out; it and what follows never will be."""
        self._held = ""
        self._longest = max(map(len, self.stop), default=0)

    def push(self, text: str, *, may_stop: bool = True) -> str:
        """The text that may be shown now. Unless ``may_stop``, stop strings that are complete in it or begin in it are
        ordinary text (an engine's ``min_tokens``)."""
        if self.stopped_by is not None:
            return ""
        self._held += text
        if not may_stop:
            return self._give(len(self._held))
        ends = [(at + len(stop), at, stop) for stop in self.stop if (at := self._held.find(stop)) >= 0]
        if ends:
            _, at, self.stopped_by = min(ends)
            text, self._held = self._held[:at], ""
            return text
        return self._give(len(self._held) - self._num_undecided())

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        return self._give(len(self._held))

    def _num_undecided(self) -> int:
        """Length of the longest ending of the held text that begins a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self.stop):
                return length
        return 0

    def _give(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text
