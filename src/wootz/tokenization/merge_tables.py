"""One set of ids, several ways to merge: a document is encoded with the table that suits it (code, prose, a script).

A table trained on code spells code in fewer tokens, and prose in more. Here every table keeps its own merges and all
share one list of tokens, so a token means the same bytes whichever table made it: decoding asks nobody, and a model
has one embedding. Which table a document gets is not guessed from its looks: it is encoded with each, and the shortest
wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import tokenizers

from wootz.core.errors import BadRequestError
from wootz.tokenization.ranks import byte_level_tokenizer, ranks_of
from wootz.tokenization.train import train_tokenizer


@dataclass(frozen=True)
class Document:
    table: str
    ids: list[int]


class MergeTables:
    """``tables`` are byte-level BPEs by name. Ids below 256 are the bytes; then come the tokens of all tables, each
    once, in the order of their names and ranks."""

    def __init__(self, tables: Mapping[str, tokenizers.Tokenizer], patterns: Mapping[str, str]) -> None:
        if not tables:
            raise BadRequestError("no tables of merges")
        ranks = {name: ranks_of(tables[name]) for name in tables}
        tokens = dict.fromkeys([bytes([byte]) for byte in range(256)])
        for own in ranks.values():
            tokens |= dict.fromkeys(sorted(own, key=own.__getitem__))
        self.tokens: Sequence[bytes] = list(tokens)
        id_of = {token: id for id, token in enumerate(self.tokens)}
        self._shared = {name: {rank: id_of[token] for token, rank in own.items()} for name, own in ranks.items()}
        self._tables = {name: byte_level_tokenizer(own, pattern=patterns[name]) for name, own in ranks.items()}

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str, table: str | None = None) -> Document:
        """With this table, or with the one that needs the fewest tokens (of equals, the first)."""
        names = [table] if table is not None else [*self._tables]
        return min((Document(name, self._encode(text, name)) for name in names), key=lambda found: len(found.ids))

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.tokens[id] for id in ids).decode("utf-8", "replace")

    def _encode(self, text: str, name: str) -> list[int]:
        return [self._shared[name][id] for id in self._tables[name].encode(text, add_special_tokens=False).ids]


def train_tables(
    texts: Mapping[str, Sequence[str]], vocab_size: int, *, patterns: Mapping[str, str] | None = None
) -> MergeTables:
    """A table of ``vocab_size`` tokens from each kind's texts; ``patterns`` as in `train_tokenizer`."""
    cuts = {name: (patterns or {}).get(name, "cl100k") for name in texts}
    trained = {
        name: train_tokenizer(own, vocab_size=vocab_size, pattern=cuts[name], special_tokens=())
        for name, own in texts.items()
    }
    return MergeTables(trained, cuts)
