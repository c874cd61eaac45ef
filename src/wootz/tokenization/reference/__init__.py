"""The four algorithms, to be read: BPE, WordPiece, Unigram. Nothing in Wootz runs on them; the tests hold them to the
libraries that we do run on, and to which they are equal.
"""

from wootz.tokenization.reference.bpe import (
    END_OF_WORD,
    Bpe,
    train_byte_bpe,
    train_character_bpe,
    train_sentencepiece_bpe,
)
from wootz.tokenization.reference.unigram import Unigram, train_unigram
from wootz.tokenization.reference.wordpiece import train_wordpiece, wordpiece_encode

__all__ = [
    "END_OF_WORD",
    "Bpe",
    "Unigram",
    "train_byte_bpe",
    "train_character_bpe",
    "train_sentencepiece_bpe",
    "train_unigram",
    "train_wordpiece",
    "wordpiece_encode",
]
