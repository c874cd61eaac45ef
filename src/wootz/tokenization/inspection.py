"""A tokenizer looked at: what a token is, how it came to be, where the tokens of a text begin and end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from wootz.core.errors import BadRequestError
from wootz.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenView:
    id: int
    spelling: str | None
    """As the vocabulary writes it; None for an id that nothing has."""
    data: bytes
    kind: Literal["text", "partial", "control", "added", "unused"]
    """``partial``: not whole UTF-8 characters, so it has no text of its own."""

    @property
    def text(self) -> str:
        """What it adds to a text, bytes of a partial character in hexadecimal."""
        return f"⟨{self.data.hex()}⟩" if self.kind == "partial" else self.data.decode("utf-8", "replace")


def view_token(tokenizer: Tokenizer, token_id: int) -> TokenView:
    spelling, data = tokenizer.token_spelling(token_id), tokenizer.token_bytes(token_id)
    if spelling is None:
        kind = "unused"
    elif token_id in tokenizer.control_ids:
        kind = "control"
    elif token_id in tokenizer.added_ids:
        kind = "added"
    else:
        kind = "text" if _is_text(data) else "partial"
    return TokenView(token_id, spelling, data, kind)


def view_tokens(tokenizer: Tokenizer, ids: Iterable[int]) -> list[TokenView]:
    return [view_token(tokenizer, id) for id in ids]


def _is_text(data: bytes) -> bool:
    try:
        return data.decode() is not None
    except UnicodeDecodeError:
        return False


@dataclass(frozen=True)
class MergeTree:
    """How a BPE builds a token: of ``parts`` by the merge of this ``rank``; a letter of the alphabet has neither."""

    spelling: str
    rank: int | None = None
    parts: tuple[MergeTree, ...] = field(default=())

    def lines(self, indent: int = 0) -> Iterator[str]:
        yield "  " * indent + self.spelling + (f"  (merge {self.rank})" if self.rank is not None else "")
        for part in self.parts:
            yield from part.lines(indent + 1)


def merge_tree(tokenizer: Tokenizer, token_id: int) -> MergeTree:
    """Raises `BadRequestError` for a vocabulary that is not made by merges."""
    model = json.loads(tokenizer.to_json())["model"]
    if model["type"] != "BPE":
        raise BadRequestError(f"a {model['type']} vocabulary has no merges")
    spelling = tokenizer.token_spelling(token_id)
    if spelling is None:
        raise BadRequestError(f"there is no token {token_id}")
    made_by: dict[str, tuple[int, str, str]] = {}
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        made_by.setdefault(left + right, (rank, left, right))

    def tree(text: str) -> MergeTree:
        if text not in made_by:
            return MergeTree(text)
        rank, left, right = made_by[text]
        return MergeTree(text, rank, (tree(left), tree(right)))

    return tree(spelling)
