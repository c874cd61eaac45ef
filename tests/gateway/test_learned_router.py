"""The learned router: the classifier against scikit-learn's, the curve against counting, and the commands."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_house import question
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from wootz.cli.main import app
from wootz.core import BadRequestError, ConfigError, LanguageModel, UnavailableError
from wootz.core.wire import Embedding, EmbeddingRequest, EmbeddingResponse, Usage
from wootz.gateway.routing.candidate import Candidate
from wootz.gateway.routing.features import terms
from wootz.gateway.routing.policies.learned import Router, learned, look_of
from wootz.gateway.routing.training import RARE, Preference, cross_scores, curve, read_preferences, train, vectors_of

EASY = ["say hello to {}", "what is the capital of {}", "translate {} into French", "thank you {}", "define {} briefly"]
HARD = ["prove that {} is irrational", "find the bug in this {} code ```x = 1```", "derive the {} theorem step by step"]
THINGS = ["Spain", "water", "primes", "the parser", "entropy", "logarithms", "Paris", "a queue", "light", "matrices"]


def preferences(count: int = 240, noise: float = 0.1, seed: int = 0) -> list[Preference]:
    """Hard prompts, which only the dear model answers well, and easy ones; some labels are wrong."""
    random = Random(seed)
    rows = []
    for _ in range(count):
        hard = random.random() < 0.4
        prompt = random.choice(HARD if hard else EASY).format(random.choice(THINGS))
        wins = hard != (random.random() < noise)
        rows.append(Preference(prompt=prompt, winner="dear" if wins else random.choice(["tie", "tie", "cheap"])))
    return rows


def test_the_classifier_is_scikit_learns() -> None:
    rows = preferences()
    ours = train(rows)

    def analyse(prompt: str) -> list[str]:
        return list(terms(prompt).elements())

    vectorizer = TfidfVectorizer(analyzer=analyse, min_df=RARE, sublinear_tf=True)
    features = vectorizer.fit_transform([row.prompt for row in rows])
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(features, [row.needs_dear for row in rows])
    assert set(ours.weights) == set(ours.idf) == set(vectorizer.get_feature_names_out())
    new = [row.prompt for row in preferences(60, seed=1)] + ["nothing of this was ever seen"]
    expected = theirs.predict_proba(vectorizer.transform(new))[:, 1]
    assert [ours.score_text(prompt) for prompt in new] == pytest.approx(expected, abs=1e-4)


def test_the_curve_is_what_counting_gives() -> None:
    rows = [
        Preference(prompt="a", cheap=0.2, dear=0.9),
        Preference(prompt="b", winner="tie"),
        Preference(prompt="c", winner="cheap"),
        Preference(prompt="d", cheap=0.5, dear=0.8),
    ]
    scores = [0.9, 0.4, 0.1, 0.4]
    drawn = curve(rows, scores, cheap_price=0.25)
    for point in drawn.points:
        dear = [score >= point.threshold for score in scores]
        quality = [row.qualities[asked] for row, asked in zip(rows, dear, strict=True)]
        assert point.quality == pytest.approx(sum(quality) / 4)
        assert point.dear_share == sum(dear) / 4
        assert point.cost == pytest.approx(sum(1 if asked else 0.25 for asked in dear) / 4)
    assert [point.dear_share for point in drawn.points] == [0, 0.25, 0.75, 1]
    assert drawn.cheapest(1.0).dear_share == 0


def test_it_learns_what_can_be_learned_and_nothing_from_noise() -> None:
    rows = preferences()
    drawn = curve(rows, cross_scores(rows), 0.1)
    assert drawn.recovered > 0.75
    assert drawn.cheapest(0.9).cost < 0.6
    labels = [row.winner for row in rows]
    Random(0).shuffle(labels)
    mixed = [Preference(prompt=row.prompt, winner=label) for row, label in zip(rows, labels, strict=True)]
    assert 0.3 < curve(mixed, cross_scores(mixed), 0.1).recovered < 0.7


class Embedder(LanguageModel):
    """Two dimensions: how hard a prompt is, which it knows, and a constant."""

    def __init__(self) -> None:
        self.name, self.up = "embedder", True

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        if not self.up:
            raise UnavailableError("down")
        vectors = [
            [1.0, 0.5] if any(text.startswith(hard[:5]) for hard in HARD) else [-1.0, 0.5] for text in request.input
        ]  # type: ignore[union-attr]
        data = [Embedding(index=number, embedding=vector) for number, vector in enumerate(vectors)]
        return EmbeddingResponse(data=data, model=self.name, usage=Usage())


async def first_asked(router: Router, folder: Path, text: str, embedder: Embedder) -> tuple[str, list[str]]:
    router.save(folder / "router.json")
    look, policy = look_of("way", folder / "router.json", {"embedder": embedder}), learned("way", 0.5)
    asked = question(text)
    await look(asked)
    return policy([Candidate(name="cheap"), Candidate(name="dear")], asked)[0].name, asked.journey.notes


@pytest.mark.parametrize("by", ["terms", "embeddings"])
async def test_a_route_asks_the_dear_one_for_hard_prompts(tmp_path: Path, by: str) -> None:
    rows, embedder = preferences(), Embedder()
    vectors = await vectors_of(rows, embedder) if by == "embeddings" else None
    router = train(rows, vectors, "embedder" if vectors else None)
    assert curve(rows, cross_scores(rows, vectors), 0.1).recovered > 0.75
    hard, easy = "prove that the square root of primes is irrational", "say hello to Spain"
    assert await first_asked(router, tmp_path, hard, embedder) == ("dear", [])
    assert await first_asked(router, tmp_path, easy, embedder) == ("cheap", [])
    embedder.up = False
    name, notes = await first_asked(router, tmp_path, easy, embedder)
    assert (name, len(notes)) == (("dear", 1) if by == "embeddings" else ("cheap", 0))
    if by == "embeddings":
        with pytest.raises(ConfigError, match="embedder"):
            look_of("way", tmp_path / "router.json", {})


@given(st.text())
def test_any_text_has_a_score(text: str) -> None:
    router = Router(0.3, {"a": 1e6, "#code": -1e6}, {"a": 1.0, "#code": 2.0})
    assert 0 <= router.score_text(text) <= 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"bias": 1, "weights": {"a": "x"}, "idf": {}, "embedder": null}'])
def test_a_file_that_is_no_router_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "router.json").write_text(content)
    with pytest.raises(ConfigError, match=r"router\.json"):
        Router.load(tmp_path / "router.json")
    with pytest.raises(ConfigError):
        Router.load(tmp_path / "missing.json")


@pytest.mark.parametrize("line", ['{"prompt": "x"}', "no", '{"prompt": "x", "winner": "nobody"}', '{"winner": "tie"}'])
def test_a_bad_preference_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prefs.jsonl"
    file.write_text('{"prompt": "x", "winner": "dear"}\n' + line)
    with pytest.raises(BadRequestError, match="line 2"):
        read_preferences(file)
    file.write_text('{"prompt": "x", "winner": "dear"}\n')
    with pytest.raises(BadRequestError, match="others"):
        read_preferences(file)


@pytest.mark.slow
def test_the_commands(tmp_path: Path) -> None:
    run = CliRunner().invoke
    file, router, picture = tmp_path / "prefs.jsonl", tmp_path / "router.json", tmp_path / "curve.png"
    file.write_text("\n".join(row.model_dump_json(exclude_none=True) for row in preferences(100)))
    assert run(app, ["router", "train", str(file), "-o", str(router)]).exit_code == 0
    assert Router.load(router).weights
    result = run(app, ["router", "curve", str(file), "--plot", str(picture)])
    assert result.exit_code == 0
    assert "chance: 50%" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    points = json.loads(run(app, ["router", "curve", str(file), "--json"]).output)["points"]
    assert (points[0]["dear_share"], points[-1]["dear_share"]) == (0, 1)

    answers = tmp_path / "answers.jsonl"
    rows = [(0.9, 1), (0.8, 1), (0.3, 0), (0.2, 0)] * 10
    answers.write_text(
        "\n".join(
            json.dumps(
                {
                    "models": [
                        {"confidence": sure, "quality": good, "cost": "0.01"},
                        {"confidence": 1, "quality": 1, "cost": "0.1"},
                    ]
                }
            )
            for sure, good in rows
        )
    )
    result = run(app, ["cascade", "fit", str(answers), "--target-quality", "1"])
    assert result.exit_code == 0
    assert "thresholds = [0.8]" in result.output
    fitted = json.loads(run(app, ["cascade", "fit", str(answers), "--target-quality", "1", "--json"]).output)
    assert fitted["thresholds"] == [0.8]
    assert run(app, ["cascade", "fit", str(tmp_path / "none.jsonl")]).exit_code == 2
