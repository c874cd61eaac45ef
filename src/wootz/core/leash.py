"""A child process's leash: it lives no longer than the process that started it.

The parent holds the write end of the child's standard input and never writes to it. However the parent ends, kill -9
included, the kernel closes that end, the child reads end-of-file, and is gone at once. (A parent-death signal would do
the same, but on Linux only.)
"""

from __future__ import annotations

import os
import threading


def hold() -> None:
    """From now on, end this process as soon as its standard input ends."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="leash", daemon=True).start()
