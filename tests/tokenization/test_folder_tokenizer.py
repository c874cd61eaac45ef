"""Folders in Hugging Face layout: the same ids, text, roles and template that transformers reads from them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers

from wootz.core import BadRequestError, ModelFileError, NotFoundError
from wootz.tokenization import load_tokenizer

from .trained_sentencepiece import train_sentencepiece

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def trained(some_texts: list[str]) -> Any:
    """A byte-level BPE trained here, as transformers holds it."""
    transformers = pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<s>", "</s>", "<|eot|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(some_texts, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(["<think>", "naïve token"])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def folder(trained: Any, tmp_path: Path) -> Path:
    trained.save_pretrained(tmp_path)
    return tmp_path


def test_ids_and_text_equal_transformers(trained: Any, folder: Path, some_texts: list[str]) -> None:
    ours = load_tokenizer(folder)
    for text in [*some_texts, "", " ", "a<think>b naïve token c</s><|eot|>"]:
        ids = ours.encode(text)
        assert ids == trained.encode(text)
        assert ours.encode(text, add_special_tokens=False) == trained.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == trained.decode(ids, skip_special_tokens=True)
    assert ours.vocab_size == len(trained)


def test_chat_ids_equal_transformers_and_bos_is_not_doubled(trained: Any, folder: Path) -> None:
    messages = [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "yes"}]
    ids = load_tokenizer(folder).encode_chat(messages)
    assert ids == trained.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids.count(0) == 1


def test_roles_come_from_the_config_files(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (0, {1})
    assert tokenizer.special_ids == {0, 1, 2}
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (folder / "config.json").write_text('{"eos_token_id": 7}')
    assert load_tokenizer(folder).eos_token_ids == {1, 2, 7}


def test_older_layouts_of_roles_and_templates(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain {{ bos_token }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named, "eos_token": None}))
    roles = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "<|eot|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (0, {2})
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.render([]) == "plain <s>"


def test_a_bare_tokenizer_json_is_enough(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name != "tokenizer.json":
            file.unlink()
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.chat_template) == (None, frozenset(), None)
    assert tokenizer.decode(tokenizer.encode("text")) == "text"


def test_truncation_saved_with_a_tokenizer_does_not_cut_prompts(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert len(load_tokenizer(folder).encode("one two three four five six")) > 4


def test_sentencepiece_bpe_folder_written_by_transformers(tmp_path: Path, some_texts: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    model = train_sentencepiece(some_texts, byte_fallback=True)
    (tmp_path / "tokenizer.model").write_bytes(model.serialized_model_proto())
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    ours = load_tokenizer(tmp_path / "saved")
    for text in [*some_texts, "", " ", "a", " a"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_sentencepiece_unigram_folder(tmp_path: Path, some_texts: list[str]) -> None:
    model = train_sentencepiece(some_texts, "unigram", byte_fallback=True)
    pieces = [(model.id_to_piece(id), model.get_score(id)) for id in range(model.get_piece_size())]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, model.unk_id(), byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    for text in some_texts:
        ids = ours.encode(text)
        assert ids == model.encode(text)
        assert ours.decode(ids) == model.decode(ids)


# --- folders that cannot be used ------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tokenizer.json", "{", "tokenizer.json can't be used"),
        ("tokenizer.json", '{"model": {"type": "Rune"}}', "tokenizer.json can't be used"),
        ("tokenizer_config.json", "{]", "tokenizer_config.json is not JSON"),
        ("generation_config.json", "[1]", "generation_config.json is not a JSON object"),
        ("special_tokens_map.json", b"\xff\xfe", "special_tokens_map.json is not text"),
        ("chat_template.jinja", "{% for %}", "chat template, line 1"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not text"),
    ],
)
def test_a_broken_file_is_named(file: str, content: str | bytes, says: str, folder: Path) -> None:
    (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ModelFileError) as caught:
        load_tokenizer(folder)
    assert str(caught.value).startswith(f"{folder}: {says}")
    assert "\n" not in str(caught.value)


def test_a_vocabulary_without_exact_bytes_is_refused(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a</w>": 0}, []))
    backend.decoder = decoders.BPEDecoder()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelFileError, match=r"only byte-level, SentencePiece and .* \(decoder: BPEDecoder\)"):
        load_tokenizer(tmp_path)


def test_text_that_is_not_unicode_is_a_bad_request(folder: Path) -> None:
    with pytest.raises(BadRequestError, match="lone surrogate"):
        load_tokenizer(folder).encode("a\ud800")


# --- the import -----------------------------------------------------------------------------------------------


def test_the_room_says_which_extra_it_needs() -> None:
    code = "import sys; sys.modules['tokenizers'] = None; import wootz.tokenization"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtraError: wootz.tokenization needs \"tokenizers\"; pip install 'wootz[engine]'" in result.stderr


def test_the_room_needs_no_pytorch() -> None:
    code = "import sys, wootz.tokenization; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
