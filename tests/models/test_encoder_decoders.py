"""T5 equals transformers: logits of packed pairs, gradients, what is saved, and greedy generation."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from wootz.core.errors import BadRequestError, UnsupportedError
from wootz.models import Decoder, load, read_config
from wootz.models.blocks.cross_attention import CrossAttention
from wootz.models.encoder import Encoder
from wootz.models.encoder_decoder import EncoderDecoder
from wootz.models.loading import load_encoder
from wootz.models.saving import save

SIZES = {
    "vocab_size": 97,
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
CASES = {"t5": {}, "t5-gated": {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 2}}
SOURCES = [[5, 6, 7, 8, 9, 10, 11, 12, 1], [40, 1], list(range(20, 60))]
TARGETS = [[0, 3, 4], [0, *range(50, 80)], [0]]


def saved(folder: Path, case: str) -> tuple[EncoderDecoder, transformers.PreTrainedModel]:
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**(SIZES | CASES[case]))).eval()
    theirs.set_attn_implementation("eager")
    for parameter in theirs.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    theirs.save_pretrained(folder)
    ours = load(folder)
    assert isinstance(ours, EncoderDecoder)
    return ours, theirs


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_packed_pairs_have_the_logits_of_transformers(tmp_path: Path, case: str) -> None:
    ours, theirs = saved(tmp_path, case)
    expected = [
        theirs(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target])).logits[0]
        for source, target in zip(SOURCES, TARGETS, strict=True)
    ]
    torch.testing.assert_close(ours.logits(SOURCES, TARGETS), torch.cat(expected), atol=1e-4, rtol=0)
    assert ours.num_parameters == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize("case", CASES)
def test_greedy_text_equals_transformers_and_the_source_is_read_once(tmp_path: Path, case: str) -> None:
    ours, theirs = saved(tmp_path, case)
    for source in SOURCES:
        # Its cache has as many layers as the encoder, so a deeper decoder only generates without one.
        settings = {"max_new_tokens": 20, "do_sample": False, "num_beams": 1, "use_cache": False}
        expected = theirs.generate(torch.tensor([source]), **settings)[0, 1:]
        with patch.object(CrossAttention, "remember", autospec=True, side_effect=CrossAttention.remember) as remember:
            assert ours.generate(source, max_new_tokens=20) == expected.tolist()
        assert remember.call_count == len(ours.config.layers)


def test_gradients_equal_transformers_and_are_written_under_its_names(tmp_path: Path) -> None:
    ours, theirs = saved(tmp_path / "model", "t5-gated")
    source, target = SOURCES[2], torch.tensor(TARGETS[1])
    F.cross_entropy(ours.logits([source], [target.tolist()])[:-1], target[1:]).backward()
    logits = theirs(input_ids=torch.tensor([source]), decoder_input_ids=target[None]).logits[0]
    F.cross_entropy(logits[:-1], target[1:]).backward()
    for model in (ours, theirs):
        for parameter in model.parameters():
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    save(ours, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    written = load_file(next((tmp_path / "ours").glob("*.safetensors")))
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    assert written.keys() == expected.keys() - {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    for name, tensor in written.items():
        assert (tensor - expected[name]).norm() <= 1e-3 * expected[name].norm().clamp_min(1e-6), name


@torch.inference_mode()
def test_the_encoder_alone_embeds(tmp_path: Path) -> None:
    _, theirs = saved(tmp_path / "whole", "t5")
    alone = transformers.T5EncoderModel.from_pretrained(tmp_path / "whole").eval()
    alone.save_pretrained(tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    (tmp_path / "whole" / "config.json").write_text(json.dumps(config | {"architectures": ["T5EncoderModel"]}))
    expected = torch.stack([alone(torch.tensor([source])).last_hidden_state[0].mean(0) for source in SOURCES])
    for folder in ("encoder", "whole"):  # the second holds a decoder that it does not want
        torch.testing.assert_close(load_encoder(tmp_path / folder).embed(SOURCES), expected, atol=1e-5, rtol=0)
    assert theirs.config.is_encoder_decoder


def test_it_learns_to_copy() -> None:
    torch.manual_seed(0)
    model = read_config({"model_type": "t5", **SIZES}).build()
    assert isinstance(model, EncoderDecoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(50):
        sources = torch.randint(5, 15, (4, 6)).tolist()
        logits = model.logits(sources, [[0, *source[:-1]] for source in sources])
        loss = F.cross_entropy(logits, torch.tensor(sources).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match="nothing to read"):
        saved(tmp_path, "t5")[0].generate([])


def test_an_engine_refuses_it_with_one_clear_error(tmp_path: Path) -> None:
    model, _ = saved(tmp_path, "t5")
    with pytest.raises(UnsupportedError, match="which the engine does not serve"):
        _ = model.cache_specs


SWITCH = {
    "model_type": "wootz",
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "positions": "t5",
}


def test_one_switch_chooses_who_may_look_at_whom(tmp_path: Path) -> None:
    """Changing the last token changes the first one's state only where tokens look ahead."""
    torch.manual_seed(0)
    decoder, encoder, both = (
        read_config(SWITCH | {"kind": kind}).build().eval() for kind in ("decoder", "encoder", "encoder-decoder")
    )
    assert isinstance(decoder, Decoder)
    assert isinstance(encoder, Encoder)
    assert isinstance(both, EncoderDecoder)
    text, changed = [7, 8, 9, 10], [7, 8, 9, 11]
    assert torch.equal(decoder.logits(text)[:3], decoder.logits(changed)[:3])
    assert not torch.equal(encoder.hidden([text])[:3], encoder.hidden([changed])[:3])
    assert torch.equal(both.logits([text], [text])[:3], both.logits([text], [changed])[:3])
    assert not torch.equal(both.logits([text], [text])[:3], both.logits([changed], [text])[:3])
    for kind, model in (("decoder", decoder), ("encoder", encoder), ("encoder-decoder", both)):
        save(model, tmp_path / kind)
        assert type(load(tmp_path / kind)) is type(model)
    with pytest.raises(ValueError, match='kind "sphinx" is not known'):
        read_config(SWITCH | {"kind": "sphinx"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_each_kind_trains(kind: str) -> None:
    """An encoder to fill a gap, an encoder-decoder to write what it reads; decoders train elsewhere."""
    torch.manual_seed(0)
    model = read_config(SWITCH | {"kind": kind}).build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(50):
        texts = (torch.randint(5, 45, (8, 1)) + torch.arange(5)).tolist()  # runs of numbers: 7 8 9 10 11
        wanted = torch.tensor(texts)
        if isinstance(model, Encoder):
            masked = [[*text[:2], 49, *text[3:]] for text in texts]
            hidden = model.hidden(masked).view(8, 5, -1)[:, 2]
            loss = F.cross_entropy(hidden @ model.embedding.weight.T, wanted[:, 2])
        else:
            assert isinstance(model, EncoderDecoder)
            loss = F.cross_entropy(model.logits(texts, [[0, *text[:-1]] for text in texts]), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
