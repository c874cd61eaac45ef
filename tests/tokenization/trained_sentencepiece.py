"""Small SentencePiece models, trained in a second."""

from __future__ import annotations

import io

import sentencepiece


def train_sentencepiece(texts: list[str], kind: str = "bpe", **options: object) -> sentencepiece.SentencePieceProcessor:
    """Trained on the languages and the code; the made-up quarter, at the end, has every character there is."""
    texts = texts[: len(texts) * 2 // 3]
    model = io.BytesIO()
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.splitlines() if line]),
        model_writer=model,
        vocab_size=4000,
        model_type=kind,
        max_sentence_length=20000,
        character_coverage=0.99,
        minloglevel=2,
        **(plain | options),
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
