"""`Tokenizer`: text to ids by the Rust `tokenizers` library, ids to text by way of bytes.

Every token *is* a byte string (`token_bytes`), and a text is the UTF-8 reading of its tokens' bytes laid end to end.
Decoding that way rather than through the library makes log-probabilities, whole decoding and `StreamDecoder` agree
by construction. On valid UTF-8 it gives the library's text; on broken UTF-8 each maximal broken part becomes one
U+FFFD (what Python and the WHATWG encoding standard do).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from wootz.core.errors import BadRequestError, UnsupportedError
from wootz.tokenization.chat_template import ChatTemplate
from wootz.tokenization.spelling import spelling_of


class Tokenizer:
    """One model's tokenizer, as `load_tokenizer` makes it. Immutable; threads may share it.

    ``bos_token_id`` opens a document, where the model has such a token; any of ``eos_token_ids`` ends an answer;
    ``special_ids`` are the control tokens, which decoding leaves out. Ids lie in ``range(vocab_size)``. A model's
    embedding may be padded beyond that: ids out there decode to nothing.
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
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self._bytes = [b""] * self.vocab_size
        for text, id in vocabulary.items():
            literal = id in self.special_ids or (id in added and not spelling.covers_added_tokens)
            self._bytes[id] = text.encode() if literal else spelling.to_bytes(text)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``. ``add_special_tokens`` adds what the model wants around a document (mostly BOS).

        Special tokens written out in ``text`` are recognised. Raises `BadRequestError` for a text that is not
        Unicode (a lone surrogate).
        """
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:
            raise BadRequestError("the text is not valid Unicode: it holds a lone surrogate") from None

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation as the model's chat template writes it. The template writes BOS itself.

        Raises `UnsupportedError` for a model without a template, `BadRequestError` for messages it refuses.
        """
        if self.chat_template is None:
            raise UnsupportedError("this model has no chat template; use /v1/completions", param="messages")
        text = self.chat_template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        return self.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``token_ids``; equal to what a `StreamDecoder` yields for them in any partition."""
        skip = self.special_ids if skip_special_tokens else frozenset()
        text = b"".join(self.token_bytes(id) for id in token_ids if id not in skip).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """Exactly the bytes this token stands for inside a text. They need not be whole characters."""
        return self._bytes[token_id] if 0 <= token_id < self.vocab_size else b""
