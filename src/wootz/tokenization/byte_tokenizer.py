"""`ByteTokenizer`: no vocabulary at all. A text is its UTF-8 bytes (ByT5, arXiv 2105.13626).

259 ids: padding 0, end of text 1, unknown 2, then the 256 bytes from 3 on. Any bytes come back exactly, no language is
favoured, and sequences are as long as the text has bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

from wootz.core.errors import BadRequestError


class ByteTokenizer:
    """The interface of `Tokenizer`, as far as text without control tokens needs it. Its specials can't be written."""

    pad_token_id, eos_token_id, unk_token_id = 0, 1, 2
    bos_token_id = None
    eos_token_ids = frozenset({1})
    special_ids = control_ids = frozenset({0, 1, 2})
    vocab_size = 259
    chat_template = None
    strips_leading_space = False

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of ``text``, closed by the end of text. Raises `BadRequestError` for a lone surrogate."""
        try:
            ids = [byte + 3 for byte in text.encode()]
        except UnicodeEncodeError:
            raise BadRequestError("the text is not valid Unicode: it holds a lone surrogate") from None
        return [*ids, self.eos_token_id] if add_special_tokens else ids

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text; each maximal broken part of it becomes one U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id - 3]) if 3 <= token_id < self.vocab_size else b""
