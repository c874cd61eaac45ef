"""A config says so when a size makes no sense, instead of a matrix product three calls later."""

from __future__ import annotations


def check_sizes(config: object, *names: str) -> None:
    """Raises ValueError unless each of these attributes is a positive whole number."""
    for name in names:
        size = getattr(config, name)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a positive whole number, not {size!r}")
