"""The lines of a batch that are done, each written as it ends; `OUTPUTS` apart.

A line is encrypted by itself and bound to its batch, before it its length in four bytes. Nothing binds it to its place:
whoever stood still for longer than a claim lasts may still write one between those of who has taken over. What the user
gets is a file that is made of these lines in the end, and that is bound as a whole (`wootz.store.sealed_file`).
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag
from msgspec import json

from wootz.core import ConfigError
from wootz.store.secrets.data_keys import DataKey
from wootz.store.secrets.envelope import decrypt, encrypt

log = logging.getLogger(__name__)

OUTPUTS = ("output", "error")
LENGTH_BYTES = 4


class Journal:
    def __init__(self, folder: Path, key: DataKey, context: bytes) -> None:
        self.folder, self._key, self._context = folder, key.key, context
        self._open: dict[str, BinaryIO] = {}

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.sealed"

    def read(self) -> dict[str, set[str]]:
        """The custom ids in each. A last line that was cut is removed, for it is not done; so is what follows one that
        does not open."""
        self._seal_those_of_before()
        done: dict[str, set[str]] = {name: set() for name in OUTPUTS}
        for name in OUTPUTS:
            if self.path(name).exists():
                whole = 0
                for line, end in self._lines(name):
                    done[name].add(json.decode(line)["custom_id"])
                    whole = end
                if whole < self.path(name).stat().st_size:
                    log.warning("%s: cut after %d lines, the rest is asked again", self.path(name), len(done[name]))
                    os.truncate(self.path(name), whole)
        return done

    def lines(self, name: str) -> Iterator[bytes]:
        """All of them, each with its newline. Raises `ConfigError` after the last that opens, where that is not all."""
        whole = 0
        for line, end in self._lines(name):
            yield line
            whole = end
        if whole < self.path(name).stat().st_size:
            raise ConfigError(f"{self.path(name)} was changed at its byte {whole}", hint="restore it")

    def is_empty(self, name: str) -> bool:
        return not self.path(name).exists() or not self.path(name).stat().st_size

    def usage(self) -> dict[str, Any]:
        """The tokens of all answers, as OpenAI's batch tells them."""
        total = Counter[str]()
        if self.path("output").exists():
            for line in self.lines("output"):
                total += _tokens(json.decode(line)["response"]["body"].get("usage") or {})
        return {
            "input_tokens": total["input"],
            "input_tokens_details": {"cached_tokens": total["cached"]},
            "output_tokens": total["output"],
            "output_tokens_details": {"reasoning_tokens": total["reasoning"]},
            "total_tokens": total["input"] + total["output"],
        }

    def append(self, name: str, entry: dict[str, Any]) -> None:
        """In the system's hands when it returns: a killed process loses nothing."""
        if name not in self._open:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open[name] = open(self.path(name), "ab", buffering=0)  # noqa: SIM115
        self._open[name].write(self._sealed(name, json.encode(entry) + b"\n"))

    def close(self) -> None:
        for file in self._open.values():
            os.fsync(file.fileno())
            file.close()
        self._open.clear()

    def remove(self) -> None:
        for name in OUTPUTS:
            self.path(name).unlink(missing_ok=True)
        if self.folder.exists():
            self.folder.rmdir()

    def _lines(self, name: str) -> Iterator[tuple[bytes, int]]:
        """Each line, and where it ends in the file; to the first that is cut or does not open."""
        end, size = 0, self.path(name).stat().st_size
        with open(self.path(name), "rb") as file:
            while (begin := end + LENGTH_BYTES) < size:
                end = begin + int.from_bytes(file.read(LENGTH_BYTES), "big")
                if end > size:
                    return
                try:
                    line = decrypt(self._key, file.read(end - begin), self._bound(name))
                except (InvalidTag, ValueError):
                    return
                yield line, end

    def _sealed(self, name: str, line: bytes) -> bytes:
        sealed = encrypt(self._key, line, self._bound(name))
        return len(sealed).to_bytes(LENGTH_BYTES, "big") + sealed

    def _bound(self, name: str) -> bytes:
        return self._context + name.encode()

    def _seal_those_of_before(self) -> None:
        """What an older version has written, and this one goes on with."""
        for name in OUTPUTS:
            plain, part = self.folder / f"{name}.jsonl", self.folder / f"{name}.part"
            if plain.exists():
                with open(plain, "rb") as old, open(part, "wb") as new:
                    new.writelines(self._sealed(name, line) for line in old if line.endswith(b"\n"))
                    new.flush()
                    os.fsync(new.fileno())
                os.replace(part, self.path(name))
                plain.unlink()


def _tokens(usage: dict[str, Any]) -> Counter[str]:
    """Chat and completions have one set of names, responses another."""

    def detail(names: tuple[str, str], name: str) -> int:
        return next((usage[one].get(name) or 0 for one in names if isinstance(usage.get(one), dict)), 0)

    return Counter(
        input=usage.get("prompt_tokens") or usage.get("input_tokens") or 0,
        output=usage.get("completion_tokens") or usage.get("output_tokens") or 0,
        cached=detail(("prompt_tokens_details", "input_tokens_details"), "cached_tokens"),
        reasoning=detail(("completion_tokens_details", "output_tokens_details"), "reasoning_tokens"),
    )
