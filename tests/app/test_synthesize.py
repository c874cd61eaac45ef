"""`wootz data synthesize` against a real endpoint: what a kill leaves, the next start goes on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from wootz.data.documents import Source, read_documents

NUM = 24


def begun(platform, folder: Path, out: str, *more: str) -> subprocess.Popen[str]:
    (folder / "topics.txt").write_text("rivers\nsteel\n\nbread\n")
    command = [
        sys.executable, "-m", "wootz", "data", "synthesize", "-o", str(folder / out), "--topics",
        str(folder / "topics.txt"), "--base-url", f"{platform.url}/v1", "--model", "tiny", "--key-env", "TEACHERS_KEY",
        "--texts", str(NUM), "--max-tokens", "200", "--min-words", "2", "--concurrency", "3", *more,
    ]  # fmt: skip
    environment = os.environ | {"TEACHERS_KEY": platform.key}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    files = (folder / "texts.jsonl", folder / "left_out.jsonl")
    return {f.stem: [json.loads(line) for line in f.read_text().splitlines()] if f.exists() else [] for f in files}


def lines(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("*.jsonl"))


@pytest.mark.slow
def test_killed_and_begun_again_every_text_is_asked_for_once(platform, tmp_path: Path) -> None:
    out = tmp_path / "made"
    for wanted in (4, 11):
        process = begun(platform, tmp_path, "made")
        while lines(out) < wanted:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert wanted <= lines(out) < NUM
    with (out / "texts.jsonl").open("a") as file:
        file.write('{"number": 23, "text": "cut o')  # as a kill in the middle of a line would leave it
    human = tmp_path / "human.txt"
    human.write_text("People wrote this. " * 10)
    process = begun(platform, tmp_path, "made", "--price", "1,4", "--beside", str(human), "--json")
    said, told = process.communicate()
    assert process.returncode == 0, told
    found = rows(out)
    everything = [row for part in found.values() for row in part]
    assert sorted(row["number"] for row in everything) == list(range(NUM))
    assert [row["topic"] for row in sorted(everything, key=lambda row: row["number"])] == [
        "rivers",
        "steel",
        "bread",
    ] * 8
    assert found["texts"]
    assert all(row["synthetic"] and row["teacher"] == "tiny" and row["prompt"] for row in everything)
    assert {row["left_out"] for row in found["left_out"]} <= {"cut off", "too short", "near copy"}
    report = json.loads(said)
    assert report["kept"] == len(found["texts"])
    assert report["left_out"] == Counter(row["left_out"] for row in found["left_out"])
    assert report["completion_tokens"] == sum(row["completion_tokens"] for row in everything)
    assert "24 texts on 3 topics by 1 teacher: at most 4.8K tokens written" in told
    assert "At most $0.02 at $1 and $4 per million" in told
    assert "people wrote only" in report["warning"]
    documents = list(read_documents(Source(name="made", path=str(out / "texts.jsonl"), synthetic=True)))
    assert [document.text for document in documents] == [row["text"] for row in found["texts"]]
    prompts = len(platform.ledger("model = 'tiny'"))
    process = begun(platform, tmp_path, "made")
    assert "kept, by tiny" in process.communicate()[0]
    assert len(platform.ledger("model = 'tiny'")) == prompts  # nothing was left to ask
