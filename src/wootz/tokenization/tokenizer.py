"""`Tokenizer`: text to ids as the Rust `tokenizers` library has them, ids to text by way of bytes.

Every token *is* a byte string (`token_bytes`), and a text is the UTF-8 reading of its tokens' bytes laid end to end.
Decoding that way rather than through the library makes log-probabilities, whole decoding and `StreamDecoder` agree
by construction. On valid UTF-8 it gives the library's text; on broken UTF-8 each maximal broken part becomes one
U+FFFD (what Python and the WHATWG encoding standard do).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import tokenizers

from wootz.core.errors import BadRequestError
from wootz.tokenization.chat_encoding import EncodedChat, encode_chat, encode_chat_masked
from wootz.tokenization.chat_template import ChatTemplate
from wootz.tokenization.fast import FastEncoder
from wootz.tokenization.segments import SegmentCache
from wootz.tokenization.special_tokens import ControlSyntax, LiteralEncoder, control_ids
from wootz.tokenization.spelling import spelling_of


class Tokenizer:
    """One model's tokenizer, as `load_tokenizer` makes it. Immutable; threads may share it.

    ``bos_token_id`` opens a document, where the model has such a token; any of ``eos_token_ids`` ends an answer;
    ``special_ids`` are left out in decoding; ``control_ids`` are those that no user's text may yield. Ids lie in
    ``range(vocab_size)``. A model's embedding may be padded beyond that: ids out there decode to nothing.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None,
        eos_token_ids: Iterable[int],
        chat_template: ChatTemplate | None,
    ) -> None:
        self._backend = backend
        self.bos_token_id = bos_token_id
        self.eos_token_ids = frozenset(eos_token_ids)
        self.chat_template = chat_template

        vocabulary = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        spelling = spelling_of(backend)
        self.strips_leading_space = spelling.strips_leading_space
        self.added_ids = frozenset(added)
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.control_ids = control_ids(backend, chat_template.source if chat_template else None)
        self.unknown_id = _unknown_id(backend)
        """What stands for text that the vocabulary cannot spell; None where that cannot happen."""
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self._bytes = [b""] * self.vocab_size
        for text, id in vocabulary.items():
            literal = id in self.special_ids or (id in added and not spelling.covers_added_tokens)
            self._bytes[id] = text.encode() if literal else spelling.to_bytes(text)

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        control: Literal["parse", "text", "forbid"] = "parse",
    ) -> list[int]:
        """Token ids of ``text``. ``add_special_tokens`` adds what the model wants around a document (mostly BOS).

        Control tokens written out in ``text`` are parsed as such, or are text like any other (for what a user wrote),
        or are forbidden. Raises `BadRequestError` for one that is, and for a text that is not Unicode (a lone
        surrogate).
        """
        try:
            if control != "parse" and self.control_ids.intersection(self._encode(text)):
                if control == "text":
                    before, after = self._frame if add_special_tokens else ([], [])
                    return [*before, *self.literal.encoding(text)[0], *after]
                found = next(id for id in self._encode(text) if id in self.control_ids)
                raise BadRequestError(f"the text holds the control token {self.token_bytes(found).decode()}")
            return self._encode(text, add_special_tokens)
        except TypeError:
            raise BadRequestError("the text is not valid Unicode: it holds a lone surrogate") from None

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation as the model's chat template writes it. The template writes BOS itself, and only
        it writes control tokens: one that is spelled out in a message is text.

        Raises `UnsupportedError` for a model without a template, `BadRequestError` for messages it refuses.
        """
        return encode_chat(self, messages, tools=tools, add_generation_prompt=add_generation_prompt)

    def encode_chat_masked(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> EncodedChat:
        """The conversation for training: its ids, and which of them the model itself is to write (the mask)."""
        return encode_chat_masked(self, messages, tools=tools)

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        try:
            batch = self._fast.encode_batch(texts) if self._fast else [None] * len(texts)
            before, after = self._frame if add_special_tokens else ([], [])
            left = iter(
                self._backend.encode_batch_fast(
                    [text for text, ids in zip(texts, batch, strict=True) if ids is None], add_special_tokens=False
                )
            )
        except TypeError:
            raise BadRequestError("a text is not valid Unicode: it holds a lone surrogate") from None
        return [[*before, *(next(left).ids if ids is None else ids), *after] for ids in batch]

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Two texts as one, as a cross-encoder reads them (``[CLS] first [SEP] second [SEP]``): ids, and of which text
        each is. Control tokens written out in either are parsed."""
        try:
            encoding = self._backend.encode(first, second)
        except TypeError:
            raise BadRequestError("the text is not valid Unicode: it holds a lone surrogate") from None
        return encoding.ids, encoding.type_ids

    def _encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        ids = self._fast.encode(text) if self._fast else None
        if ids is None:
            ids = self._backend.encode(text, add_special_tokens=False).ids
        before, after = self._frame if add_special_tokens else ([], [])
        return [*before, *ids, *after]

    @cached_property
    def _fast(self) -> FastEncoder | None:
        """Made when first needed, which for the largest vocabularies takes a second or two."""
        return FastEncoder.of(self._backend)

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids that the model wants before and after a document."""
        framed, bare = (self._backend.encode("a", add_special_tokens=special).ids for special in (True, False))
        start = next(n for n in range(len(framed) + 1) if framed[n : n + len(bare)] == bare)
        return framed[:start], framed[start + len(bare) :]

    def encoding(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the characters of ``text`` that each stands for."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    @cached_property
    def control_syntax(self) -> ControlSyntax:
        text = {id: self.token_bytes(id).decode() for id in self.control_ids}
        special = [text[id] for id in text if id in self.special_ids]
        return ControlSyntax(special, [text[id] for id in text if id not in self.special_ids])

    @cached_property
    def literal(self) -> LiteralEncoder:
        return LiteralEncoder(self._backend, self.control_ids)

    @cached_property
    def segments(self) -> SegmentCache:
        return SegmentCache(self._backend, self.control_ids, self._encode)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``token_ids``; equal to what a `StreamDecoder` yields for them in any partition."""
        skip = self.special_ids if skip_special_tokens else frozenset()
        text = b"".join(self.token_bytes(id) for id in token_ids if id not in skip).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """Exactly the bytes this token stands for inside a text. They need not be whole characters."""
        return self._bytes[token_id] if 0 <= token_id < self.vocab_size else b""

    def with_chat_template(self, template: ChatTemplate) -> Tokenizer:
        return Tokenizer(
            self._backend,
            bos_token_id=self.bos_token_id,
            eos_token_ids=self.eos_token_ids,
            chat_template=template,
        )

    def token_to_id(self, text: str) -> int | None:
        """The id of a token by its spelling in the vocabulary (``Ġthe``, ``<|im_end|>``)."""
        return self._backend.token_to_id(text)

    def token_spelling(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id)

    def to_json(self) -> str:
        """The content of a ``tokenizer.json``: vocabulary, merges, normalizer, word cut, added tokens."""
        return self._backend.to_str()


def _unknown_id(backend: tokenizers.Tokenizer) -> int | None:
    name = getattr(backend.model, "unk_token", None)
    if name is None and isinstance(backend.model, tokenizers.models.Unigram):
        name = "<unk>"
    return backend.token_to_id(name) if name else None
