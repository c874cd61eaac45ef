"""What a scan reports: a place and a kind, never the value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Finding:
    path: str
    line: int
    """From 1; 0 when the file should not be there at all."""
    column: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.what}" if self.line else f"{self.path}: {self.what}"
