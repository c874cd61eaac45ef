"""A model with new tokens: transformers loads it, old rows and old texts stay, and the new rows mean something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import write_tiny_model

from wootz.core import BadRequestError, ModelFileError
from wootz.tokenization import load_tokenizer
from wootz.tokenization.expand import expand_vocabulary, report
from wootz.tokenization.fingerprint import check_fingerprint, write_fingerprint

TERMS = ["myocardial", " myocardial", "心肌梗死", " the"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("expand"))
    write_fingerprint(folder, load_tokenizer(folder))
    return folder


@pytest.mark.parametrize("init", ["random", "mean", "subpiece-mean"])
def test_the_new_model_is_whole(model: Path, tmp_path: Path, init) -> None:
    out = tmp_path / "out"
    expansion = expand_vocabulary(model, out, TERMS, init=init, pad_to_multiple_of=8)
    old, new = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert expansion.tokens == ("myocardial", " myocardial", "心肌梗死")  # " the" was one token before
    assert new[name].shape[0] == expansion.num_rows == json.loads((out / "config.json").read_text())["vocab_size"]
    assert expansion.num_rows % 8 == 0
    assert torch.equal(new[name][: len(old[name])], old[name])
    assert all(torch.equal(old[key], new[key]) for key in old if key != name)
    assert expansion.new_rows().nonzero().flatten().tolist() == list(expansion.ids)
    rows = {
        "mean": old[name].mean(0).expand(3, -1),
        "subpiece-mean": torch.stack([old[name][list(pieces)].mean(0) for pieces in expansion.pieces]),
    }
    if init in rows:
        torch.testing.assert_close(new[name][list(expansion.ids)], rows[init])

    tokenizer = load_tokenizer(out)
    text = "an acute myocardial 心肌梗死 of the heart"
    ids = tokenizer.encode(text)
    assert set(expansion.ids[1:]) <= set(ids)
    assert tokenizer.decode(ids) == text
    check_fingerprint(out, tokenizer)

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert transformers.AutoTokenizer.from_pretrained(out)(text)["input_ids"] == ids
    assert theirs(torch.tensor([ids])).logits.shape == (1, len(ids), expansion.num_rows)


def test_padding_is_used_before_the_embedding_grows(model: Path, tmp_path: Path) -> None:
    padded, twice = tmp_path / "padded", tmp_path / "twice"
    first = expand_vocabulary(model, padded, ["myocardial"], pad_to_multiple_of=64)
    second = expand_vocabulary(padded, twice, ["bradycardia"])
    assert second.num_rows == first.num_rows
    assert second.ids == (first.ids[0] + 1,)


def test_the_report_says_what_is_saved_and_what_it_takes(model: Path, tmp_path: Path) -> None:
    expansion = expand_vocabulary(model, tmp_path / "out", TERMS)
    texts = ["acute myocardial infarction. " * 4, "心肌梗死"]
    seen = report(load_tokenizer(model), load_tokenizer(tmp_path / "out"), expansion, texts)
    assert seen.tokens_after < seen.tokens_before
    assert (seen.rarest, seen.rarest_count, seen.bytes_to_learn) == ("myocardial", 0, None)
    seen = report(load_tokenizer(model), load_tokenizer(tmp_path / "out"), expansion, [*texts, "myocardial"])
    assert seen.bytes_to_learn == 100 * sum(len(text.encode()) for text in [*texts, "myocardial"])


def test_what_cannot_be_expanded(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match="nothing to add"):
        expand_vocabulary(model, tmp_path / "a", [" the"])
    with pytest.raises(BadRequestError, match="not empty"):
        expand_vocabulary(model, model, ["xyzzy"])


# --- the fingerprint --------------------------------------------------------------------------------------------


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    write_fingerprint(folder, load_tokenizer(folder))
    check_fingerprint(folder, load_tokenizer(folder))

    file = folder / "tokenizer.json"
    original = file.read_text()
    state = json.loads(original)
    vocabulary = state["model"]["vocab"]
    a, b = "Ġthe", "Ġof"
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(state))
    with pytest.raises(ModelFileError, match=r"\(vocabulary differ\)"):
        check_fingerprint(folder, load_tokenizer(folder))

    file.write_text(original)
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("<|im_start|>assistant", "assistant"))
    with pytest.raises(ModelFileError, match=r"\(chat_template differ\)"):
        check_fingerprint(folder, load_tokenizer(folder))


def test_a_folder_without_a_fingerprint_is_taken_as_it_is(tiny_model_folder: Path) -> None:
    check_fingerprint(tiny_model_folder, load_tokenizer(tiny_model_folder))
