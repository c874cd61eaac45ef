"""`build`: a recipe carried out, shard by shard, by as many processes as there are; stopped anywhere, it goes on.

    OUT/documents/*.parquet      what is left: id, source, text, about (language, quality, licence)
    OUT/held_out/*.parquet       the share that is kept apart
    OUT/dropped/N-KIND/*.parquet what each step took out: id, source, reason, detail (not the text)
    OUT/learned/N-KIND/          classifiers that steps trained
    OUT/report.json              keep rates of every step, by source and reason; examples of what went

Between steps the corpus lies under ``OUT/work`` as shards. A shard that is there was written whole, so a second call
finds which are missing, and a step whose report is there is done. The text of only one shard per process is ever held;
of the whole corpus, a sketch at most (see `steps`).
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wootz.core.atomic import atomic_file
from wootz.core.errors import ConfigError
from wootz.core.progress import SILENT, Progress
from wootz.data.documents import Damage, Document, read_documents
from wootz.data.hashes import hash_text
from wootz.data.recipe import DataRecipe, PlannedStep
from wootz.data.shards import (
    batches_of,
    read_all,
    read_dropped,
    read_shard,
    shard_files,
    write_dropped,
    write_shard,
)
from wootz.data.steps import Dropped

EXAMPLES = 3
"""Of each reason, how many dropped texts are shown in the report, and how much of each."""
_EXAMPLE_CHARACTERS = 200


@dataclass
class Counts:
    documents: int = 0
    bytes: int = 0

    def add(self, documents: Sequence[Document]) -> None:
        self.documents += len(documents)
        self.bytes += sum(len(document.text.encode("utf-8", "replace")) for document in documents)


@dataclass
class StepReport:
    """What went into a step and came out of it. ``sources`` has in and out of each."""

    kind: str
    before: Counts = field(default_factory=Counts)
    after: Counts = field(default_factory=Counts)
    sources: dict[str, list[int]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def kept(self) -> float:
        """The share of bytes that is left."""
        return self.after.bytes / self.before.bytes if self.before.bytes else 1.0


@dataclass
class BuildReport:
    recipe: dict[str, Any]
    steps: list[StepReport] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    held_out: int = 0
    finished: bool = False
    tokenizing: dict[str, float] = field(default_factory=dict)
    """How much was tokenised, and how fast (`wootz.data.tokens.Throughput`)."""

    @staticmethod
    def read(folder: Path) -> BuildReport | None:
        file = folder / "report.json"
        if not file.exists():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        steps = [
            StepReport(**step | {"before": Counts(**step["before"]), "after": Counts(**step["after"])})
            for step in content["steps"]
        ]
        return BuildReport(**content | {"steps": steps})

    def write(self, folder: Path) -> None:
        with atomic_file(folder / "report.json") as file:
            file.write(json.dumps(asdict(self), indent=1, ensure_ascii=False).encode())


Mapper = Callable[..., Iterable[Any]]
"""As `map`: a function, and sequences of its arguments. Results come in order, and are asked for all at once."""


def build(
    recipe: DataRecipe, out: Path, *, workers: int = 1, mapper: Mapper | None = None, progress: Progress = SILENT
) -> BuildReport:
    """Carry out the steps; `tokens.tokenize` makes stores of the result. Shards are worked on by ``workers`` processes,
    or wherever ``mapper`` runs them (`on_ray.ray_map`), which must see the same files. Raises `ConfigError` when
    ``out`` was begun with another recipe."""
    settings = json.loads(json.dumps(recipe.settings()))
    report = BuildReport.read(out) or BuildReport(settings)
    if report.recipe != settings:
        raise ConfigError(f"{out}: was begun with another recipe", hint="choose another folder, or remove this one")
    if report.finished:
        return report
    out.mkdir(parents=True, exist_ok=True)
    folders = [out / "work" / f"{number}-{kind}" for number, kind in enumerate(("read", *_kinds(recipe)))]
    if not report.steps:
        report.steps.append(_read(recipe, folders[0], report, progress))
        report.write(out)
    workers = min(workers, len(shard_files(folders[len(report.steps) - 1])))
    with nullcontext(mapper) if mapper else _mapper(workers) as mapper:
        for number, planned in enumerate(recipe.steps, 1):
            if number < len(report.steps):
                continue
            report.steps.append(_Run(planned, folders[number - 1], folders[number], out, mapper, progress).run())
            report.write(out)
            shutil.rmtree(folders[number - 1])
    _finish(recipe, folders[-1], out, report)
    return report


def _kinds(recipe: DataRecipe) -> list[str]:
    return [planned.step.kind for planned in recipe.steps]


def _read(recipe: DataRecipe, folder: Path, report: BuildReport, progress: Progress) -> StepReport:
    """Raw files to shards. Those that are there already are read over, and not written again."""
    began, step, damage = time.monotonic(), StepReport("read"), Damage()
    progress.set_total(None)
    folder.mkdir(parents=True, exist_ok=True)
    for place, source in enumerate(recipe.sources):
        count = Counts()
        for number, documents in enumerate(batches_of(read_documents(source, damage))):
            file = folder / f"{place:03d}-{number:05d}.parquet"
            if not file.exists():
                write_shard(file, documents)
            count.add(documents)
            progress.advance(len(documents))
        step.sources[source.name] = [count.documents, count.documents]
        step.before.documents += count.documents
        step.before.bytes += count.bytes
    step.after, step.seconds = step.before, time.monotonic() - began
    report.damaged = damage.places
    return step


@dataclass
class _Run:
    """One step over all shards."""

    planned: PlannedStep
    before: Path
    after: Path
    out: Path
    mapper: Mapper
    progress: Progress

    def run(self) -> StepReport:
        began, step, files = time.monotonic(), self.planned.step, shard_files(self.before)
        learned, dropped = (self.out / name / self.after.name for name in ("learned", "dropped"))
        for folder in (self.after, dropped):
            folder.mkdir(parents=True, exist_ok=True)
        self.progress.set_total(len(files) * (2 if step.whole else 1))
        chosen = (document for document in read_all(files) if self.planned.concerns(document.source))
        step.prepare(chosen, learned)
        decisions: list[Path | None] = [None] * len(files)
        if step.whole:
            sketches = self._all(partial(_sketch, self.planned, self.after), files)
            decisions = [*self._decide(sketches)]
        reports = self._all(partial(_apply, self.planned, self.after, dropped), files, decisions)
        total = _sum(step.kind, reports)
        total.notes = step.notes(read_dropped(dropped))
        total.seconds = time.monotonic() - began
        for left in (*self.after.glob("*.npy"), *self.after.glob("*.json")):
            left.unlink()
        return total

    def _decide(self, sketches: list[Path]) -> Iterator[Path]:
        """Decisions are files too: of a large corpus they are sent to no process but the one that needs them."""
        files = [file.with_suffix(".decision.npy") for file in sketches]
        if not all(file.exists() for file in files):
            mapped = [np.load(file, mmap_mode="r") for file in sketches]
            for file, decision in zip(files, self.planned.step.decide(mapped), strict=True):
                _save(file, decision)
        yield from files

    def _all(self, function: Any, *arguments: Sequence[Any]) -> list[Any]:
        results = []
        for result in self.mapper(function, *arguments):
            results.append(result)
            self.progress.advance()
        return results


def _sketch(planned: PlannedStep, folder: Path, file: Path) -> Path:
    target = folder / f"{file.stem}.sketch.npy"
    if not target.exists():
        _save(target, planned.step.sketch([d for d in read_shard(file) if planned.concerns(d.source)]))
    return target


def _apply(planned: PlannedStep, after: Path, dropped: Path, file: Path, decision: Path | None) -> StepReport:
    """One shard: what is kept, what is dropped, and the counts of it, in this order, so that counts mean it is done."""
    counted = after / f"{file.stem}.json"
    if counted.exists():
        content = json.loads(counted.read_text())
        return StepReport(**content | {"before": Counts(**content["before"]), "after": Counts(**content["after"])})
    documents = read_shard(file)
    chosen = [document for document in documents if planned.concerns(document.source)]
    outcomes = planned.step.apply(chosen, None if decision is None else np.load(decision))
    kept: list[Document] = []
    gone: list[Dropped] = []
    for document in documents:
        outcome = next(outcomes) if planned.concerns(document.source) else document
        gone.append(outcome) if isinstance(outcome, Dropped) else kept.append(outcome)
    report = _counted(planned.step.kind, documents, kept, gone)
    write_shard(after / file.name, kept)
    write_dropped(dropped / file.name, gone)
    with atomic_file(counted) as target:
        target.write(json.dumps(asdict(report)).encode())
    return report


def _counted(kind: str, documents: Sequence[Document], kept: Sequence[Document], gone: Sequence[Dropped]) -> StepReport:
    report = StepReport(kind)
    report.before.add(documents)
    report.after.add(kept)
    before, after = (Counter(document.source for document in each) for each in (documents, kept))
    report.sources = {source: [before[source], after[source]] for source in sorted(before | after)}
    report.reasons = dict(Counter(outcome.reason for outcome in gone))
    for outcome in gone:
        examples = report.examples.setdefault(outcome.reason, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{outcome.document.id}: {outcome.document.text[:_EXAMPLE_CHARACTERS]}")
    return report


def _sum(kind: str, reports: Sequence[StepReport]) -> StepReport:
    total, sources, reasons = StepReport(kind), defaultdict(lambda: [0, 0]), Counter()
    for report in reports:
        for whole, part in ((total.before, report.before), (total.after, report.after)):
            whole.documents += part.documents
            whole.bytes += part.bytes
        for source, (before, after) in report.sources.items():
            sources[source][0] += before
            sources[source][1] += after
        reasons.update(report.reasons)
        for reason, examples in report.examples.items():
            known = total.examples.setdefault(reason, [])
            known += examples[: EXAMPLES - len(known)]
    total.sources, total.reasons = dict(sources), dict(reasons.most_common())
    return total


def _finish(recipe: DataRecipe, last: Path, out: Path, report: BuildReport) -> None:
    """The last step's shards become the result, less what is held out. A document is held out by its text alone, so
    that it stays so when the corpus grows."""
    for name in ("documents", "held_out"):
        (out / name).mkdir(exist_ok=True)
    report.held_out = 0
    limit = int(recipe.held_out * 2**64)
    for file in shard_files(last):
        documents = read_shard(file)
        apart = [document for document in documents if hash_text(document.text) < limit]
        if apart:
            documents = [document for document in documents if hash_text(document.text) >= limit]
            write_shard(out / "held_out" / file.name, apart)
        write_shard(out / "documents" / file.name, documents)
        report.held_out += len(apart)
    report.finished = True
    report.write(out)
    shutil.rmtree(out / "work")


def _save(file: Path, array: NDArray[Any]) -> None:
    with atomic_file(file) as target:
        np.save(target, array)


@contextmanager
def _mapper(workers: int) -> Iterator[Mapper]:
    """Processes of their own, since most of the work is Python; for one, the caller's does it."""
    if workers <= 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        yield pool.map
