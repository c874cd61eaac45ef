"""What is gathered into large pages is there as it was."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

from wootz.app import large_pages

PROGRAM = """
import hashlib, re
from pathlib import Path
from wootz.app import large_pages

def large():
    return sum(map(int, re.findall(r"AnonHugePages: +(\\d+)", Path("/proc/self/smaps").read_text())))

# first
kept = bytes(range(256)) * 2**17
digest = hashlib.sha256(kept).digest()
number = large_pages.gather()
assert hashlib.sha256(kept).digest() == digest
print(number, large() // 2048)
"""


def test_what_is_there_is_gathered_where_the_system_can() -> None:
    number, found = gathered()
    if system_can():
        assert found >= number >= 15
    else:
        assert number == 0


def test_where_it_is_switched_off_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    for place in (tmp_path / "enabled", tmp_path / "gone"):
        assert gathered(f"large_pages.ENABLED = Path({str(place)!r})")[0] == 0


def gathered(first: str = "") -> list[int]:
    """Pages, and how many large ones there are then."""
    program = PROGRAM.replace("# first", first)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [int(number) for number in run.stdout.split()]


def system_can() -> bool:
    if not large_pages.ENABLED.exists() or "[never]" in large_pages.ENABLED.read_text():
        return False
    major, minor = re.findall(r"\d+", platform.release())[:2]
    return (int(major), int(minor)) >= (6, 1)
