"""The pipeline: what is planted goes and the rest stays, counted; stopped anywhere it ends in the same files."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wootz.data.build as build_module
from wootz.core.errors import BadRequestError, ConfigError, NotFoundError
from wootz.data import shards
from wootz.data.build import BuildReport, build
from wootz.data.documents import Document
from wootz.data.hashes import first_occurrences
from wootz.data.recipe import DataRecipe, load_recipe, recipe_of
from wootz.data.shards import read_all, shard_files
from wootz.data.steps import Dropped, LineStep
from wootz.data.tokens import open_stores, tokenize, tokenizer_for, weights_of
from wootz.tokenization import load_tokenizer

LOT = random.Random(0)
VOCABULARY = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("n", "r", "st", "la", "mo", "tik")]
NOTICE = "All rights reserved by the owners of this site, whoever they are."


def prose(num_words: int) -> str:
    words = [LOT.choice(VOCABULARY) for _ in range(num_words)]
    words[::9] = [LOT.choice(["the", "of", "and", "with"]) for _ in words[::9]]
    return " ".join(words)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Rows by the reason for which they are to go; those of "" are to stay. And the recipe."""
    folder = tmp_path_factory.mktemp("corpus")
    exam = prose(20)
    good = [prose(100) for _ in range(40)]
    near = good[7].replace(good[7].split()[50], "changed", 1)
    rows = [(text, "") for text in good]
    rows += [(good[3] + " \n", "copy"), (near.upper(), "near copy"), (prose(9), "too short")]
    rows += [
        (f"{prose(80)}\n{NOTICE}", ""),
        (f"{prose(80)}\n{NOTICE}", ""),
        (f"{prose(60)} {exam} {prose(9)}", "quotes exam"),
    ]
    head, tail = rows[:20], rows[20:]
    LOT.shuffle(tail)
    for name, part in (("web", head), ("wiki", tail)):
        lines = [json.dumps({"text": text}) for text, _ in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "exam.json").write_text(json.dumps([{"question": exam}]))
    (folder / "code.jsonl").write_text(json.dumps({"text": "x = 1"}))
    (folder / "recipe.toml").write_text(
        """
        seed = 1
        held_out = 0.2
        source = [
          { name = "web", path = "web.jsonl", weight = 3, licence = "CC0" },
          { name = "wiki", path = "wiki.jsonl" },
          { name = "code", path = "code.jsonl" },
        ]
        step = [
          { kind = "exact" },
          { kind = "heuristics", sources = ["web", "wiki"], min_words = 30 },
          { kind = "lines" },
          { kind = "near", jaccard = 0.7 },
          { kind = "decontaminate", against = ["exam.json"] },
        ]
        [tokens]
        vocab_size = 300
        """
    )
    return folder, dict(rows)


@pytest.fixture(scope="module")
def recipe(corpus: tuple[Path, dict[str, str]]) -> DataRecipe:
    return load_recipe(corpus[0] / "recipe.toml")


@pytest.fixture(autouse=True, scope="module")
def small_shards() -> Iterator[None]:
    whole = shards.batches_of.__defaults__
    shards.batches_of.__defaults__ = (4000,)
    yield
    shards.batches_of.__defaults__ = whole


