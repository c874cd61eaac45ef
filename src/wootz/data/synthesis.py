"""`synthesize`: texts that models write, in a folder, however often the writing is stopped.

    plan.json        what was asked for, and of whom: another plan needs another folder
    texts.jsonl      a kept text a line, with its number, teacher, topic and prompt; a source for `wootz data build`
    left_out.jsonl   the other answers, with the reason

Every prompt has a number, and its answer becomes one line in one of the two files, on the disk before the next. What is
not there is asked for again, so a kill at any moment costs the answers that were under way and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wootz.core.atomic import atomic_file
from wootz.core.errors import ConfigError
from wootz.core.progress import SILENT, Progress
from wootz.core.protocol import LanguageModel
from wootz.data.synthetic import Answer, Generation, generate

TEXTS, LEFT_OUT, PLAN = "texts.jsonl", "left_out.jsonl", "plan.json"
_HOW = ("concurrency", "waits")
"""Of a plan, what may be another when it is gone on with."""


@dataclass
class Synthesis:
    """What is in such a folder."""

    kept: int = 0
    words: int = 0
    """Of the texts that were kept."""
    left_out: dict[str, int] = field(default_factory=dict)
    by_teacher: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def asked(self) -> int:
        return self.kept + sum(self.left_out.values())

    def add(self, row: dict[str, Any]) -> None:
        self.prompt_tokens += row["prompt_tokens"]
        self.completion_tokens += row["completion_tokens"]
        if "left_out" in row:
            self.left_out[row["left_out"]] = self.left_out.get(row["left_out"], 0) + 1
            return
        self.kept += 1
        self.words += len(row["text"].split())
        self.by_teacher[row["teacher"]] = self.by_teacher.get(row["teacher"], 0) + 1


async def synthesize(
    teachers: Sequence[LanguageModel], plan: Generation, folder: Path, progress: Progress = SILENT
) -> Synthesis:
    """Ask for all that is not in ``folder`` yet. Raises `ConfigError` if it was begun with another plan."""
    begin(folder, plan, [teacher.name for teacher in teachers])
    rows = [*_whole_lines(folder / TEXTS), *_whole_lines(folder / LEFT_OUT)]
    found = Synthesis()
    for row in rows:
        found.add(row)
    done = {row["number"] for row in rows}
    kept = [row["text"] for row in sorted(rows, key=lambda row: row["number"]) if "left_out" not in row]
    progress.set_total(plan.num_texts, done=len(done))
    numbers = (number for number in range(plan.num_texts) if number not in done)
    async with aclosing(generate(teachers, plan, numbers=numbers, kept=kept)) as answers:
        async for answer in answers:
            row = row_of(answer)
            with (folder / (LEFT_OUT if answer.left_out else TEXTS)).open("ab") as file:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            found.add(row)
            progress.advance()
    return found


def row_of(answer: Answer) -> dict[str, Any]:
    document = answer.document
    row = {"number": answer.number, "id": document.id, "text": document.text, **document.about}
    if answer.left_out:
        row["left_out"] = answer.left_out
    return row | {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}


def begin(folder: Path, plan: Generation, teachers: Sequence[str]) -> None:
    """Make the folder, or see that it is this plan's."""
    asked = {name: value for name, value in asdict(plan).items() if name not in _HOW}
    wanted = json.loads(json.dumps(asked | {"teachers": list(teachers)}))
    file = folder / PLAN
    if file.exists():
        before = json.loads(file.read_text())
        if changed := sorted(name for name in wanted if before.get(name) != wanted[name] and name != "num_texts"):
            raise ConfigError(
                f"{folder}: was begun with other settings ({', '.join(changed)})", hint="choose another --out"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty", hint="choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as out:
        out.write(json.dumps(wanted, indent=2, ensure_ascii=False).encode())


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """What was written to its end. A last line that a kill cut off is taken away, for the next to begin at a margin."""
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))
    return [json.loads(line) for line in whole.splitlines()]
