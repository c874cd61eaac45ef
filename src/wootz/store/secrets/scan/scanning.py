"""`scan_texts`: two readings. The first finds secrets by their shape and in Terraform's files; the second looks for
those, and for the ones that were known before, in every guise in every text."""

from __future__ import annotations

import bisect
import gzip
import io
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from wootz.core import ConfigError
from wootz.store.secrets.scan import shapes, terraform
from wootz.store.secrets.scan.finding import Finding
from wootz.store.secrets.scan.guises import Known, Search

MAX_BYTES = 64 * 2**20
"""Of one file; what is larger holds models and data."""
UNTRACKED = re.compile(
    r"(?:.*/)?(?:[^/]*\.auto\.tfvars(?:\.json)?|\.env|[^/]*\.tfstate(?:\.backup)?|id_(?:rsa|ed25519))|secrets/.*"
)
"""Names that git must not track, whatever is in them."""
SKIPPED = {".git", ".venv", "node_modules", "__pycache__"}

Texts = Callable[[], Iterable[tuple[str, str]]]


def scan_texts(texts: Texts, values: Mapping[str, str]) -> list[Finding]:
    """``texts`` gives name and text of each place, and is read twice; ``values`` are known secrets by name."""
    found: dict[tuple[str, int], tuple[int, str]] = {}
    known = [Known(name, value) for name, value in values.items()]
    seen = set(values.values())
    for path, text in texts():
        for start, end, what in shapes.find(text):
            found[path, start] = end, what
            if (value := text[start:end]) not in seen and what != "private key":
                seen.add(value)
                known.append(Known(f"the {what} at {path}:{text.count(chr(10), 0, start) + 1}", value))
        for where, value in terraform.secrets_in(text).items():
            if value not in seen:
                seen.add(value)
                known.append(Known(f"{where} of {path}", value))
    if not known:
        return []
    search = Search(known)
    for path, text in texts():
        for start, end, what in search.find(text):
            if (path, start) not in found or end > found[path, start][0]:
                found[path, start] = end, what
    return sorted(_placed(texts, found))


def scan_paths(paths: Iterable[Path], values: Mapping[str, str]) -> list[Finding]:
    """Files, and folders: what git tracks there, or everything where git does not rule. Raises `ConfigError`."""
    files = [(file, tracked) for path in paths for file, tracked in _files(path)]
    misplaced = [
        Finding(str(file), 0, 0, "git must not track it")
        for file, tracked in files
        if tracked is not None and UNTRACKED.fullmatch(tracked)
    ]
    return misplaced + scan_texts(lambda: (text for file, _ in files for text in _read(file)), values)


def scan_history(folder: Path, values: Mapping[str, str]) -> list[Finding]:
    """Every line that a commit added, in any branch."""
    log = _git(folder, "log", "--all", "--unified=0", "--no-color", "--no-ext-diff", "--format=%x00%H", "-p")
    if log is None:
        raise ConfigError(f"{folder} is no git repository")
    added: dict[str, list[str]] = {}
    commit = place = ""
    for line in log.splitlines():
        if line.startswith("\0"):
            commit = line[1:13]
        elif line.startswith("+++ "):
            place = f"commit {commit} {line[4:].removeprefix('b/')}"
        elif line.startswith("+") and place:
            added.setdefault(place, []).append(line[1:])
    texts = [(place, "\n".join(lines)) for place, lines in added.items()]
    return scan_texts(lambda: texts, values)


def _files(path: Path) -> Iterator[tuple[Path, str | None]]:
    """Each with its name in the repository, where git tracks it."""
    if path.is_file():
        yield path, None
    elif not path.is_dir():
        raise ConfigError(f'there is no "{path}"')
    elif (tracked := _git(path, "ls-files", "-z")) is not None:
        yield from ((path / name, name) for name in tracked.split("\0") if name and (path / name).is_file())
    else:
        for file in sorted(path.rglob("*")):
            if file.is_file() and not SKIPPED.intersection(file.parts):
                yield file, None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def _read(file: Path) -> Iterator[tuple[str, str]]:
    """Its text; of an archive (a saved plan is one) that of each member."""
    try:
        data = file.read_bytes() if file.stat().st_size <= MAX_BYTES else b""
        if data[:4] == b"PK\3\4":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for member in archive.infolist():
                    if member.file_size <= MAX_BYTES:
                        yield f"{file}!{member.filename}", _text(archive.read(member))
            return
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(MAX_BYTES)
    except (OSError, EOFError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"{file} can't be read ({type(error).__name__})") from None
    yield str(file), _text(data)


def _text(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _placed(texts: Texts, found: Mapping[tuple[str, int], tuple[int, str]]) -> Iterator[Finding]:
    """By line and column; what lies within a longer find is no find of its own."""
    by_path: dict[str, list[tuple[int, int, str]]] = {}
    for (path, start), (end, what) in found.items():
        by_path.setdefault(path, []).append((start, end, what))
    for path, text in texts():
        reached = -1
        lines = [0, *(match.end() for match in re.finditer("\n", text))] if path in by_path else []
        for start, end, what in sorted(by_path.get(path, ()), key=lambda one: (one[0], -one[1])):
            if end > reached:
                reached = end
                line = bisect.bisect_right(lines, start)
                yield Finding(path, line, start - lines[line - 1] + 1, what)
