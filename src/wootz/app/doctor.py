"""What this machine has, what Wootz would find on it, and how to get what is missing. It changes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wootz import __version__
from wootz.core import Config, LoadedConfig, WootzError

EXTRAS = {
    "engine": ("local models", ("torch", "numpy", "safetensors", "tokenizers")),
    "bench": ("plots of benchmarks", ("matplotlib",)),
    "otlp": ("export of traces", ("opentelemetry-exporter-otlp-proto-http",)),
}
INSTRUCTION_SETS = {
    "x86_64": ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8"),
    "aarch64": ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
}

State = Literal["ok", "missing", "broken"]
"""``missing`` is a choice (an extra that is not installed); ``broken`` keeps the platform from working."""


@dataclass(frozen=True)
class Finding:
    section: str
    name: str
    state: State
    detail: str
    hint: str = ""


def examine(loaded: LoadedConfig | WootzError) -> Iterator[Finding]:
    """Findings in the order in which they matter; those that need a config are left out when it is broken."""
    yield Finding("Wootz", "wootz", "ok", f"{__version__} on Python {platform.python_version()} ({sys.executable})")
    yield from _extras()
    yield from _machine()
    if isinstance(loaded, WootzError):
        yield Finding("Setup", "config", "broken", str(loaded))
    else:
        yield from _setup(loaded)


def _extras() -> Iterator[Finding]:
    for extra, (purpose, packages) in EXTRAS.items():
        versions = {package: _version(package) for package in packages}
        absent = [package for package, version in versions.items() if version is None]
        if absent:
            hint = f"pip install 'wootz[{extra}]'"
            yield Finding("Extras", extra, "missing", f"{purpose}: no {', '.join(absent)}", hint)
        else:
            found = ", ".join(f"{package} {version}" for package, version in versions.items())
            yield Finding("Extras", extra, "ok", f"{purpose}: {found}")


def _machine() -> Iterator[Finding]:
    import psutil

    cores = psutil.cpu_count(logical=False) or 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("Machine", "processor", "ok", f"{_processor()}, {usable} usable threads on {cores} cores")
    if sets := _instruction_sets():
        yield Finding("Machine", "instructions", "ok", " ".join(sets))
    memory = psutil.virtual_memory()
    yield Finding("Machine", "memory", "ok", f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB")
    yield from _devices()
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler:
        yield Finding("Machine", "C++ compiler", "ok", compiler)
    else:
        hint = "install g++ or clang++ (needed only to build kernels from source)"
        yield Finding("Machine", "C++ compiler", "missing", "none found", hint)


def _devices() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    yield Finding("Machine", "device cpu", "ok", f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        yield Finding("Machine", f"device cuda:{index}", "ok", f"{device.name}, {device.total_memory / 1e9:.0f} GB")
    if torch.backends.mps.is_available():
        yield Finding("Machine", "device mps", "ok", "Apple GPU")


def _setup(loaded: LoadedConfig) -> Iterator[Finding]:
    config = loaded.config
    files = [name for name, _ in loaded.layers if name.endswith(".toml")]
    yield Finding("Setup", "config", "ok", ", ".join(files) or f"all defaults (no {config.home / 'wootz.toml'})")
    yield _home(config)
    yield _database(config)
    yield _port(config)
    for name, model in config.models.items():
        yield _model(config, name) if model.is_local else _remote(config, name)


def _home(config: Config) -> Finding:
    existing = next(folder for folder in (config.home, *config.home.parents) if folder.exists())
    free = f"{shutil.disk_usage(existing).free / 1e9:.1f} GB free"
    if not os.access(existing, os.W_OK):
        return Finding("Setup", "home", "broken", f"{config.home} can't be written", "choose another with --home")
    return Finding(
        "Setup", "home", "ok", f"{config.home}{'' if existing == config.home else ' (made on first start)'}, {free}"
    )


def _database(config: Config) -> Finding:
    import asyncio

    from sqlalchemy import text

    from wootz.store import Database

    async def ask() -> str:
        database = Database(config.database_url)
        try:
            async with database.session() as session:
                await session.execute(text("SELECT 1"))
            return database.dialect
        finally:
            await database.close()

    if config.database.url is None and not (config.home / "wootz.db").exists():
        return Finding("Setup", "database", "ok", f"SQLite in {config.home} (made on first start)")
    try:
        return Finding("Setup", "database", "ok", f"{asyncio.run(ask())} answers")
    except WootzError as error:
        return Finding("Setup", "database", "broken", str(error))


def _port(config: Config) -> Finding:
    server = config.server
    name = f"port {server.port}"
    with socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except OSError as error:
            hint = "a platform that runs already, or choose another with --port"
            return Finding("Setup", name, "missing", f"{server.host}: {error.strerror}", hint)
    return Finding("Setup", name, "ok", f"free on {server.host}")


def _model(config: Config, name: str) -> Finding:
    from wootz.store import ModelStore

    model = config.models[name]
    if model.path is not None:
        found = model.path.expanduser().exists()
        return Finding(
            "Setup", f"model {name}", "ok" if found else "broken", f"{model.path}{'' if found else ' is not there'}"
        )
    try:
        path = ModelStore(config.models_dir).path_of(name)
    except WootzError:
        hint = f"`wootz up` pulls it, or now: wootz pull {model.source} --name {name}"
        return Finding("Setup", f"model {name}", "missing", "not pulled yet", hint)
    return Finding("Setup", f"model {name}", "ok", str(path))


def _remote(config: Config, name: str) -> Finding:
    from wootz.providers.opening import endpoint_of

    try:
        endpoint = endpoint_of(config, name)
    except WootzError as error:
        return Finding("Setup", f"model {name}", "broken", str(error))
    return Finding("Setup", f"model {name}", "ok", f"remote, {endpoint.kind}, {endpoint.base_url}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo(*keys: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() in keys), "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instruction_sets() -> list[str]:
    flags = set(_cpuinfo("flags", "Features").split())
    return [name for name in INSTRUCTION_SETS.get(platform.machine(), ()) if name in flags]
