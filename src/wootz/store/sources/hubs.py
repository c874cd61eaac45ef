"""Models from Hugging Face (``hf:``) and ModelScope (``ms:``).

    hf:ORG/NAME[@REVISION]              a model folder: safetensors, config, tokenizer, chat template
    hf:ORG/NAME/FILE.gguf[@REVISION]    one GGUF file

Both hubs are asked for a listing with sizes and hashes, then for each file. The environment variables are their own:
``HF_ENDPOINT``, ``HF_TOKEN`` (or the token that ``hf auth login`` saved), ``MODELSCOPE_DOMAIN`` and
``MODELSCOPE_API_TOKEN``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import httpx

from wootz.core import BadRequestError, Progress, UpstreamError
from wootz.store.sources import Fetched, Staging, is_model_file, no_model
from wootz.store.sources.download import RemoteFile, ask, download

TIMEOUT = httpx.Timeout(60, connect=15)

_REFERENCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+\.gguf))?(?:@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class Listing:
    """A repository at one revision: all its files, by path."""

    files: dict[str, RemoteFile]
    license: str | None
    revision: str


def fetch(source: str, staging: Staging, progress: Progress) -> Fetched:
    scheme, _, text = source.partition(":")
    reference = _REFERENCE.fullmatch(text)
    if reference is None or ".." in text:
        raise BadRequestError(
            f'"{source}" names no model', hint=f"write {scheme}:ORG/NAME or {scheme}:ORG/NAME/FILE.gguf"
        )
    repo, file, revision = reference["repo"], reference["file"], reference["revision"]
    listing_of, headers = (_hugging_face, _hf_headers()) if scheme == "hf" else (_modelscope, _ms_headers())
    with httpx.Client(headers=headers, timeout=TIMEOUT, follow_redirects=True) as client:
        try:
            listing = listing_of(client, repo, revision)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UpstreamError(f"{source}: the hub's listing is not in its documented form") from None
        wanted = _choose(source, listing, file)
        total = sum(remote.size for remote in wanted)
        staging.keep_only({remote.name for remote in wanted})
        staging.need(total - sum(part.stat().st_size for part in (*staging.files.rglob("*"), *staging.parts.iterdir())))
        progress.set_total(total)
        for remote in wanted:
            # A part belongs to one version of a file: another one must not be glued onto it.
            part = staging.parts / f"{remote.digest}.part"
            download(client, remote, staging.place(remote.name), part, progress)
    return Fetched(
        suggested_name=PurePosixPath(file).stem if file else repo.split("/")[1],
        license=listing.license,
        revision=listing.revision,
    )


def _choose(source: str, listing: Listing, file: str | None) -> list[RemoteFile]:
    """The model in the root folder (hubs keep other exports in sub-folders), or the one GGUF file that was named."""
    if file is None:
        chosen = [replace(remote, name=path) for path, remote in listing.files.items() if is_model_file(path)]
        if any(remote.name.endswith(".safetensors") for remote in chosen):
            return chosen
    elif file in listing.files:
        return [listing.files[file]]
    ggufs = [path for path in listing.files if path.endswith(".gguf")]
    raise no_model(source, [f"{source.partition('@')[0].removesuffix(f'/{file}')}/{path}" for path in ggufs])


# --- Hugging Face: https://huggingface.co/docs/hub/api --------------------------------------------------------


def _hugging_face(client: httpx.Client, repo: str, revision: str | None) -> Listing:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    info: dict[str, Any] = ask(
        lambda: client.get(
            f"{endpoint}/api/models/{repo}/revision/{quote(revision or 'main', safe='')}", params={"blobs": "true"}
        ),
        f'Hugging Face model "{repo}"',
        hint="accept its terms on the hub and set HF_TOKEN",
    ).json()
    commit: str = info["sha"]
    files = {}
    for entry in info["siblings"]:
        path, lfs = entry["rfilename"], entry.get("lfs")
        digest, kind = (lfs["sha256"], "sha256") if lfs else (entry["blobId"], "git")
        url = f"{endpoint}/{repo}/resolve/{commit}/{quote(path)}"
        files[path] = RemoteFile(PurePosixPath(path).name, url, entry["size"], digest, kind)
    license = (info.get("cardData") or {}).get("license")
    return Listing(files, license if isinstance(license, str) else None, commit)


def _hf_headers() -> dict[str, str]:
    token = os.environ.get("HF_TOKEN", "").strip()
    saved = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "token"
    if not token and saved.is_file():
        token = saved.read_text().strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


# --- ModelScope: https://www.modelscope.cn/docs/models/download ------------------------------------------------


def _modelscope(client: httpx.Client, repo: str, revision: str | None) -> Listing:
    domain = os.environ.get("MODELSCOPE_DOMAIN", "www.modelscope.cn").rstrip("/")
    endpoint = domain if "://" in domain else f"https://{domain}"
    revision = revision or "master"
    what, hint = f'ModelScope model "{repo}"', "set MODELSCOPE_API_TOKEN"
    params = {"Revision": revision, "Recursive": "true"}
    answer = ask(lambda: client.get(f"{endpoint}/api/v1/models/{repo}/repo/files", params=params), what, hint=hint)
    files = {}
    for entry in answer.json()["Data"]["Files"]:
        if entry["Type"] == "blob":
            path = entry["Path"]
            url = f"{endpoint}/models/{repo}/resolve/{quote(revision, safe='')}/{quote(path)}"
            files[path] = RemoteFile(PurePosixPath(path).name, url, entry["Size"], entry["Sha256"])
    card = ask(lambda: client.get(f"{endpoint}/api/v1/models/{repo}"), what, hint=hint).json()["Data"]
    return Listing(files, card.get("License") or None, revision)


def _ms_headers() -> dict[str, str]:
    token = os.environ.get("MODELSCOPE_API_TOKEN", "").strip()
    return {"User-Agent": "wootz", **({"Authorization": f"Bearer {token}"} if token else {})}
