"""Adapters in PEFT's format give PEFT's logits: beside the base and merged into it."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from parity import save_random
from safetensors.torch import load_file, save_file

from wootz.core.errors import ConfigError, ModelFileError, NotFoundError
from wootz.models import convert, load
from wootz.models.adapters.attach import Adapters
from wootz.models.adapters.load import load_adapter
from wootz.models.adapters.merge import merge

SMALL = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

CASES = {
    "llama": (transformers.LlamaConfig(**SMALL, **HEADS), [*ATTENTION, "gate_proj", "up_proj", "down_proj"], {}),
    "llama, some": (transformers.LlamaConfig(**SMALL, **HEADS), ["v_proj", "up_proj"], {"use_rslora": True}),
    "qwen2": (transformers.Qwen2Config(**SMALL, **HEADS), ["q_proj", "v_proj", "lm_head"], {}),
    "gemma3": (
        transformers.Gemma3TextConfig(**SMALL, **HEADS, head_dim=8, query_pre_attn_scalar=8, sliding_window=6),
        [*ATTENTION, "down_proj"],
        {"alpha_pattern": {"down_proj": 64}, "rank_pattern": {"layers.1.self_attn.q_proj": 3}},
    ),
    "phi3": (
        transformers.Phi3Config(**SMALL, **HEADS, pad_token_id=0),
        ["qkv_proj", "gate_up_proj", "o_proj", "down_proj"],
        {},
    ),
    "gpt2": (
        transformers.GPT2Config(vocab_size=61, n_positions=64, n_embd=32, n_layer=2, n_head=4),
        ["c_attn", "c_proj", "c_fc"],
        {"fan_in_fan_out": True},
    ),
    "bloom": (
        transformers.BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4),
        ["query_key_value", "dense"],
        {},
    ),
    "mamba": (transformers.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2), ["in_proj", "x_proj"], {}),
}


def write_lora(reference, folder: Path, seed: int = 0, **settings) -> peft.PeftModel:
    """An adapter whose B is not zero, as it is at the start."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 16} | settings)
    model = peft.get_peft_model(reference, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.2
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_peft_beside_the_base_and_merged(tmp_path, case):
    config, targets, settings = CASES[case]
    reference = save_random(tmp_path / "base", config)
    adapted = write_lora(reference, tmp_path / "lora", target_modules=targets, **settings)
    tokens = torch.arange(3, 43)
    with torch.no_grad():
        expected = adapted(tokens[None]).logits[0]

    model = load(tmp_path / "base")
    adapters = Adapters(model)
    adapters.add("a", load_adapter(tmp_path / "lora", model))
    with torch.no_grad(), adapters.active("a"):
        torch.testing.assert_close(model.logits(tokens), expected, atol=1e-4, rtol=0)
    with torch.no_grad():
        base = load(tmp_path / "base").logits(tokens)
        assert torch.equal(model.logits(tokens), base)
        assert (base - expected).abs().max() > 0.1

    convert(tmp_path / "base", tmp_path / "merged", adapter=tmp_path / "lora")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens[None]).logits[0], expected, atol=1e-4, rtol=0)


def test_embedding_and_head_may_have_adapters_too(tmp_path):
    reference = save_random(tmp_path / "base", transformers.LlamaConfig(**SMALL, **HEADS))
    adapted = write_lora(reference, tmp_path / "lora", target_modules=["embed_tokens", "lm_head"])
    tokens = torch.arange(3, 43)
    model = load(tmp_path / "base")
    adapters = Adapters(model)
    adapters.add("a", load_adapter(tmp_path / "lora", model))
    with torch.no_grad(), adapters.active("a"):
        expected = adapted(tokens[None]).logits[0]
        torch.testing.assert_close(model.logits(tokens), expected, atol=1e-4, rtol=0)
    merge(model := load(tmp_path / "base"), tmp_path / "lora")
    with torch.no_grad():
        torch.testing.assert_close(model.logits(tokens), expected, atol=1e-4, rtol=0)


def test_each_row_has_its_own_adapter_whatever_the_weights_are_kept_in(tmp_path):
    config = transformers.LlamaConfig(**SMALL, **HEADS)
    reference = save_random(tmp_path / "base", config)
    for number in range(3):
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        write_lora(base, tmp_path / str(number), seed=number, r=2 + number, target_modules=ATTENTION)
    del reference
    model = load(tmp_path / "base").prepare_for_inference()
    adapters = Adapters(model)
    loras = [load_adapter(tmp_path / str(number), model) for number in range(3)]
    for number, lora in enumerate(loras):
        adapters.add(str(number), lora)
    linear = model.layers[0].mixer.qkv
    x_TC = torch.randn(7, 32)
    alone = {}
    for name in ("0", "1", "2"):
        with adapters.active(name):
            alone[name] = linear(x_TC)
    groups = [("1", torch.tensor([0, 5])), ("2", slice(2, 4))]
    with adapters.rows(groups):
        mixed = linear(x_TC)
    torch.testing.assert_close(mixed[[0, 5]], alone["1"][[0, 5]])
    torch.testing.assert_close(mixed[2:4], alone["2"][2:4])
    base = linear(x_TC)
    assert torch.equal(mixed[[1, 4, 6]], base[[1, 4, 6]])
    assert not torch.allclose(mixed[2:4], base[2:4])
    adapters.remove("1")
    with adapters.rows(groups):
        assert torch.equal(linear(x_TC)[[0, 5]], base[[0, 5]])


def edit(folder: Path, **settings) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_what_would_be_computed_wrongly_is_refused_by_name(tmp_path):
    reference = save_random(tmp_path / "base", transformers.LlamaConfig(**SMALL, **HEADS))
    write_lora(reference, tmp_path / "lora", target_modules=["q_proj"])
    model = load(tmp_path / "base")

    def refused(message: str, error: type[Exception] = ModelFileError) -> None:
        with pytest.raises(error, match=message):
            load_adapter(tmp_path / "lora", model)

    original = (tmp_path / "lora/adapter_config.json").read_text()
    for settings, message in (
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "IA3"}, 'kind "IA3"'),
    ):
        edit(tmp_path / "lora", **settings)
        refused(message)
        (tmp_path / "lora/adapter_config.json").write_text(original)

    weights = tmp_path / "lora/adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "base_model.model.lm_head.lora_magnitude_vector": torch.ones(3)}, weights)
    refused("lora_magnitude_vector")
    save_file(
        {name: tensor[:, :16].clone() if "lora_A" in name else tensor for name, tensor in tensors.items()}, weights
    )
    refused(r"shape \(32, 16\), but this model's is \(32, 32\)")
    save_file({name.replace("q_proj", "x_proj"): tensor for name, tensor in tensors.items()}, weights)
    refused("x_proj.*no projection")
    weights.write_bytes(b"nonsense")
    refused("damaged")
    weights.unlink()
    refused("adapter_model.safetensors is missing", NotFoundError)


def test_a_tied_embedding_is_not_merged_into(tmp_path):
    reference = save_random(tmp_path / "base", transformers.LlamaConfig(**SMALL, **HEADS, tie_word_embeddings=True))
    write_lora(reference, tmp_path / "lora", target_modules=["lm_head"])
    with pytest.raises(ConfigError, match="untie"):
        merge(load(tmp_path / "base"), tmp_path / "lora")
