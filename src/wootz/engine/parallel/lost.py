"""What is raised when the ranks of an engine no longer work together."""

from __future__ import annotations

from wootz.core.errors import UnavailableError


class RankLostError(UnavailableError):
    """A rank has died or failed in the middle of a pass. The others wait for it in vain, so the engine is to end: its
    supervisor starts all of it anew."""

    code = "engine_restarted"
