"""GGUF files: written with the `gguf` package, read by us, compared with the transformers model they came from."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from reference_models import LLAMA3_ROPE, TOKENS, reference_logits, save_reference
from torch import Tensor

from wootz.core.gguf import GGUFFile
from wootz.models import PackedContext, load


@pytest.mark.slow
def test_the_container_reads_like_the_gguf_package(smollm2_gguf: Path) -> None:
    ours, theirs = GGUFFile(smollm2_gguf), gguf.GGUFReader(smollm2_gguf)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == fields
    assert ours.tensors.keys() == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        assert ours.tensors[tensor.name].shape == tuple(tensor.shape[::-1].tolist())
        assert ours.tensors[tensor.name].type == tensor.tensor_type.name
        assert ours.bytes_of(tensor.name) == tensor.data.tobytes()


def write_gguf(file: Path, model: transformers.PreTrainedModel, architecture: gguf.MODEL_ARCH) -> None:
    """What llama.cpp's converter does for a float32 file, as far as a model without a tokenizer goes."""
    config = model.config
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture is gguf.MODEL_ARCH.LLAMA and ("q_proj" in name or "k_proj" in name):
            tensor = interleave_halves(tensor, head_dim)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.numpy())
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_rope_factors(config.rope_parameters, head_dim))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave_halves(rows: Tensor, head_dim: int) -> Tensor:
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape).contiguous()


def llama3_rope_factors(rope: dict, head_dim: int) -> np.ndarray:
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


@torch.inference_mode()
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        pytest.param("llama2", gguf.MODEL_ARCH.LLAMA, id="llama2"),
        pytest.param("llama3", gguf.MODEL_ARCH.LLAMA, id="llama3"),
        pytest.param("mistral", gguf.MODEL_ARCH.LLAMA, id="mistral"),
        pytest.param("qwen2", gguf.MODEL_ARCH.QWEN2, id="qwen2"),
        pytest.param("qwen3", gguf.MODEL_ARCH.QWEN3, id="qwen3"),
    ],
)
def test_logits_equal_transformers(tmp_path: Path, family: str, architecture: gguf.MODEL_ARCH, tied: bool) -> None:
    reference = save_reference(tmp_path / "folder", family, tied=tied)
    write_gguf(tmp_path / "model.gguf", reference, architecture)
    model = load(tmp_path / "model.gguf")
    torch.testing.assert_close(model.logits(TOKENS), reference_logits(reference), atol=1e-4, rtol=0)
    assert model.config.tie_embeddings is tied
    assert model.config.eos_token_ids == (2,)


def test_llama3_factors_are_what_the_rule_gives() -> None:
    """The factors this file writes are an oracle only if they spread: untouched, blended and slowed ones."""
    factors = llama3_rope_factors(LLAMA3_ROPE, 16)
    assert factors[0] == 1
    assert factors[-1] == 8
    assert any(1 < factor < 8 for factor in factors)


class GrowingContext:
    """The plainest cache: everything of one sequence so far, per layer."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def attend(self, layer: int, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, *, scale: float, **_) -> Tensor:
        if layer not in self.keys:
            self.keys[layer], self.values[layer] = k_TKd, v_TKd
            return PackedContext([len(q_THd)]).attend(layer, q_THd, k_TKd, v_TKd, scale=scale)
        self.keys[layer] = torch.cat((self.keys[layer], k_TKd))
        self.values[layer] = torch.cat((self.values[layer], v_TKd))
        q, k, v = (x.transpose(0, 1) for x in (q_THd, self.keys[layer], self.values[layer]))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)
        return out.transpose(0, 1)


@pytest.mark.slow
@pytest.mark.real
@torch.inference_mode()
def test_the_real_model_answers_as_in_transformers(smollm2_gguf: Path) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    text = "<|im_start|>user\nWhat is wootz steel?<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer(text, return_tensors="pt").input_ids

    model = load(smollm2_gguf).prepare_for_inference()
    difference = model.logits(prompt[0]) - reference(prompt).logits[0]
    assert difference.abs().max() < 1e-3  # of logits up to 30

    expected = reference.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),  # else the prompt's own <|im_end|>, also the padding token, is hidden
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=None,
    )[0, prompt.shape[1] :]
    context, tokens, position, generated = GrowingContext(), prompt[0], 0, []
    while len(generated) < 24:
        positions = torch.arange(position, position + len(tokens))
        hidden = model(tokens, positions, context)
        position += len(tokens)
        tokens = model.unembed(hidden[-1:]).argmax(-1)
        generated.append(tokens.item())
    assert generated == expected.tolist()
