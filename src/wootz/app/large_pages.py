"""What a process has made by the time it serves lies in large pages from then on, where Linux has them (6.1 and newer).

A request passes through some 6 MB of objects, a few of each page. In pages of 4 KB those are more than a processor
keeps the places of, and looking them up anew takes a tenth of a small answer's time.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

PAGE_BYTES = 2 * 2**20
COLLAPSE = 25
"""MADV_COLLAPSE of https://man7.org/linux/man-pages/man2/madvise.2.html"""


def gather() -> int:
    """How many large pages there are of what was in small ones; none where the system has none to give."""
    if not sys.platform.startswith("linux"):
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return sum(
        madvise(page, PAGE_BYTES, COLLAPSE) == 0 for begin, end in list(_memory()) for page in _pages(begin, end)
    )


def _memory() -> Iterator[tuple[int, int]]:
    """Where what was allocated lies: writable, of no file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, _, _, inode, *name = line.split()
        if mode.startswith("rw") and inode == "0" and name in ([], ["[heap]"]):
            begin, _, end = span.partition("-")
            yield int(begin, 16), int(end, 16)


def _pages(begin: int, end: int) -> range:
    first = -(-begin // PAGE_BYTES) * PAGE_BYTES
    return range(first, end - PAGE_BYTES + 1, PAGE_BYTES)
