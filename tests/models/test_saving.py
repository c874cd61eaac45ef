"""What we save, transformers loads, with equal logits; and nothing is ever half there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from reference_models import TOKENS, reference_logits, save_reference
from safetensors.torch import load_file

from wootz.core import ConfigError
from wootz.models import load
from wootz.models.saving import save
from wootz.models.surgery import share_kv_heads, tie, untie


@torch.inference_mode()
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["llama2", "llama2-biases", "llama3", "mistral-windowed", "qwen2", "qwen3"])
def test_transformers_loads_what_we_save(tmp_path: Path, family: str, tied: bool) -> None:
    original = save_reference(tmp_path / "theirs", family, tied=tied)
    save(load(tmp_path / "theirs"), tmp_path / "ours", max_shard_bytes=60_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert type(again) is type(original)
    assert again.dtype == torch.float32
    torch.testing.assert_close(reference_logits(again), reference_logits(original), atol=0, rtol=0)
    torch.testing.assert_close(load(tmp_path / "ours").logits(TOKENS), load(tmp_path / "theirs").logits(TOKENS))


def test_shards_are_no_larger_than_asked_and_the_index_is_transformers_own(tmp_path: Path) -> None:
    original = save_reference(tmp_path / "theirs", "llama2")
    save(load(tmp_path / "theirs"), tmp_path / "ours", max_shard_bytes=60_000)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    shards = {name: load_file(tmp_path / "ours" / name) for name in set(index["weight_map"].values())}
    assert len(shards) > 3
    assert set(shards) == {f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)}
    assert all(sum(t.nbytes for t in shard.values()) <= 60_000 for shard in shards.values())
    assert index["weight_map"] == {name: shard for shard, tensors in shards.items() for name in tensors}
    assert index["weight_map"].keys() == original.state_dict().keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in original.state_dict().values())


def test_saving_converts_and_brings_the_tokenizer(tmp_path: Path, tiny_model_folder: Path) -> None:
    save(load(tiny_model_folder), tmp_path / "half", dtype=torch.bfloat16, beside=tiny_model_folder)
    files = {file.name for file in (tmp_path / "half").iterdir()}
    assert files == {file.name for file in tiny_model_folder.iterdir()}
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    assert transformers.AutoConfig.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert len({file.stat().st_mode for file in (tmp_path / "half").iterdir()}) == 1
    expected = (tiny_model_folder / "tokenizer.json").read_bytes()
    assert (tmp_path / "half" / "tokenizer.json").read_bytes() == expected


def test_a_failed_save_leaves_the_checkpoint_before_it(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_model_folder)
    save(model, tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}

    def disk_is_full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wootz.models.saving.save_file", disk_is_full)
    with pytest.raises(ConfigError, match="No space left"):
        save(model, tmp_path / "run", replace=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_only_models_are_replaced_and_only_when_asked(tmp_path: Path, tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder)
    save(model, tmp_path / "run")
    with pytest.raises(ConfigError, match="not empty"):
        save(model, tmp_path / "run")
    save(model, tmp_path / "run", replace=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match="not empty"):
        save(model, tmp_path / "home", replace=True)


def test_a_model_prepared_for_inference_is_not_saved_without_its_weights(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    with pytest.raises(ConfigError, match="prepared for inference"):
        save(load(tiny_model_folder).prepare_for_inference(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@torch.inference_mode()
@pytest.mark.parametrize(("family", "num_kv_heads"), [("llama2", 2), ("llama2-biases", 1)])
def test_sharing_kv_heads_that_are_equal_changes_nothing(tmp_path: Path, family: str, num_kv_heads: int) -> None:
    save_reference(tmp_path / "mha", family)
    model = load(tmp_path / "mha")
    for layer in model.layers:
        for x in (layer.mixer.qkv.weight, layer.mixer.qkv.bias):
            for rows in () if x is None else x.split(layer.mixer.qkv.parts)[1:]:
                by_group = rows.unflatten(0, (num_kv_heads, -1, layer.mixer.config.head_dim))
                by_group.copy_(by_group[:, :1].clone().expand_as(by_group))
    grouped = share_kv_heads(model, num_kv_heads)
    assert grouped.num_parameters < model.num_parameters
    torch.testing.assert_close(grouped.logits(TOKENS), model.logits(TOKENS))
    save(grouped, tmp_path / "gqa")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "gqa")
    assert again.config.num_key_value_heads == num_kv_heads
    torch.testing.assert_close(reference_logits(again), model.logits(TOKENS), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_shared_kv_heads_are_the_means_of_their_groups(tmp_path: Path) -> None:
    original = save_reference(tmp_path, "llama2").state_dict()
    mqa = share_kv_heads(load(tmp_path), 1)
    _, k, v = mqa.layers[1].mixer.qkv.weight.split(mqa.layers[1].mixer.qkv.parts)
    for ours, name in ((k, "k_proj"), (v, "v_proj")):
        theirs = original[f"model.layers.1.self_attn.{name}.weight"]
        torch.testing.assert_close(ours, theirs.view(4, 16, 64).mean(0))
    with pytest.raises(ConfigError, match="4 key-value heads cannot be shared by 3"):
        share_kv_heads(load(tmp_path), 3)


@torch.inference_mode()
def test_untying_and_tying_change_nothing_but_where_the_head_lies(tmp_path: Path) -> None:
    save_reference(tmp_path / "tied", "llama2", tied=True)
    tied = load(tmp_path / "tied")
    untied = untie(tied)
    assert untied.num_parameters == tied.num_parameters + tied.embedding.weight.numel()
    torch.testing.assert_close(untied.logits(TOKENS), tied.logits(TOKENS))
    torch.testing.assert_close(tie(untied).logits(TOKENS), tied.logits(TOKENS))
    assert tie(untied).num_parameters == tied.num_parameters
    untied.head.weight[3, 3] += 1
    assert tied.embedding.weight[3, 3] != untied.head.weight[3, 3]
    with pytest.raises(ConfigError, match="would change the model"):
        tie(untied)