@pytest.fixture(scope="module")
def built(recipe: DataRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    build(recipe, out)
    return out


def contents(out: Path) -> dict[str, list[Document]]:
    return {name: [*read_all(shard_files(out / name))] for name in ("documents", "held_out")}


def test_what_is_planted_goes_and_the_rest_stays(
    recipe: DataRecipe, corpus: tuple[Path, dict[str, str]], built: Path
) -> None:
    report, texts = build(recipe, built), corpus[1]
    kept = [document.text for part in contents(built).values() for document in part]
    notices = [text for text in texts if NOTICE in text]
    expected = [text for text, reason in texts.items() if not reason and NOTICE not in text]
    assert sum(NOTICE in text for text in kept) == 1
    assert sorted(text.removesuffix(f"\n{NOTICE}") for text in kept) == sorted(
        [*expected, "x = 1", *(text.removesuffix(f"\n{NOTICE}") for text in notices)]
    )
    reasons = {reason: count for step in report.steps for reason, count in step.reasons.items()}
    assert reasons == {"copy": 1, "near copy": 1, "too short": 1, "quotes exam": 1}
    assert report.steps[-1].notes == {
        "benchmarks": {"exam": {"items": 1, "searchable": 1, "leaked": 1, "documents": 1}}
    }
    assert [step.before.documents for step in report.steps] == [47, 47, 46, 45, 45, 44]
    for before, after in zip(report.steps, report.steps[1:], strict=False):
        assert before.after == after.before
    assert report.steps[0].sources == {"web": [20, 20], "wiki": [26, 26], "code": [1, 1]}
    assert 0 < report.held_out == len(contents(built)["held_out"]) < 20
    assert contents(built)["documents"][0].about == {"licence": "CC0"}
    dropped = [pq.read_table(file).to_pylist() for file in sorted((built / "dropped").rglob("*.parquet"))]
    assert sorted(row["reason"] for rows in dropped for row in rows) == sorted(reasons)
    assert not (built / "work").exists()


class Stopped(BaseException):
    """What Ctrl-C and a kill are to the program."""


def test_stopped_anywhere_it_ends_in_the_same_files(
    recipe: DataRecipe, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every so many writes of a file the build is killed before or after it; it begins again until it is done."""
    whole, lot, runs = build_module.atomic_file, random.Random(4), 0

    def failing(path: Path) -> object:
        if lot.random() < 0.04:
            raise Stopped
        return whole(path)

    monkeypatch.setattr(build_module, "atomic_file", failing)
    monkeypatch.setattr(shards, "atomic_file", failing)
    while True:
        runs += 1
        try:
            report = build(recipe, tmp_path)
            break
        except Stopped:
            continue
    assert runs > 4
    assert contents(tmp_path) == contents(built)
    straight = build(recipe, built)
    for one, other in zip(report.steps, straight.steps, strict=True):
        assert {**vars(one), "seconds": 0} == {**vars(other), "seconds": 0}


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same(recipe: DataRecipe, built: Path, tmp_path: Path) -> None:
    build(recipe, tmp_path, workers=2)
    assert contents(tmp_path) == contents(built)


def test_tokens_are_the_documents(recipe: DataRecipe, built: Path) -> None:
    assert recipe.tokens is not None
    tokenizer = tokenizer_for(built, recipe.tokens)
    made = tokenize(built, tokenizer)
    assert tokenizer.vocab_size == load_tokenizer(built / "tokenizer").vocab_size == 300
    total = 0
    for part, folder in (("documents", "tokens"), ("held_out", "held_out_tokens")):
        stores, documents = open_stores(built / folder, verify=True), contents(built)[part]
        for source, store in stores.items():
            texts = [document.text for document in documents if document.source == source]
            assert [tokenizer.decode(store.document(n)) for n in range(store.num_documents)] == texts
            ends = [store.document(n)[[0, -1]] for n in range(store.num_documents)]
            assert all(id in tokenizer.eos_token_ids for pair in ends for id in pair.tolist())
            assert store.index.about["name"] == source
            total += store.num_tokens
    assert sum(made.tokens.values()) == total
    assert tokenize(built, tokenizer) == made
    told = BuildReport.read(built).tokenizing  # type: ignore[union-attr]
    assert (told["tokens"], told["documents"]) == (total, sum(made.documents.values()))
    assert told["tokens_per_second"] == pytest.approx(total / told["seconds"])
    assert told["megabytes_per_second"] == pytest.approx(total * made.bytes_per_token / 1e6 / told["seconds"])
    stores = open_stores(built / "tokens")
    assert weights_of(built, stores) == {"code": 1.0, "web": 3.0, "wiki": 1.0}


def test_a_control_token_in_a_text_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before <|endoftext|> after")
    out = tmp_path / "out"
    built = recipe_of({"source": [{"name": "a", "path": "a.txt"}], "tokens": {"vocab_size": 280}}, tmp_path)
    build(built, out)
    assert built.tokens is not None
    tokenizer = tokenizer_for(out, built.tokens)
    tokenize(out, tokenizer)
    ids = open_stores(out / "tokens")["a"].document(0).tolist()
    assert [place for place, id in enumerate(ids) if id in tokenizer.control_ids] == [0, len(ids) - 1]
    assert tokenizer.decode(ids) == "before <|endoftext|> after"


def test_languages_become_sources_and_quality_is_kept_in_each(tmp_path: Path) -> None:
    lines = {
        "de": "Der Hund und die Katze gehen mit dem Mann über die Straße, weil es {} regnet.",
        "en": "The dog and the cat walk over the street with the man, because it rains {} today.",
        "fr": "Le chien et le chat marchent avec l'homme dans la rue, parce qu'il pleut {} encore.",
    }
    (tmp_path / "web.txt").write_text("\n".join(text.format(n) for n in range(10) for text in lines.values()))
    (tmp_path / "good.txt").write_text("\n".join(f"{n} regnet rains" for n in range(3)))
    out, steps = (
        tmp_path / "out",
        [
            {"kind": "language", "keep": ["de", "en"], "split": True},
            {"kind": "quality", "keep": 0.5, "good": ["good.txt"]},
        ],
    )
    recipe = recipe_of(
        {"source": [{"name": "web", "path": "web.txt", "split": ""}], "step": steps, "tokens": {"tokenizer": "bytes"}},
        tmp_path,
    )
    report = build(recipe, out)
    assert report.steps[1].sources == {"web": [30, 0], "web.de": [0, 10], "web.en": [0, 10]}
    assert {source: counts[1] for source, counts in report.steps[2].sources.items()} == {"web.de": 5, "web.en": 5}
    about = contents(out)["documents"][0].about
    assert about["language"] in ("de", "en")
    assert 0 <= about["quality"] <= 1
    assert recipe.tokens is not None
    tokenize(out, tokenizer_for(out, recipe.tokens))
    weights = weights_of(out, open_stores(out / "tokens"))
    assert set(weights) == {"web.de", "web.en"}
    assert sum(weights.values()) == pytest.approx(1)


def test_another_recipe_is_refused_and_damage_is_named(recipe: DataRecipe, built: Path, tmp_path: Path) -> None:
    other = recipe_of({"source": [{"name": "a", "path": "a.jsonl"}]}, tmp_path)
    with pytest.raises(ConfigError, match="begun with another recipe"):
        build(other, built)
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"te')
    with pytest.raises(BadRequestError, match=r"a\.jsonl: line 2 is not valid JSON"):
        build(other, tmp_path / "out")
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": "mended"}')
    assert build(other, tmp_path / "out").steps[-1].after.documents == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "needs sources"),
        ("sauce = 1", "there is no key sauce"),
        ("source = [", "is not TOML"),
        ('source = [{ name = "a" }]', "source 1: path: field required"),
        ('source = [{ name = "a", path = "x", colour = 1 }]', "source 1: there is no key colour"),
        ('source = [{ name = "a", path = "x" }, { name = "a", path = "y" }]', "a name of its own"),
        ('source = [{ name = "a", path = "x" }]\nstep = [{ kind = "magic" }]', "'magic' is no kind of step"),
        (
            'source = [{ name = "a", path = "x" }]\nstep = [{ kind = "near", jaccard = "x" }]',
            "jaccard: input should be",
        ),
        ('source = [{ name = "a", path = "x" }]\nstep = [{ kind = "exact", sources = ["b"] }]', "no source b"),
        ('source = [{ name = "a", path = "x" }]\nstep = [{ kind = "quality" }]', "needs either good"),
        ('source = [{ name = "a", path = "x" }]\n[tokens]', "either tokenizer or vocab_size"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "r.toml").write_text(content)
    with pytest.raises(ConfigError, match=said) as error:
        load_recipe(tmp_path / "r.toml")
    assert "r.toml" in str(error.value)
    with pytest.raises(NotFoundError):
        load_recipe(tmp_path / "none.toml")


@given(parts=st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=5), at_once=st.integers(1, 9))
@settings(deadline=None)
def test_first_occurrences_are_first(parts: list[list[int]], at_once: int) -> None:
    found = first_occurrences([np.array(part, np.uint64) for part in parts], at_once)
    seen: set[int] = set()
    for part, flags in zip(parts, found, strict=True):
        for number, flag in zip(part, flags, strict=True):
            assert flag == (number == 0 or number not in seen)
            seen.add(number)


@given(texts=st.lists(st.text(st.sampled_from("ab\n"), max_size=12), max_size=6))
@settings(deadline=None)
def test_each_line_is_kept_once(texts: list[str]) -> None:
    """Against a set of lines, seen in order."""
    step = LineStep(min_characters=2, min_left=0)
    documents = [Document(str(n), "s", text) for n, text in enumerate(texts)]
    outcomes = step.apply(documents, step.decide([step.sketch(documents)])[0])
    seen: set[str] = set()
    for text, outcome in zip(texts, outcomes, strict=True):
        kept = []
        for line in text.split("\n"):
            if len(line.strip()) < 2 or line.strip() not in seen:
                kept.append(line)
            seen.add(line.strip())
        if isinstance(outcome, Dropped):
            assert not "\n".join(kept).strip()
        else:
            assert outcome.text == "\n".join(kept)


@pytest.mark.slow
def test_as_ray_data_transforms_it_gives_the_same(recipe: DataRecipe, built: Path, tmp_path: Path) -> None:
    """On a local Ray cluster with two workers."""
    import ray

    from wootz.data.on_ray import ray_map

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        report = build(recipe, tmp_path, mapper=ray_map)
    finally:
        ray.shutdown()
    assert contents(tmp_path) == contents(built)
    assert [step.reasons for step in report.steps] == [step.reasons for step in build(recipe, built).steps]
