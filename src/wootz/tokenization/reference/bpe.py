"""Byte-pair encoding: merge the most frequent neighbours, again and again (Gage 1994; Sennrich, arXiv 1508.07909).

Text is cut into words first and no merge crosses a word, so training needs each distinct word once, with its count.
What a word's smallest symbols are makes the kinds: characters and an end-of-word mark (Sennrich), bytes (GPT-2), or
characters with the space as "▁" (SentencePiece). All of them are `train_merges`.

**Ties.** Pairs of equal frequency are the rule, not the exception, in a small corpus, so a trainer is only defined
together with its tie-break. Sennrich's kind takes the pair that stands first in the corpus: on the words lower, lowest,
newer, wider, where (w,e), (e,r) and (r,</w>) all occur three times, that is (w,e). The others take the pair with the
smaller ids, where symbols have ids in order and merges as they are made: what `tokenizers` does, and rustbpe.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Pair = tuple[int, int]
END_OF_WORD = "</w>"


def train_merges(
    words: Sequence[tuple[list[int], int]], num_merges: int, first_new: int, *, by_ids: bool = False
) -> list[Pair]:
    """The merges, in order; merge n makes symbol ``first_new + n``. ``words`` are symbols with a count.

    A merge changes the counts only of pairs beside it, so counts are kept and not taken anew: ``words_with`` finds the
    words, and a heap the most frequent pair. What the heap says may be outdated: then the pair is put back with its
    true count, which is lower, since a pair's count grows only in the step that makes a symbol of it.
    """
    symbols = [list(word) for word, _ in words]
    counts: Counter[Pair] = Counter()
    words_with: dict[Pair, set[int]] = {}
    length: dict[int, int] = {}  # of the symbols that merges make, in smallest symbols
    for index, (word, count) in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += count
            words_with.setdefault(pair, set()).add(index)

    def first_place(pair: Pair) -> tuple[int, int]:
        for index in sorted(words_with[pair]):
            at = 0
            for now in pairwise(symbols[index]):
                if now == pair:
                    return index, at
                at += length.get(now[0], 1)
        raise AssertionError(f"{pair} is counted and nowhere")

    def entry(pair: Pair) -> tuple[int, Pair, Pair]:
        return -counts[pair], pair if by_ids else first_place(pair), pair

    heap = [entry(pair) for pair in counts]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < num_merges:
        frequency, _, pair = heapq.heappop(heap)
        if counts[pair] != -frequency:
            if counts[pair] > 0:
                heapq.heappush(heap, entry(pair))
            continue
        new = first_new + len(merges)
        merges.append(pair)
        length[new] = sum(length.get(symbol, 1) for symbol in pair)
        changed: dict[Pair, None] = {}
        for index in sorted(words_with.pop(pair)):
            word, count = symbols[index], words[index][1]
            for old in pairwise(word):
                counts[old] -= count
            symbols[index] = word = merge(word, pair, new)
            for now in pairwise(word):
                counts[now] += count
                words_with.setdefault(now, set()).add(index)
                if new in now:
                    changed[now] = None
        for now in changed:
            heapq.heappush(heap, entry(now))
    return merges


def merge(word: Sequence[int], pair: Pair, new: int) -> list[int]:
    """``word`` with each occurrence of ``pair``, from the left, made one."""
    merged: list[int] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] = new
        else:
            merged.append(symbol)
    return merged


@dataclass
class Bpe:
    """Symbols by id, and the merges in order of rank. It encodes words; cutting text into them is the caller's."""

    symbols: list[str] | list[bytes]
    merges: list[Pair]
    cache_size: int = 10_000
    hits: int = field(default=0, init=False)
    misses: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        first = len(self.symbols) - len(self.merges)
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._made = {pair: first + rank for rank, pair in enumerate(self.merges)}
        self._id_of: Mapping[str | bytes, int] = {symbol: id for id, symbol in enumerate(self.symbols[:first])}
        self._cache: OrderedDict[tuple[str | bytes, ...], list[int]] = OrderedDict()

    def encode_word(
        self, word: Sequence[str] | Sequence[bytes], *, dropout: float = 0.0, rng: random.Random | None = None
    ) -> list[int]:
        """Ids of a word given as its smallest symbols: the neighbours whose merge came first in training are merged
        first, until none can be. Words repeat, so the last ``cache_size`` are remembered.

        ``dropout`` skips each possible merge with that probability, at each step (BPE-dropout, arXiv 1910.13267): a
        model in training sees many spellings of a word. 0 is plain BPE, 1 leaves the smallest symbols.
        """
        key = tuple(word)
        if not dropout and key in self._cache:
            self.hits += 1
            self._cache.move_to_end(key)
            return self._cache[key]
        ids = [self._id_of[symbol] for symbol in word]
        rng = rng or random.Random()
        while True:
            possible = [
                (self._ranks[pair], at)
                for at, pair in enumerate(pairwise(ids))
                if pair in self._ranks and not (dropout and rng.random() < dropout)
            ]
            if not possible:
                break
            _, at = min(possible)
            ids[at : at + 2] = [self._made[ids[at], ids[at + 1]]]
        if not dropout:
            self.misses += 1
            self._cache[key] = ids
            if len(self._cache) > self.cache_size:
                self._cache.popitem(last=False)
        return ids

    @property
    def hit_rate(self) -> float:
        """Of all words encoded, the share that was remembered."""
        return self.hits / max(1, self.hits + self.misses)


def train_character_bpe(texts: Iterable[str], num_merges: int) -> Bpe:
    """Sennrich's BPE: words at white space, each ending with ``</w>``, so that "er" at the end of a word is another
    symbol than inside of one. Spaces are not kept, and a character that training never saw has no id."""
    words = Counter(word for text in texts for word in text.split())
    return _train(words, lambda word: [*word, END_OF_WORD], num_merges, by_ids=False)


def train_sentencepiece_bpe(texts: Iterable[str], num_merges: int) -> Bpe:
    """SentencePiece's: the space is a character, "▁", and belongs to the word behind it."""
    words = Counter(word for text in texts for word in re.findall("▁[^▁]*", "▁" + text.replace(" ", "▁")))
    return _train(words, list, num_merges, by_ids=True)


def train_byte_bpe(words: Iterable[bytes], vocab_size: int) -> Bpe:
    """GPT-2's: symbols are the 256 bytes, so nothing is unknown. ``words`` as the pre-tokeniser cuts them; ids are
    ranks."""
    counted = [([*word], count) for word, count in Counter(words).items()]
    merges = train_merges(counted, vocab_size - 256, 256, by_ids=True)
    symbols = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        symbols.append(symbols[left] + symbols[right])
    return Bpe(symbols, merges)


def _train(words: Mapping[str, int], split: Callable[[str], list[str]], num_merges: int, *, by_ids: bool) -> Bpe:
    symbols = sorted({symbol for word in words for symbol in split(word)})
    id_of = {symbol: id for id, symbol in enumerate(symbols)}
    counted = [([id_of[symbol] for symbol in split(word)], count) for word, count in words.items()]
    merges = train_merges(counted, num_merges, len(symbols), by_ids=by_ids)
    for left, right in merges:
        symbols.append(symbols[left] + symbols[right])
    return Bpe(symbols, merges)


def byte_fallback(pieces: Iterable[str], known: Iterable[str]) -> list[str]:
    """SentencePiece's way out for a character without a piece: its UTF-8 bytes, as ``<0xE4>``."""
    known = {*known}
    return [
        part
        for piece in pieces
        for part in ([piece] if piece in known else [f"<0x{byte:02X}>" for byte in piece.encode()])
    ]
