"""What we write as GGUF is what the `gguf` package reads, and what it splits is what we read."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wootz.core import ConfigError, ModelFileError
from wootz.core.gguf import GGML_TYPES, GGUFFile
from wootz.core.gguf_writer import TensorSource, write_gguf

FLOATS = st.floats(width=32, allow_nan=False)
INTEGERS = st.integers(-(2**63), 2**64 - 1)
TEXT = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.one_of(
    st.booleans(),
    INTEGERS,
    FLOATS,
    TEXT,
    st.lists(st.booleans(), min_size=1),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(FLOATS, min_size=1),
    st.lists(TEXT, min_size=1),
    st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1),
)
METADATA = st.dictionaries(st.from_regex(r"[a-z_]{1,8}(\.[a-z_]{1,8}){1,2}", fullmatch=True), VALUES, max_size=8)


def a_tensor(type_name: str, shape: tuple[int, ...], seed: int = 0) -> tuple[TensorSource, bytes]:
    _, weights, num_bytes = next(size for size in GGML_TYPES.values() if size[0] == type_name)
    data = np.random.default_rng(seed).bytes(int(np.prod(shape)) // weights * num_bytes)
    return TensorSource(shape, type_name, lambda: data), data


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(METADATA)
def test_metadata_reads_back_equal(tmp_path: Path, metadata: dict) -> None:
    tensor, data = a_tensor("F32", (2, 3))
    write_gguf(tmp_path / "a.gguf", metadata, {"x": tensor})
    ours = GGUFFile(tmp_path / "a.gguf")
    assert ours.metadata == metadata
    assert bytes(ours.bytes_of("x")) == data


@pytest.mark.parametrize("alignment", [32, 64])
def test_the_gguf_package_reads_what_we_write(tmp_path: Path, alignment: int) -> None:
    metadata = {
        "general.architecture": "llama",
        "general.alignment": alignment,
        "llama.block_count": 2,
        "llama.rope.freq_base": 10_000.0,
        "tokenizer.ggml.tokens": ["a", "ü", "▁"],
        "tokenizer.ggml.token_type": [1, 3, 6],
        "tokenizer.ggml.scores": [0.0, -1.5, -2.0],
        "tokenizer.ggml.add_bos_token": False,
    }
    made = {
        "norm": a_tensor("F32", (3,)),
        "cube": a_tensor("F16", (2, 3, 4)),
        **{name: a_tensor(name, (3, 512)) for name, _, _ in GGML_TYPES.values()},
    }
    write_gguf(tmp_path / "a.gguf", metadata, {name: tensor for name, (tensor, _) in made.items()})
    theirs = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert fields == metadata
    assert theirs.fields["llama.block_count"].types == [gguf.GGUFValueType.UINT32]
    assert theirs.fields["tokenizer.ggml.token_type"].types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
    assert [tensor.name for tensor in theirs.tensors] == list(made)
    for tensor in theirs.tensors:
        source, data = made[tensor.name]
        assert tuple(tensor.shape[::-1].tolist()) == source.shape
        assert tensor.tensor_type.name == source.type
        assert tensor.data_offset % alignment == 0
        assert tensor.data.tobytes() == data


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    good, _ = a_tensor("F32", (2, 3))
    write_gguf(file, {"a.b": 1}, {"x": good})
    before = file.read_bytes()

    def fails() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(file, {"a.b": 2}, {"x": good, "y": TensorSource((2, 3), "F32", fails)})
    with pytest.raises(ValueError, match='"y" gave 4 bytes'):
        write_gguf(file, {"a.b": 2}, {"x": good, "y": TensorSource((2, 3), "F32", lambda: b"four")})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write_gguf(tmp_path / "no" / "such" / "folder.gguf", {}, {})
    with pytest.raises(ValueError, match="blocks of 256"):
        write_gguf(tmp_path / "a.gguf", {}, {"x": TensorSource((2, 128), "Q4_K", bytes)})
    with pytest.raises(TypeError, match="cannot hold"):
        write_gguf(tmp_path / "a.gguf", {"a.b": [1, "x"]}, {})
    assert list(tmp_path.iterdir()) == []


def split_by_the_gguf_package(folder: Path) -> Path:
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=2)
    for n in range(5):
        writer.add_tensor(f"t{n}", np.full((2, 4), n, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m-00001-of-00003.gguf"


def test_a_split_model_opens_as_a_whole(tmp_path: Path) -> None:
    file = GGUFFile(split_by_the_gguf_package(tmp_path))
    assert file.metadata["general.architecture"] == "llama"
    assert not any(key.startswith("split.") for key in file.metadata)
    values = {name: set(memoryview(file.bytes_of(name)).cast("f")) for name in file.tensors}
    assert values == {f"t{n}": {float(n)} for n in range(5)}


def test_a_split_model_with_a_part_missing_or_misnamed_is_refused(tmp_path: Path) -> None:
    first = split_by_the_gguf_package(tmp_path)
    second = tmp_path / "m-00002-of-00003.gguf"
    with pytest.raises(ModelFileError, match=r"give its first part, m-00001-of-00003\.gguf"):
        GGUFFile(second)
    second.unlink()
    with pytest.raises(ModelFileError, match=r"m-00002-of-00003\.gguf: this part of a split GGUF is missing"):
        GGUFFile(first)
    with pytest.raises(ModelFileError, match="not named like one"):
        GGUFFile(first.rename(tmp_path / "m.gguf"))
