"""What a recipe does to documents: one class per kind of step, all of one shape, so that they run anywhere.

A corpus is shards of documents. A step that looks at documents one by one only has `Step.apply`. One that has to know
the whole corpus (what is a copy of what?) first reduces each shard to a *sketch*, a few bytes per document, which fits
in memory where the text would not; `decide` sees the sketches of all shards and gives each shard its decision; `apply`
then carries it out. `sketch` and `apply` are pure functions of one shard, which any number of processes or machines may
run (`build`, `on_ray`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wootz.core.errors import ConfigError
from wootz.data.decontamination import NGRAM, Decontaminator, Leak
from wootz.data.documents import Document, Source, read_documents
from wootz.data.filters import Heuristics, Languages, language
from wootz.data.hashes import first_occurrences, hash_text
from wootz.data.minhash import MinHash, near_duplicates
from wootz.data.quality import QualityClassifier, threshold


@dataclass(frozen=True)
class Dropped:
    """A document that a step takes out, and why; ``detail`` is in JSON's types."""

    document: Document
    reason: str
    detail: Any = None


Outcome = Document | Dropped


class Step:
    """Base of all steps. ``whole`` says that the corpus has to be sketched first."""

    kind: ClassVar[str]
    whole: ClassVar[bool] = False

    def prepare(self, documents: Iterator[Document], folder: Path) -> None:
        """Once, before all shards, with everything that the step will see. What takes long is kept in ``folder``."""

    def sketch(self, documents: Sequence[Document]) -> NDArray[Any]:
        """What `decide` needs of one shard."""
        raise NotImplementedError

    def decide(self, sketches: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Of the sketches of all shards, in order, one decision for each shard."""
        raise NotImplementedError

    def apply(self, documents: Sequence[Document], decision: NDArray[Any] | None) -> Iterator[Outcome]:
        """What becomes of each document of a shard, in order."""
        raise NotImplementedError

    def notes(self, dropped: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        """For the report, of the reasons and details of all that was dropped."""
        return {}


@dataclass(frozen=True)
class HeuristicStep(Step):
    kind: ClassVar[str] = "heuristics"
    rules: Heuristics

    def apply(self, documents: Sequence[Document], decision: NDArray[Any] | None) -> Iterator[Outcome]:
        for document in documents:
            reason = self.rules.reason_to_drop(document.text)
            yield document if reason is None else Dropped(document, reason)


@dataclass(frozen=True)
class LanguageStep(Step):
    kind: ClassVar[str] = "language"
    languages: Languages

    def apply(self, documents: Sequence[Document], decision: NDArray[Any] | None) -> Iterator[Outcome]:
        for document in documents:
            code, probability = language(document.text)
            if code not in self.languages.keep:
                yield Dropped(document, f"language {code}")
            elif probability < self.languages.min_probability:
                yield Dropped(document, "language unsure", round(probability, 3))
            else:
                source = f"{document.source}.{code}" if self.languages.split else document.source
                yield replace(document, source=source, about={**document.about, "language": code})


@dataclass(frozen=True)
class ExactStep(Step):
    """Of documents that are equal, white space at their ends aside, the first is kept."""

    kind: ClassVar[str] = "exact"
    whole: ClassVar[bool] = True

    def sketch(self, documents: Sequence[Document]) -> NDArray[Any]:
        return np.array([hash_text(document.text.strip()) for document in documents], np.uint64)

    def decide(self, sketches: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        return first_occurrences(sketches)

    def apply(self, documents: Sequence[Document], decision: NDArray[Any] | None) -> Iterator[Outcome]:
        assert decision is not None
        for document, first in zip(documents, decision, strict=True):
            yield document if first else Dropped(document, "copy")


@dataclass(frozen=True)
class LineStep(Step):
    """Of equal lines in the whole corpus the first is kept: menus, footers and notices go. Lines shorter than
    ``min_characters`` are left alone (closing braces, "Contents"). With ``paragraphs`` what stands between empty lines
    is compared instead. A document of which less than ``min_left`` remains goes as a whole."""

    kind: ClassVar[str] = "lines"
    whole: ClassVar[bool] = True
    min_characters: int = 30
    paragraphs: bool = False
    min_left: float = 0.2

    def sketch(self, documents: Sequence[Document]) -> NDArray[Any]:
        """A hash for each line, 0 for one that is too short."""
        lines = (line.strip() for document in documents for line in self._lines(document.text))
        return np.array([hash_text(line) if len(line) >= self.min_characters else 0 for line in lines], np.uint64)

    def decide(self, sketches: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        return first_occurrences(sketches)

    def apply(self, documents: Sequence[Document], decision: NDArray[Any] | None) -> Iterator[Outcome]:
        assert decision is not None
        place = 0
        for document in documents:
            lines = self._lines(document.text)
            kept = [line for line, first in zip(lines, decision[place : place + len(lines)], strict=True) if first]
            place += len(lines)
            if len(kept) == len(lines):
                yield document
                continue
            text = self._separator.join(kept)
            if not text.strip() or len(text) < self.min_left * len(document.text):
                yield Dropped(document, f"repeated {'paragraphs' if self.paragraphs else 'lines'}")
            else:
                yield replace(document, text=text)

    @property
    def _separator(self) -> str:
        return "\n\n" if self.paragraphs else "\n"

    def _lines(self, text: str) -> list[str]:
        return text.split(self._separator)


@dataclass(frozen=True)
class NearStep(Step):
    """Of documents that are nearly equal the first is kept (`minhash`)."""

    kind: ClassVar[str] = "near"
    whole: ClassVar[bool] = True
    jaccard: float = 0.7
    permutations: int = 128
    ngram: int = 5
    seed: int = 0

    @property
    def minhash(self) -> MinHash:
        return MinHash.at(self.jaccard, self.permutations, ngram=self.ngram, seed=self.seed)

    def sketch(self, documents: Sequence[Document]) -> NDArray[Any]:
        return self.minhash.band_hashes([document.text for document in documents])

    def decide(self, sketches: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The number of the document in whose stead each stands: its own for one that is kept."""
        sizes = [len(sketch) for sketch in sketches]
        bands = (np.concatenate([sketch[:, band] for sketch in sketches]) for band in range(self.minhash.bands.num))
        roots = near_duplicates(bands, sum(sizes))
        return np.split(roots == np.arange(len(roots)), [*accumulate(sizes)][:-1])

    def apply(self, documents: Sequence[Document], decision: NDArray[Any] | None) -> Iterator[Outcome]:
        assert decision is not None
        for document, kept in zip(documents, decision, strict=True):
            yield document if kept else Dropped(document, "near copy")


@dataclass
class QualityStep(Step):
    """Keeps the best ``keep`` of each source by a `QualityClassifier`: one that is given, or one trained to tell
    ``good`` texts from a sample of the corpus."""

    kind: ClassVar[str] = "quality"
    whole: ClassVar[bool] = True
    keep: float = 0.1
    good: tuple[str, ...] = ()
    model: str | None = None
    sample: int = 2000
    """Texts of each kind that are trained on."""
    seed: int = 0

    def __post_init__(self) -> None:
        self.classifier: QualityClassifier | None = None
        if bool(self.good) == bool(self.model):
            raise ConfigError("a quality step needs either good = [reference texts] or model = a classifier's file")

    def prepare(self, documents: Iterator[Document], folder: Path) -> None:
        file = Path(self.model) if self.model else folder / "quality.npz"
        if self.model or file.exists():
            self.classifier = QualityClassifier.load(file)
            return
        good = (document.text for path in self.good for document in read_documents(Source(name="good", path=path)))
        other = _sample((document.text for document in documents), self.sample, self.seed)
        self.classifier = QualityClassifier.fit(_sample(good, self.sample, self.seed), other, seed=self.seed)
        folder.mkdir(parents=True, exist_ok=True)
        self.classifier.save(file)

    def sketch(self, documents: Sequence[Document]) -> NDArray[Any]:
        """Score and source ``(documents, 2)``, the source as a hash that a float holds exactly."""
        assert self.classifier is not None
        scores = self.classifier.scores([document.text for document in documents])
        return np.stack([scores, [float(hash_text(document.source) >> 16) for document in documents]], axis=1)

    def decide(self, sketches: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Score, and whether it suffices, of each document."""
        scores, sources = np.concatenate(sketches).T if sketches else (np.empty(0), np.empty(0))
        passed = np.zeros(len(scores), bool)
        for source in np.unique(sources):
            of_it = sources == source
            passed[of_it] = scores[of_it] >= threshold(scores[of_it], self.keep)
        together = np.stack([scores, passed], axis=1)
        return np.split(together, [*accumulate(len(sketch) for sketch in sketches)][:-1])

    def apply(self, documents: Sequence[Document], decision: NDArray[Any] | None) -> Iterator[Outcome]:
        assert decision is not None
        for document, (score, passed) in zip(documents, decision, strict=True):
            rated = replace(document, about={**document.about, "quality": round(float(score), 4)})
            yield rated if passed else Dropped(rated, "quality", rated.about["quality"])


@dataclass
class DecontaminationStep(Step):
    """Drops documents that quote an eval set (`decontamination`)."""

    kind: ClassVar[str] = "decontaminate"
    against: tuple[str, ...]
    ngram: int = NGRAM

    def __post_init__(self) -> None:
        self.decontaminator: Decontaminator | None = None

    def prepare(self, documents: Iterator[Document], folder: Path) -> None:
        self.decontaminator = Decontaminator.against(self.against, self.ngram)

    def apply(self, documents: Sequence[Document], decision: NDArray[Any] | None) -> Iterator[Outcome]:
        assert self.decontaminator is not None
        for document, leaks in zip(
            documents, self.decontaminator.leaks([document.text for document in documents]), strict=True
        ):
            if leaks:
                names = ", ".join(sorted({leak.benchmark for leak in leaks}))
                yield Dropped(document, f"quotes {names}", [[leak.benchmark, leak.item] for leak in leaks])
            else:
                yield document

    def notes(self, dropped: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        assert self.decontaminator is not None
        report = self.decontaminator.report([Leak(*leak) for leak in detail] for _, detail in dropped)
        return {"benchmarks": {name: vars(found) for name, found in report.items()}}


def _sample(texts: Iterator[str], size: int, seed: int) -> list[str]:
    """``size`` of them by lot, each as likely as any other, without holding more (reservoir sampling)."""
    chosen, lot = [*islice(texts, size)], random.Random(seed)
    for number, text in enumerate(texts, len(chosen)):
        if (place := lot.randrange(number + 1)) < size:
            chosen[place] = text
    return chosen
