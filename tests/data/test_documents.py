"""Readers: every kind of file, in order; damage is named, or left out and counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wootz.core.errors import BadRequestError, NotFoundError
from wootz.data.documents import Damage, Source, read_documents


def read(path: Path | str, **settings: object) -> list[str]:
    return [document.text for document in read_documents(Source(name="s", path=str(path), **settings))]  # type: ignore[arg-type]


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    rows = [{"text": "one\nline", "n": 1}, {"text": "zwei é"}]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    (tmp_path / "e.csv").write_text('text,n\n"one\nline",1\nzwei é,2\n')
    (tmp_path / "f.json").write_text(json.dumps({"first": rows[0], "second": rows[1]}))
    for file in sorted(tmp_path.iterdir()):
        assert read(file) == ["one\nline", "zwei é"], file
    assert read(tmp_path) == ["one\nline", "zwei é"] * 6
    assert read(f"{tmp_path}/*.c*") == ["one\nline", "zwei é"]
    assert read(f"{tmp_path}/a.jsonl", column="text") == ["one\nline", "zwei é"]
    ids = [document.id for document in read_documents(Source(name="s", path=str(tmp_path)))]
    assert len(set(ids)) == 12
    assert ids[0] == f"s:{tmp_path}/a.jsonl:0"


def test_a_text_is_a_document_or_is_split(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("a\nb\n\nc\n%\nd\n%\n%\ne")
    assert read(tmp_path) == ["a\nb\n\nc\n%\nd\n%\n%\ne"]
    assert read(tmp_path, split="%") == ["a\nb\n\nc", "d", "e"]
    assert read(tmp_path, split="") == ["a", "b", "c", "%", "d", "%", "%", "e"]


def test_rows_of_other_data_sets_are_read(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"content": "ho"}]}, {"prompt": "p", "answer": "a"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert read(tmp_path) == ["hi\nho", "p\na"]


def damaged(folder: Path) -> dict[str, str]:
    """Files, and what is said of each."""
    lines = [json.dumps({"text": f"row {n}" * 50}) for n in range(200)]
    (folder / "cut.jsonl").write_text("\n".join(lines)[:-10])
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode())[:-300])
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines]), folder / "cut.parquet")
    (folder / "cut.parquet").write_bytes((folder / "cut.parquet").read_bytes()[:-20])
    (folder / "odd.jsonl").write_text('{"text": "good"}\n{"txt": "bad"}\n{"text": "good"}')
    return {
        "cut.jsonl": "line 200 is not valid JSON",
        "cut.jsonl.gz": "ends too early",
        "cut.parquet": "cut.parquet: ",
        "odd.jsonl": "row 2 has no text, messages or prompt",
    }


def test_damage_ends_the_reading_with_file_and_row(tmp_path: Path) -> None:
    for name, said in damaged(tmp_path).items():
        with pytest.raises(BadRequestError, match=said) as error:
            read(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)


def test_damage_is_counted_and_left_where_that_is_wished(tmp_path: Path) -> None:
    damaged(tmp_path)
    damage = Damage()
    texts = [d.text for d in read_documents(Source(name="s", path=str(tmp_path), skip_damaged=True), damage)]
    assert len(damage.places) == 4
    assert texts.count("good") == 2
    assert 199 <= len([text for text in texts if text.startswith("row")]) < 400


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match='source "s": there is no file'):
        read(tmp_path / "*.jsonl")
