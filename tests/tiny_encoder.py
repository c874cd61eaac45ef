"""A whole encoder folder in miniature: BERT with random weights, and a WordPiece tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import BertWordPieceTokenizer

TEXT = Path(__file__).parent.parent / "LICENSE"  # Never edited, so the tokens stay the same.


def write_tiny_encoder(folder: Path, *, num_labels: int | None = None) -> transformers.PreTrainedModel:
    """With ``num_labels`` a cross-encoder. Returns the model as transformers has it."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = BertWordPieceTokenizer()
    trained.train([str(TEXT)], vocab_size=600, show_progress=False)
    transformers.BertTokenizerFast(tokenizer_object=trained._tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 600,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    if num_labels is None:
        model = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False)
    else:
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_labels=num_labels))
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    model.eval().save_pretrained(folder)
    return model
