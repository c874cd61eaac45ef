"""`wootz arch` and `wootz rope`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from wootz.cli import arch, rope
from wootz.cli.main import OneLineErrors
from wootz.models import load

app = typer.Typer(cls=OneLineErrors, rich_markup_mode="rich")
app.add_typer(arch.app, name="arch")
app.add_typer(rope.app, name="rope")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output + result.stderr
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code != 0, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    return file


SMALL = ("--width", 32, "--heads", 2, "--depth", 2, "--ctx", 64)


def test_build_from_options_and_from_a_file(tmp_path: Path) -> None:
    options = ("--layers", "S Ae", "--experts", "4x2+1", "--attn", "mqa", "--pos", "rope,nope", "--qk-norm", "--untie")
    run("arch", "build", tmp_path / "a", *SMALL, *options)
    (tmp_path / "b.toml").write_text(
        'hidden_size = 32\nnum_attention_heads = 2\nnum_hidden_layers = 2\nmax_position_embeddings = 64\nlayers = "W"\n'
        'experts = "4x2+1"\nattention = "mqa"\npositions = "rope,nope"\nqk_norm = true\ntie_word_embeddings = false\n'
    )
    run("arch", "build", tmp_path / "b.toml", tmp_path / "b", "--layers", "S Ae")  # an option holds over the file
    torch.testing.assert_close(load(tmp_path / "a").logits([1, 2, 3]), load(tmp_path / "b").logits([1, 2, 3]))
    counted = json.loads(run("arch", "params", tmp_path / "a", "--json"))
    assert counted["total"] == load(tmp_path / "a").num_parameters
    assert counted["active"] < counted["total"]


def test_what_cannot_be_built_is_one_line(tmp_path: Path) -> None:
    assert "no mixer is called X" in refused("arch", "build", tmp_path / "a", "--layers", "XA")
    (tmp_path / "b.toml").write_text("layer = 'A'")
    assert "no setting is called layer" in refused("arch", "build", tmp_path / "b.toml", tmp_path / "b")
    assert "no such file" in refused("arch", "build", tmp_path / "c.toml", tmp_path / "c")


def test_experts_are_reported_layer_by_layer(tmp_path: Path, text: Path) -> None:
    run("arch", "build", tmp_path / "a", *SMALL, "--ffn", "moe:4x2")
    (report, _) = json.loads(run("arch", "moe-report", tmp_path / "a", "--text", text, "--tokens", 50, "--json"))
    assert sum(report["load"]) == 2 * 50
    assert "busiest" in run("arch", "moe-report", tmp_path / "a", "--text", text)
    run("arch", "build", tmp_path / "b", *SMALL)
    assert "has no experts" in refused("arch", "moe-report", tmp_path / "b", "--text", text)


def test_a_long_text_is_read_through_bounded_caches(tmp_path: Path, text: Path) -> None:
    run("arch", "build", tmp_path / "a", "--depth", 1, "--width", 32, "--heads", 2)
    limits = ("--window", 16, "--sinks", 2, "--tokens", 300)
    report = json.loads(run("arch", "read", tmp_path / "a", "--text", text, *limits, "--json"))
    full, window, sinks = report.values()
    assert list(window["perplexity"]) == list(sinks["perplexity"]) == ["16", "32", "64", "128", "256", "300"]
    assert full["perplexity"]["16"] == pytest.approx(window["perplexity"]["16"], rel=1e-4)
    assert full["cache_bytes"] > sinks["cache_bytes"] > window["cache_bytes"]
    assert "perplexity" in run("arch", "read", tmp_path / "a", "--text", text, *limits)


def test_fewer_bits_are_priced(tmp_path: Path, text: Path) -> None:
    run("arch", "build", tmp_path / "a", "--depth", 1, "--width", 32, "--heads", 2, "--ffn", "gelu")
    arguments = ("arch", "quantization", tmp_path / "a", "--text", text, "--tokens", 1024, "--methods", "int8,int4")
    none, int8, int4 = json.loads(run(*arguments, "--json"))
    assert [none["method"], int8["method"], int4["method"]] == ["none", "int8", "int4"]
    assert none["num_bytes"] > int8["num_bytes"] > int4["num_bytes"]
    assert none["output_mse"] == 0 < int8["output_mse"] < int4["output_mse"]
    assert "int4" in run(*arguments)
    assert "no method" in refused("arch", "quantization", tmp_path / "a", "--text", text, "--methods", "int1")


def test_a_model_is_probed(tmp_path: Path, text: Path) -> None:
    run("arch", "build", tmp_path / "a", *SMALL, "--layers", "MA")
    probed = json.loads(
        run("arch", "probe", tmp_path / "a", "--text", text, "--tokens", 40, "--json", "--at-least", 0.01, "--ratio", 3)
    )
    assert len(probed["first_token_share"]) == 1
    assert probed["massive"]
    assert probed["ablation"]["loss"] == pytest.approx(5.5, abs=0.3)
    assert "first token" in run("arch", "probe", tmp_path / "a", "--text", text)
    run("arch", "build", tmp_path / "b", *SMALL, "--layers", "M")
    assert "has no attention" in refused("arch", "probe", tmp_path / "b", "--text", text)


def test_forms_of_attention_are_measured(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    arguments = ("--n", "64..128", "--impl", "naive,tiled", "--plot", picture, "--json")
    results = json.loads(run("arch", "bench", "attention", *arguments))
    assert [(result["impl"], result["n"]) for result in results] == [
        ("naive", 64),
        ("naive", 128),
        ("tiled", 64),
        ("tiled", 128),
    ]
    assert results[1]["peak_bytes"] > 3 * results[0]["peak_bytes"]  # quadratic
    assert picture.stat().st_size > 1000
    assert "no form is called magic" in refused("arch", "bench", "attention", "--impl", "magic")


def test_studies_are_commands(tmp_path: Path) -> None:
    arguments = ("--models", "attention", "--lengths", "2,3", "--steps", 2, "--seeds", 2)
    assert "attention" in run("arch", "recall", *arguments, "--out", tmp_path / "out", "--threads", 1)
    assert (tmp_path / "out" / "plot.png").exists()
    assert "no model is called elephant" in refused("arch", "recall", "--models", "elephant")
    assert "Vocabulary sizes" in run("arch", "vocabulary", "--help")


def test_wavelengths_show_which_pairs_break() -> None:
    found = json.loads(run("rope", "inspect", "--dim", 128, "--train", 4096, "--target", 32_768, "--json"))
    last = found["none"]["pairs"][-1]
    assert last["wavelength"] == pytest.approx(54_410, rel=1e-3)
    assert last["trained_angle"] == pytest.approx(0.47, abs=0.01)
    assert "never seen" in run("rope", "inspect", "--dim", 128)
    assert "not even" in refused("rope", "inspect", "--dim", 127)
    assert "no method" in refused("rope", "inspect", "--method", "magic")


def test_advice_on_positions() -> None:
    assert "alibi" in run("rope", "advise", "--max-ctx", 32_768, "--train-ctx", 4096, "--no-finetune")
    assert json.loads(run("rope", "advise", "--max-ctx", 32_768, "--train-ctx", 4096, "--json"))["scaling"] == "yarn"
    assert "no kind" in refused("rope", "advise", "--max-ctx", 8, "--train-ctx", 4, "--kind", "oracle")


def test_a_model_is_stretched_once(tmp_path: Path) -> None:
    run("arch", "build", tmp_path / "a", *SMALL)
    run("rope", "scale", tmp_path / "a", tmp_path / "b", "--factor", 4)
    stretched = load(tmp_path / "b")
    assert stretched.config.max_position_embeddings == 256
    assert not torch.allclose(stretched.logits(range(60)), load(tmp_path / "a").logits(range(60)))
    assert "stretched already" in refused("rope", "scale", tmp_path / "b", tmp_path / "c", "--factor", 2)


def test_longrope_searches_its_factors(tmp_path: Path, text: Path) -> None:
    run("arch", "build", tmp_path / "a", *SMALL)
    search = ("--method", "longrope", "--factor", 2, "--population", 6, "--generations", 1)
    assert "with --text" in refused("rope", "scale", tmp_path / "a", tmp_path / "b", *search)
    assert "nats per token" in run("rope", "scale", tmp_path / "a", tmp_path / "b", *search, "--text", text)
    rope_parameters = load(tmp_path / "b").config.raw["rope_parameters"]
    assert len(rope_parameters["long_factor"]) == 8  # pairs of a head of 16
    assert all(1 <= factor <= 2 for factor in rope_parameters["long_factor"])


def test_layouts_compute_alike(tmp_path: Path) -> None:
    run("arch", "build", tmp_path / "a", *SMALL)
    run("rope", "convert-layout", tmp_path / "a", tmp_path / "b")
    converted = load(tmp_path / "b")
    assert converted.config.raw["positions"] == "rope-interleaved"
    torch.testing.assert_close(converted.logits(range(20)), load(tmp_path / "a").logits(range(20)))
    run("arch", "build", tmp_path / "c", *SMALL, "--pos", "alibi")
    assert "one rotary layout only" in refused("rope", "convert-layout", tmp_path / "c", tmp_path / "d")


@pytest.mark.parametrize("scheme", ["rope", "alibi", "sinusoidal"])
def test_schemes_are_drawn(tmp_path: Path, scheme: str) -> None:
    run("rope", "plot", tmp_path / "a.png", "--scheme", scheme, "--length", 32)
    assert (tmp_path / "a.png").stat().st_size > 1000
