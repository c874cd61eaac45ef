"""Models of bytes: what predicts a byte has not seen it, large layers run where they should, and all of them learn."""

from __future__ import annotations

import math
import re

import pytest
import torch

from wootz.core.errors import UnsupportedError
from wootz.models import Decoder, PackedContext, read_config
from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.byte_models import MegabyteConfig, SpaceByteConfig, mamba_byte
from wootz.models.byte_models.space_byte import boundaries
from wootz.models.byte_models.stack import END_OF_TEXT, FIRST_BYTE, VOCAB_SIZE, ByteModel
from wootz.models.decoder import LayerConfig
from wootz.models.positions.rotary import RotaryConfig
from wootz.tokenization.byte_tokenizer import ByteTokenizer
from wootz.training.fit import FitConfig, fit, losses_by_position
from wootz.training.studies.text import corpus, held_out_rows, training_rows

TEXT = "Grüße, 你好! def add(a, b):\n    return a + b  # x2\n"


def layers(width: int, number: int, window: int | None = None) -> tuple[LayerConfig, ...]:
    attention = AttentionConfig(
        num_heads=2, num_kv_heads=2, head_dim=width // 2, rotary=RotaryConfig(width // 2), window=window
    )
    return (LayerConfig(mixer=attention, ffn=GatedMLPConfig(2 * width)),) * number


def tiny(kind: str) -> ByteModel:
    torch.manual_seed(0)
    sizes = {"global_size": 64, "local_size": 32, "global_layers": layers(64, 2)}
    if kind == "megabyte":
        return MegabyteConfig(patch_size=4, local_layers=layers(32, 1), **sizes).build()
    return SpaceByteConfig(local_layers=layers(32, 1, window=16), **sizes).build()


both = pytest.mark.parametrize("kind", ["megabyte", "space_byte"])


def test_ids_are_those_of_the_byte_tokenizer() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (VOCAB_SIZE, END_OF_TEXT)
    assert tokenizer.encode("\0", add_special_tokens=False) == [FIRST_BYTE]


@both
def test_a_byte_is_predicted_from_all_before_it_and_nothing_else(kind) -> None:
    model, ids = tiny(kind), torch.tensor(ByteTokenizer().encode(TEXT)[:27])
    embedded: list[torch.Tensor] = []

    def keep(_module, _inputs, output) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.register_forward_hook(keep)
    logits = model.logits(ids)
    for place in range(len(ids)):
        grads = torch.autograd.grad(
            logits[place].logsumexp(-1), embedded, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        seen = sum(grad.norm(dim=-1)[: len(ids)] for grad in grads) > 0
        assert seen.nonzero().flatten().tolist() == list(range(place + 1))


@both
@torch.inference_mode()
def test_packed_texts_of_any_length_and_prefixes_are_as_if_alone(kind) -> None:
    model, ids = tiny(kind), torch.tensor(ByteTokenizer().encode(TEXT))
    lengths = [9, 1, 8, len(ids) - 18]
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed = model.unembed(model(ids, positions, PackedContext(lengths)))
    alone = [model.logits(document) for document in ids.split(lengths)]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=0)
    whole = model.logits(ids)
    for length in (1, 5, 8, 13):
        torch.testing.assert_close(model.logits(ids[:length]), whole[:length], atol=1e-5, rtol=0)


@both
def test_large_layers_run_once_in_a_patch_or_word(kind) -> None:
    model, ids = tiny(kind), torch.tensor(ByteTokenizer().encode(TEXT))
    seen: list[int] = []
    model.global_stack.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model.logits(ids)
    raw = TEXT.encode()
    words = 1 + sum(spacelike(raw, at) and not spacelike(raw, at - 1) for at in range(1, len(raw))) + 1
    assert seen == [math.ceil(len(ids) / 4) if kind == "megabyte" else words]


def spacelike(raw: bytes, at: int) -> bool:
    return re.fullmatch(rb"[A-Za-z0-9\x80-\xbf]", raw[at : at + 1]) is None


def test_boundaries_are_where_words_end() -> None:
    raw = "ab, cd  é你好\n".encode()
    found = boundaries(torch.tensor(list(raw)), [len(raw)]).nonzero().flatten().tolist()
    # The start, the comma (but not the space after it), the first of two spaces (and not é, which follows one), each
    # Chinese character, and the end of the line.
    assert found == [0, 2, 6, 10, 13, 16]
    two = torch.tensor([ord("a"), ord(" "), ord(" "), ord("b"), -2, ord(" ")])
    assert boundaries(two, [2, 4]).tolist() == [True, True, True, False, True, False]


@pytest.mark.slow
def test_every_byte_model_learns() -> None:
    """Held-out Python, in bits per byte: all are far below what the frequencies of bytes alone give."""
    text = corpus()
    frequencies = torch.bincount(text, minlength=256).double() / len(text)
    unigram = -(frequencies * frequencies.clamp_min(1e-12).log2()).sum().item()
    ids = text + FIRST_BYTE
    torch.manual_seed(0)
    mamba = read_config(mamba_byte(hidden_size=32, num_layers=1)).build()
    models = {"megabyte": tiny("megabyte"), "space_byte": tiny("space_byte"), "mamba_byte": mamba}
    bits = {}
    for name, model in models.items():
        fitted = fit(model, training_rows(ids, 8, 32, seed=0), FitConfig(steps=120, learning_rate=1e-2))
        assert sum(fitted.losses[-10:]) < 0.7 * sum(fitted.losses[:10])
        bits[name] = losses_by_position(model, held_out_rows(ids, 32, 32)).mean().item() / math.log(2)
    assert max(bits.values()) < unigram - 0.25, bits


def test_mamba_byte_is_a_model_like_any_other() -> None:
    model = read_config(mamba_byte(hidden_size=32, num_layers=2)).build()
    assert isinstance(model, Decoder)
    assert model.cache_specs
    assert model.config.eos_token_ids == (ByteTokenizer.eos_token_id,)
    assert model.logits(ByteTokenizer().encode("né")).shape == (4, 259)


@both
def test_a_cache_is_refused_and_so_is_a_width_that_patches_do_not_divide(kind) -> None:
    with pytest.raises(UnsupportedError, match="keeps no cache"):
        tiny(kind)(torch.tensor([5]), torch.tensor([0]), object())
    with pytest.raises(ValueError, match="not cut into 8 equal parts"):
        MegabyteConfig(patch_size=8, global_size=36, local_size=8, global_layers=(), local_layers=())
