"""``[batches]``: requests that come as a file, and are answered when there is time."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from wootz.core.sections.section import Section


class BatchesConfig(Section):
    folder: Path | None = Field(
        default=None, description="Where files and batches lie; replicas share it. Default: WOOTZ_HOME."
    )
    concurrency: int = Field(default=4, ge=1, description="Lines worked on at a time, of all batches together.")
    max_file_bytes: int = Field(default=64 * 2**20, ge=1024, description="Larger uploads are refused with 413.")
    max_stored_bytes: int = Field(default=2**30, ge=1024, description="What one key's files may take, all together.")
