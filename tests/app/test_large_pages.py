"""What is gathered into large pages is there as it was."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import hashlib, re
from pathlib import Path
from wootz.app import large_pages

def large():
    return sum(map(int, re.findall(r"AnonHugePages: +(\\d+)", Path("/proc/self/smaps").read_text())))

kept = bytes(range(256)) * 2**17
digest = hashlib.sha256(kept).digest()
number = large_pages.gather()
assert hashlib.sha256(kept).digest() == digest
print(number, large() // 2048)
"""


def test_what_is_there_is_gathered() -> None:
    if not ENABLED.exists() or "[never]" in ENABLED.read_text():
        pytest.skip("no large pages here")
    if tuple(map(int, re.findall(r"\d+", Path("/proc/sys/kernel/osrelease").read_text())[:2])) < (6, 1):
        pytest.skip("a kernel that gathers only by itself")
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    number, found = map(int, run.stdout.split())
    assert found >= number >= 15
