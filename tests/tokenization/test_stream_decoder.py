"""The streaming decoder yields what decoding everything at once yields, and no half characters on the way."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders

from wootz.tokenization import StreamDecoder, Tokenizer

ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def make(tokens: list[str], decoder: decoders.Decoder, special: str) -> Tokenizer:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({token: id for id, token in enumerate(tokens)}, []))
    backend.decoder = decoder
    backend.add_tokens([AddedToken(special, special=True, normalized=False), AddedToken("tool é", normalized=False)])
    return Tokenizer(backend, bos_token_id=None, eos_token_ids=(), chat_template=None)


def byte_level() -> Tokenizer:
    halves = ["ðŁ", "ĺĢ", "ðŁĺ", "Ġthe", "ĠæĹ", "æĹ¥", "éĢ"]
    return make(ALPHABET + halves, decoders.ByteLevel(), "<|end|>")


def sentencepiece(*, strip: bool) -> Tokenizer:
    pieces = ["▁", "▁▁", "▁the", "日", "😀", "a▁b", "é"] + [f"<0x{byte:02X}>" for byte in range(256)]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return make(pieces, decoders.Sequence([*steps, *[decoders.Strip(" ", 1, 0)] * strip]), "</s>")


TOKENIZERS = {
    "byte-level": byte_level(),
    "sentencepiece": sentencepiece(strip=False),
    "sentencepiece, prefix space": sentencepiece(strip=True),
}

pushes = st.lists(st.lists(st.integers(-1, 300), max_size=6), max_size=40)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("skip_special_tokens", [True, False])
@given(pushes=pushes)
def test_pieces_join_to_the_whole(name: str, skip_special_tokens: bool, pushes: list[list[int]]) -> None:
    tokenizer = TOKENIZERS[name]
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip_special_tokens)
    text = "".join(decoder.push(ids) for ids in pushes) + decoder.flush()
    everything = [id for ids in pushes for id in ids]
    assert text == tokenizer.decode(everything, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text())
def test_a_character_comes_whole_with_its_last_byte(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    id_of = {tokenizer.token_bytes(id): id for id in reversed(range(tokenizer.vocab_size))}
    decoder = StreamDecoder(tokenizer, continues_text=True)
    for character in text:
        *first, last = character.encode()
        assert all(decoder.push([id_of[bytes([byte])]]) == "" for byte in first)
        assert decoder.push([id_of[bytes([last])]]) == character
    assert decoder.flush() == ""


@given(text=st.text(st.characters(codec="utf-8"), min_size=1))
def test_real_text_streams_back(text: str, smollm2: Tokenizer) -> None:
    ids = smollm2.encode(text)
    decoder = StreamDecoder(smollm2)
    pieces = [decoder.push([id]) for id in ids]
    assert "".join(pieces) + decoder.flush() == smollm2.decode(ids)


def test_valid_text_decodes_as_the_library_decodes_it() -> None:
    for tokenizer in TOKENIZERS.values():
        whole = [id for id in range(tokenizer.vocab_size) if is_text(tokenizer.token_bytes(id))]
        ids = [*reversed(whole), *whole]
        assert tokenizer.decode(ids) == tokenizer._backend.decode(ids)


def is_text(data: bytes) -> bool:
    try:
        return bool(data.decode())
    except UnicodeDecodeError:
        return False


def test_broken_bytes_become_replacement_characters_in_time() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    byte = {tokenizer.token_bytes(id): id for id in range(7, 263)}
    decoder = StreamDecoder(tokenizer)
    assert decoder.push([byte[b"\xf0"], byte[b"\x9f"]]) == ""
    assert decoder.push([byte[b"a"]]) == "\ufffda"  # the face will not come any more
    assert decoder.push([byte[b"\xe6"]]) == ""
    assert decoder.flush() == "\ufffd"


def test_only_the_first_space_of_a_text_is_the_encoders() -> None:
    tokenizer = TOKENIZERS["sentencepiece, prefix space"]
    space, the = 0, 2
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push([the]), decoder.push([the]), decoder.push([space])] == ["the", " the", " "]
    assert StreamDecoder(tokenizer, continues_text=True).push([the]) == " the"


def test_token_bytes_are_exact() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    assert {tokenizer.token_bytes(id) for id in range(256)} == {bytes([byte]) for byte in range(256)}
    assert tokenizer.token_bytes(256 + 3) == b" the"
    assert tokenizer.token_bytes(256 + 0) == "😀".encode()[:2]
    assert tokenizer.token_bytes(tokenizer.vocab_size - 1) == "tool é".encode()
    tokenizer = TOKENIZERS["sentencepiece"]
    assert [tokenizer.token_bytes(id) for id in (1, 2, 5, 7 + 255)] == [b"  ", b" the", b"a b", b"\xff"]
