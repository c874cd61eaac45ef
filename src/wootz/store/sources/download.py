"""Fetch one file over HTTP so that a cut costs nothing but the wait: resumed by ``Range``, accepted by its hash.

(huggingface_hub's own downloader begins a file anew in each process since 1.x, so it can't do this for us.)
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from wootz.core import NotFoundError, PermissionError_, Progress, UpstreamError

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""Cuts in a row, without a byte in between, that end a pull; the next pull goes on where it ended."""

CHUNK = 2**20


@dataclass(frozen=True)
class RemoteFile:
    """A file as its hub lists it. ``digest`` is hexadecimal, of the kind ``hash_kind``."""

    name: str
    url: str
    size: int
    digest: str
    hash_kind: str = "sha256"
    """``sha256``, or ``git``: sha1 over git's blob header and the content, as git names small files."""

    def matches(self, file: Path) -> bool:
        if file.stat().st_size != self.size:
            return False
        digest = hashlib.sha256() if self.hash_kind == "sha256" else hashlib.sha1(f"blob {self.size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest() == self.digest


def download(client: httpx.Client, remote: RemoteFile, to: Path, part: Path, progress: Progress) -> None:
    """Have ``remote`` at ``to``; ``part`` is where its bytes gather. Raises `UpstreamError` if it is cut or damaged."""
    if to.exists() and remote.matches(to):
        progress.advance(remote.size)
        return
    if part.exists() and part.stat().st_size <= remote.size:
        progress.advance(part.stat().st_size)
    else:
        part.write_bytes(b"")
    failures = 0
    while (have := part.stat().st_size) < remote.size:
        try:
            _go_on(client, remote, part, have, progress)
        except (httpx.TransportError, UpstreamError) as error:
            failures = 0 if part.stat().st_size > have else failures + 1
            if failures == ATTEMPTS:
                raise UpstreamError(
                    f"{remote.name}: {reason_of(error)}", hint="pull again to go on from there"
                ) from None
            log.info("%s was cut (%s), going on", remote.name, error)
            time.sleep(0.2 * 2**failures)
    if not remote.matches(part):
        part.unlink()
        raise UpstreamError(f"{remote.name} came damaged (its hash is not the one listed)", hint="pull again")
    part.replace(to)


def _go_on(client: httpx.Client, remote: RemoteFile, part: Path, have: int, progress: Progress) -> None:
    headers = {"Range": f"bytes={have}-"} if have else {}
    # Asked for as it is stored: a compressed transfer couldn't be resumed by its length.
    with client.stream("GET", remote.url, headers={**headers, "Accept-Encoding": "identity"}) as response:
        check(response, remote.name)
        if have and response.status_code != 206:
            progress.advance(-have)
            have = 0
        with part.open("r+b", buffering=0) as stream:  # What has arrived is kept, however this ends.
            stream.seek(have)
            stream.truncate()
            for chunk in response.iter_raw():
                stream.write(chunk)
                progress.advance(len(chunk))


def check(response: httpx.Response, what: str, *, hint: str | None = None) -> None:
    """Turn a refusal into the error that says what to do."""
    if response.status_code < 300:
        return
    where = f"{what} ({response.url.host} answered {response.status_code})"
    if response.status_code in (401, 403):
        raise PermissionError_(f"no access to {where}", hint=hint)
    if response.status_code == 404:
        raise NotFoundError(f"no such {where}")
    raise UpstreamError(f"can't get {where}")


def reason_of(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def ask(call: Callable[[], httpx.Response], what: str, *, hint: str | None = None) -> httpx.Response:
    """A small request, its failures as one clear line."""
    try:
        response = call()
    except httpx.TransportError as error:
        raise UpstreamError(f"can't reach the hub for {what}: {reason_of(error)}") from None
    check(response, what, hint=hint)
    return response
