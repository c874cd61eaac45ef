"""Recipes are read, refused, planned and carried out; baselines are probabilities."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import small_model
from tensorboardX.proto.event_pb2 import Event
from transformers import AutoModelForCausalLM

from wootz.core.errors import ConfigError
from wootz.core.progress import SILENT, Progress
from wootz.data.tokens import open_stores
from wootz.models import load
from wootz.models.planning.accounting import count_parameters, on_meta
from wootz.training.making import make
from wootz.training.recipe import Recipe, model_config
from wootz.training.runs import RunFolder, compare
from wootz.training.stages.baselines import NGrams
from wootz.training.stages.context import parts, rope_base, set_positions
from wootz.training.stages.evaluate import document_nats
from wootz.training.stages.pretrain import build
from wootz.training.trainer import Callback, Step, Trainer

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", ["spark", "ember", "blast"])
def test_sizes_in_the_plan_are_those_of_the_model(name: str) -> None:
    recipe = Recipe.load(RECIPES / f"{name}.toml")
    model = on_meta(model_config(recipe, recipe.tokenizer.vocab_size))
    assert recipe.dial.num_parameters == count_parameters(model).total
    assert sum(part.num_steps for part in parts(recipe)) == recipe.dial.steps
    assert all(part.rows * part.context == parts(recipe)[0].rows * parts(recipe)[0].context for part in parts(recipe))


def test_overrides_reach_their_section_and_mistakes_name_their_key() -> None:
    recipe = Recipe.load(RECIPES / "spark.toml", ["depth=4", "pretrain.tokens=2e6", "pretrain.optimizer=lion"])
    assert (recipe.depth, recipe.pretrain.tokens, recipe.pretrain.optimizer) == (4, 2_000_000, "lion")
    for wrong, message in (
        ("pretrain.tokns=3", "pretrain.tokns"),
        ("depth=-1", "depth"),
        ("depth", "not of the form"),
        ('pretrain={"compile":true,"precision":"fp8"}', "pretrain.precision"),
        ('data.step=[{"kind":"heuristix"}]', "no kind of step"),
        ('data={"held_out":0.1}', 'set "path"'),
    ):
        with pytest.raises(ConfigError, match=message):
            Recipe.load(RECIPES / "spark.toml", [wrong])


def test_longer_rows_turn_the_slowest_pair_as_far_as_before() -> None:
    head_dim, base, factor = 64, 10_000.0, 8.0
    slowest = lambda theta: theta ** -((head_dim - 2) / head_dim)  # noqa: E731
    assert slowest(rope_base(base, factor, head_dim)) * factor == pytest.approx(slowest(base))
    model = small_model()
    set_positions(model, replace(model.config.layers[0].mixer.rotary, theta=50_000.0))
    tokens_T = torch.arange(32)
    torch.testing.assert_close(model.logits(tokens_T), small_model(rope_theta=5e4).logits(tokens_T))


@pytest.mark.parametrize("how", ["base", "yarn"])
def test_what_is_saved_has_the_positions_of_the_last_phase(tmp_path: Path, how: str) -> None:
    """And a run that goes on from it counts from there, as transformers reads it."""
    text = _write_text(tmp_path / "text.jsonl", ["iron", "steel", "water", "fire", "smith", "blade"], 100)
    phases = [{"name": "short", "share": 0.5}, {"name": "long", "share": 0.5, "context": 128}]
    recipe = Recipe.of(_tiny(text, phases=phases, longer_rows=how, tokens=2048, sample_every=99), "test")
    run = RunFolder.create(tmp_path / "run", {})
    _make(recipe, run)
    trainer, checkpoints = build(recipe, run)
    assert checkpoints.restore(trainer) == 4
    trainer.batches.before_step(trainer)  # type: ignore[attr-defined]
    tokens_T = torch.arange(128) % 300
    logits_TV = trainer.model.eval().logits(tokens_T)  # type: ignore[operator]
    with torch.inference_mode():
        torch.testing.assert_close(load(run.model).logits(tokens_T), logits_TV)
        theirs = AutoModelForCausalLM.from_pretrained(run.model, attn_implementation="eager")
        torch.testing.assert_close(theirs(tokens_T[None]).logits[0], logits_TV, rtol=1e-4, atol=1e-4)
    phases = [{"name": "more", "share": 1.0, "context": 256}]
    raw = _tiny(text, phases=phases, longer_rows=how, start_from=str(run.model))
    if how == "yarn":
        with pytest.raises(ConfigError, match="rows of 256 are longer than the 128 that"):
            parts(Recipe.of(raw, "test"))
    else:
        (part,) = parts(Recipe.of(raw, "test"))
        assert part.rotary is not None
        assert part.rotary.theta == pytest.approx(rope_base(1e4, 8, 16))
    (part,) = parts(Recipe.of(_tiny(text, start_from=str(run.model)), "test"))
    assert part.rotary == (None if how == "yarn" else load(run.model).config.layers[0].mixer.rotary)


def test_n_gram_probabilities_sum_to_one() -> None:
    generator, vocab_size = np.random.default_rng(0), 7
    tokens = (np.cumsum(generator.integers(0, 3, 2000)) % vocab_size).astype(np.int64)
    for order in (1, 2, 3, 5):
        grams = NGrams(tokens, vocab_size, order)
        for _ in range(5):
            context = generator.integers(0, vocab_size, 6)
            total = sum(np.exp(-grams.nats(np.array([*context, word]))[-1]) for word in range(vocab_size))
            assert total == pytest.approx(1.0)


def test_a_document_longer_than_the_context_counts_every_token_once() -> None:
    model = small_model(max_position_embeddings=16)
    with torch.no_grad():
        model.embedding.weight.zero_()  # every token is as likely as any other
    for length in (2, 16, 17, 18, 50):
        assert document_nats(model, torch.zeros(length, dtype=torch.int64)) == pytest.approx(
            (length - 1) * np.log(64), rel=1e-5
        )


@contextmanager
def _silent_bar(stage: str) -> Iterator[Progress]:
    yield SILENT


def _make(recipe: Recipe, run: RunFolder, **how: Any) -> dict[str, dict[str, Any]]:
    return make(recipe, run, run.path.parent, bar=_silent_bar, watch=lambda *_: None, report=print, **how)


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Out of event files: records of a length, its checksum, a message and its checksum."""
    found: dict[str, dict[int, float]] = {}
    for file in folder.iterdir():
        content, place = file.read_bytes(), 0
        while place < len(content):
            (size,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            place += size + 16
    return found


def _write_text(file: Path, words: list[str], count: int = 300) -> Path:
    lines = [" ".join(words[(n * k + k) % len(words)] for k in range(30)) + f" number {n}." for n in range(count)]
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return file


def _tiny(text: Path, **pretrain: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "depth": 1,
        "data": {"path": str(text), "held_out": 0.1},
        "tokenizer": {"vocab_size": 300},
        "model": {"hidden_size": 32, "num_heads": 2, "context": 32},
        "pretrain": {
            "tokens": 8192, "batch_tokens": 512, "checkpoint_every": 5, "evaluate_every": 8, "sample_every": 16,
            **pretrain,
        },
    }  # fmt: skip


def test_a_recipe_is_carried_out_resumed_and_leaves_a_model(tmp_path: Path) -> None:
    text = _write_text(tmp_path / "text.jsonl", ["iron", "steel", "water", "fire", "smith", "blade"])
    with text.open("a") as more:
        more.write(json.dumps({"text": "Spelled out, <|endoftext|> is text."}) + "\n")
    items = tmp_path / "items.jsonl"
    items.write_text('{"context": "iron steel", "choices": [" water", " xylophones"], "answer": 0}\n' * 3)
    phases = [{"name": "short", "share": 0.5}, {"name": "long", "share": 0.5, "context": 64}]
    raw = _tiny(text, phases=phases, benchmarks={"words": str(items)}, benchmark_items=2)
    recipe = Recipe.of(raw, "test")
    run = RunFolder.create(tmp_path / "run", recipe.model_dump(mode="json"))
    reports = _make(recipe, run)
    assert reports["evaluate"]["bits_per_byte"] > 0
    assert [row["step"] for row in run.rows("metrics")] == list(range(16))
    assert run.rows("metrics")[-1]["loss"] < run.rows("metrics")[0]["loss"]
    assert run.status["state"] == "done"
    assert _scalars(run.path / "tensorboard")["train/loss"] == pytest.approx(
        {row["step"]: row["loss"] for row in run.rows("metrics")}
    )
    assert run.bits_per_byte == reports["evaluate"]["bits_per_byte"]
    last = run.rows("evaluations")[-1]
    assert last["benchmarks"]["words"]["items"] == 2
    assert reports["evaluate"]["benchmarks"]["words"] | {"items": 2} == last["benchmarks"]["words"]
    assert _scalars(run.path / "tensorboard")["evaluation/words"] == dict(run.curve("evaluations", "words"))
    assert compare([run]).results["words, accuracy"] == [last["benchmarks"]["words"]["accuracy"]]
    end = json.loads((run.model / "config.json").read_text())["eos_token_id"]
    for store in (open_stores(run.data / name)["text"] for name in ("tokens", "held_out_tokens")):
        assert all(
            (store.document(n) == end).nonzero()[0].tolist() == [0, len(store.document(n)) - 1]
            for n in range(store.num_documents)
        )
    model = load(run.model)
    assert model.config.max_position_embeddings == 64
    assert json.loads((run.model / "config.json").read_text())["rope_theta"] == pytest.approx(rope_base(1e4, 2, 16))
    assert _make(recipe, run) == reports
    with pytest.raises(ConfigError, match="other settings \\(seed\\)"):
        RunFolder.create(tmp_path / "run", Recipe.of(raw | {"seed": 1}, "test").model_dump(mode="json"))


def test_a_run_of_an_older_version_lacks_what_is_new_since_and_goes_on(tmp_path: Path) -> None:
    recipe = Recipe.load(RECIPES / "spark.toml").model_dump(mode="json")
    older = recipe | {"pretrain": {name: value for name, value in recipe["pretrain"].items() if name != "unfreeze"}}
    RunFolder.create(tmp_path, older)
    with pytest.raises(ConfigError, match="other settings"):
        RunFolder.create(tmp_path, recipe)
    RunFolder.create(tmp_path, recipe, lambda kept: Recipe.of(kept, "kept").model_dump(mode="json"))


@pytest.mark.slow
def test_going_on_with_other_text_forgets_less_with_some_of_the_old(tmp_path: Path) -> None:
    old = _write_text(tmp_path / "old.jsonl", ["iron", "steel", "water", "fire", "smith", "blade"])
    new = _write_text(tmp_path / "new.jsonl", ["flour", "salt", "yeast", "oven", "baker", "loaf"])
    first = RunFolder.create(tmp_path / "first", {})
    _make(Recipe.of(_tiny(old, learning_rate=1e-2), "test"), first)
    forgotten = {}
    for replay in (0.0, 0.5):
        raw = _tiny(old, learning_rate=1e-2, start_from=str(first.model))
        sources = [
            {"name": "old", "path": str(old), "weight": replay},
            {"name": "new", "path": str(new), "weight": 1 - replay},
        ]
        raw["data"] = {"source": sources, "held_out": 0.1}
        run = RunFolder.create(tmp_path / f"replay-{replay}", {})
        report = _make(Recipe.of(raw, "test"), run)["evaluate"]
        assert report["sources"]["new"] < report["before"]["sources"]["new"] - 1  # what it was trained on is learned
        forgotten[replay] = report["sources"]["old"] - report["before"]["sources"]["old"]
    assert forgotten[0.0] > forgotten[0.5] + 0.2
    assert forgotten[0.5] < 0.1


def test_text_is_encoded_on_the_fly_and_the_run_goes_on(tmp_path: Path) -> None:
    text = _write_text(tmp_path / "text.jsonl", ["iron", "steel", "water", "fire", "smith", "blade"])
    raw = _tiny(text, checkpoint_every=4, evaluate_every=16)
    raw["tokenizer"]["on_the_fly"] = True

    class Stop(Callback):
        def after_step(self, trainer: Trainer, step: Step) -> None:
            if step.number == 9:
                raise KeyboardInterrupt

    whole, stopped = (RunFolder.create(tmp_path / name, {}) for name in ("whole", "stopped"))
    report = _make(Recipe.of(raw, "test"), whole)["evaluate"]
    assert report["five_gram_bits_per_byte"] < report["unigram_bits_per_byte"]
    assert not (whole.data / "tokens").exists()
    with pytest.raises(KeyboardInterrupt):
        _make(Recipe.of(raw, "test"), stopped, extra=[Stop()])
    _make(Recipe.of(raw, "test"), stopped)
    losses = [[row["loss"] for row in run.rows("metrics")] for run in (whole, stopped)]
    assert len(losses[0]) == 16
    assert losses[0] == losses[1]


def test_phases_weigh_sources_that_there_are(tmp_path: Path) -> None:
    raw = _tiny(tmp_path, phases=[{"name": "all", "share": 1.0, "weights": {"web": 1.0}}])
    with pytest.raises(ConfigError, match="phase all weighs web, and there is no such source"):
        Recipe.of(raw, "test")


def test_a_benchmark_that_cannot_be_read_ends_a_run_before_it_begins(tmp_path: Path) -> None:
    raw = _tiny(_write_text(tmp_path / "text.jsonl", ["iron"]), benchmarks={"words": str(tmp_path / "none.jsonl")})
    run = RunFolder.create(tmp_path / "run", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        _make(Recipe.of(raw, "test"), run)
    assert run.finished("clean") is None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "mesh", [{"data": 2}, {"data": 2, "zero": 1}, {"tensor": 2}, {"pipeline": 2}, {"data": 2, "tensor": 2}]
)
def test_a_mesh_of_processes_learns_what_one_does(tmp_path: Path, mesh: dict[str, int]) -> None:
    """By the command itself, which starts its processes; and killed on the way, it goes on."""
    text = _write_text(tmp_path / "text.jsonl", ["iron", "steel", "water", "fire", "smith", "blade"])
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        f"""
        name = "tiny"
        depth = 2
        data.path = "{text}"
        data.held_out = 0.1
        tokenizer.vocab_size = 300
        model = {{ hidden_size = 32, num_heads = 2, context = 32, tie_embeddings = false }}
        pretrain = {{ tokens = 8192, batch_tokens = 512, checkpoint_every = 4, evaluate_every = 8, sample_every = 8 }}
        """
    )

    def run(name: str, *more: str) -> RunFolder:
        command = [sys.executable, "-m", "wootz", "run", str(recipe), "--out", str(tmp_path / name), *more]
        subprocess.run(command, check="--chaos" not in more, cwd=tmp_path, capture_output=True)
        return RunFolder.open(tmp_path / name)

    setting = [word for axis, size in mesh.items() for word in ("--set", f"mesh.{axis}={size}")]
    one, stopped = run("one", "--threads", "1"), run("many", *setting, "--chaos", "kill@9")
    assert stopped.finished("pretrain") is None
    many = run("many", *setting)
    losses = [[row["loss"] for row in each.rows("metrics")] for each in (one, many)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert many.bits_per_byte == pytest.approx(one.bits_per_byte, abs=1e-3)
    weights = [dict(load(each.model).named_parameters()) for each in (one, many)]
    assert weights[0].keys() == weights[1].keys()
