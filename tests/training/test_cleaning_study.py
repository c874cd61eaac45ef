"""The dirt that the studies of cleaning and pruning plant is what their steps find, and the studies run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wootz.data.build import build
from wootz.data.documents import Source
from wootz.data.recipe import recipe_of
from wootz.data.shards import read_all, shard_files
from wootz.training.recipe import Recipe
from wootz.training.studies.cleaning import SIZE, STEPS, WIKIPEDIA, cleaning_study, dirtied
from wootz.training.studies.positions import Size
from wootz.training.studies.pruning import BY_LOT, EVERYTHING, VARIANTS, pruning_studies
from wootz.training.studies.study import run_study

ROOT = Path(__file__).parents[2]


def paragraphs(count: int) -> list[str]:
    """Prose of this project's own pages, as it was once: what a step takes out must not move with them."""
    return Path(__file__).with_name("prose.txt").read_text().rstrip().split("\n\n")[:count]


def test_spark_and_the_study_read_the_same_file() -> None:
    (source,) = Recipe.load(ROOT / "recipes" / "spark.toml").data.recipe(0).sources
    assert replace(source, licence=None) == WIKIPEDIA


def test_each_step_takes_out_its_own_dirt(tmp_path: Path) -> None:
    clean = paragraphs(60)
    dirty = dirtied(clean, copied=3, copies=20, debris=0.25, seed=0)
    assert len(dirty) == 160
    (tmp_path / "dirty.txt").write_text("\n%\n".join(dirty))

    def left(variant: str) -> list[str]:
        source = {"name": "dirty", "path": "dirty.txt", "split": "%"}
        build(recipe_of({"source": [source], "step": STEPS[variant]}, tmp_path), tmp_path / variant)
        return [document.text for document in read_all(shard_files(tmp_path / variant / "documents"))]

    filtered, deduplicated, both = left("filtered"), left("deduplicated"), left("both")
    assert left("as it is") == dirty
    assert len(set(clean) - set(filtered)) <= 3  # Hardly any prose was taken,
    assert len(filtered) < 135  # and most of the 40 pieces of debris.
    assert len(deduplicated) <= 160 - 57  # One of each original and its copies, or two.
    assert len(both) == len(filtered) - (160 - len(deduplicated))


def test_the_study_runs(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n%\n".join(paragraphs(60)))
    source = Source(name="texts", path=str(tmp_path / "texts.txt"), split="%")
    study = cleaning_study(source, size=replace(SIZE, steps=4), documents=40, copied=2, copies=5, every=2)
    report = run_study(study, tmp_path / "out", [0])
    assert set(report["curves"]) == set(STEPS)
    assert all(set(curve) == {"2", "4"} for curve in report["curves"].values())


def test_pruned_parts_are_what_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n%\n".join(paragraphs(90)))
    source = Source(name="texts", path=str(tmp_path / "texts.txt"), split="%")
    tiny = Size(width=16, layers=1, heads=2, length=32, batch_size=8, steps=12)
    dirty, clean = pruning_studies(source, size=tiny, documents=40, keep=0.25, copied=2, copies=5, debris=0.5, every=6)
    report = run_study(dirty, tmp_path / "out", [0])
    assert set(report["curves"]) == set(VARIANTS)
    assert all(set(curve) == {"6", "12"} for curve in report["curves"].values())
    notes = {note["variant"]: note for note in report["notes"]}
    everything = notes.pop(EVERYTHING)
    assert (everything["documents"], everything["debris"]) == (100, 0.5)
    assert everything["copies"] == pytest.approx(0.1, abs=0.03)  # A copy may happen to change nothing.
    assert {note["documents"] for note in notes.values()} == {25}
    assert notes["lowest loss"]["loss"] < notes["middle"]["loss"] < notes["highest loss"]["loss"]
    assert notes["lowest loss"]["loss"] < notes[BY_LOT]["loss"] < notes["highest loss"]["loss"]
    assert clean.notes("highest loss", 0)["debris"] == clean.notes(EVERYTHING, 0)["copies"] == 0
