"""A child process's leash: it lives no longer than the supervisor that started it.

The supervisor holds the write end of the child's standard input and never writes to it. However the supervisor
ends, kill -9 included, the kernel closes that end, the child reads end-of-file, and is gone at once. (A parent-death
signal would do the same, but on Linux only.)

    python -m wootz.app.leash MODULE ARGUMENTS…      # runs MODULE as `python -m MODULE` would, on the leash
"""

from __future__ import annotations

import os
import runpy
import sys
import threading


def hold() -> None:
    """From now on, end this process as soon as its standard input ends."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="leash", daemon=True).start()


if __name__ == "__main__":
    hold()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
