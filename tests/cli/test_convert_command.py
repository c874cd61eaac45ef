"""`wootz convert`, as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import typer
from typer.testing import CliRunner

from wootz.cli.convert import convert
from wootz.core.gguf import GGUFFile
from wootz.models import load
from wootz.tokenization import load_tokenizer

app = typer.Typer(rich_markup_mode="rich")
app.command()(convert)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@torch.inference_mode()
def test_a_folder_to_gguf_and_back(tmp_path: Path, tiny_model_folder: Path) -> None:
    file, folder = tmp_path / "tiny.gguf", tmp_path / "tiny"
    assert "tiny.gguf" in run(tiny_model_folder, file).replace("\n", "")
    run(file, folder)
    expected = load(tiny_model_folder).logits([1, 5, 9])
    for path in (file, folder):
        torch.testing.assert_close(load(path).logits([1, 5, 9]), expected, atol=1e-5, rtol=0)
        assert load_tokenizer(path).encode("wootz steel") == load_tokenizer(tiny_model_folder).encode("wootz steel")


def test_types_shards_and_replacing(tmp_path: Path, tiny_model_folder: Path) -> None:
    run(tiny_model_folder, tmp_path / "a.gguf", "--type", "q8_0", "--no-tokenizer")
    file = GGUFFile(tmp_path / "a.gguf")
    assert file.tensors["blk.0.attn_q.weight"].type == "Q8_0"
    assert "tokenizer.ggml.tokens" not in file.metadata
    run(tiny_model_folder, tmp_path / "half", "--type", "bf16", "--max-shard", "0.001")
    run(tiny_model_folder, tmp_path / "half", "--replace")
    assert load_tokenizer(tmp_path / "half").chat_template is not None


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint(tmp_path: Path, tiny_model_folder: Path) -> None:
    dcp.save({"model": load(tiny_model_folder).state_dict()}, checkpoint_id=tmp_path / "step", no_dist=True)
    run(tmp_path / "step", tmp_path / "tuned", "--config", tiny_model_folder)
    run(tmp_path / "step", tmp_path / "tuned.gguf", "--config", tiny_model_folder)
    assert load_tokenizer(tmp_path / "tuned.gguf").encode("x") == load_tokenizer(tiny_model_folder).encode("x")


def test_help_teaches() -> None:
    command = [
        sys.executable,
        "-c",
        "import typer; from wootz.cli.convert import convert; typer.run(convert)",
        "--help",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "wootz convert smollm2 smollm2.gguf --type q4_k" in shown
