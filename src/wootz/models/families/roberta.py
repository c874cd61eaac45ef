"""RoBERTa and XLM-RoBERTa (arXiv 1907.11692): BERT with two rows of positions that no text uses, and a head with its
own dense layer in place of the pooler."""

from __future__ import annotations

from typing import Any

from wootz.models.encoder import EncoderConfig
from wootz.models.families import bert
from wootz.models.families.family import Family, refuse_unless
from wootz.models.positions.learned import LearnedConfig

NAMES = bert.NAMES | {"pooler": "classifier.dense", "classifier": "classifier.out_proj"}


def read_config(raw: dict[str, Any]) -> EncoderConfig:
    refuse_unless(
        raw.get("pooling", {}).get("mode") != "pooler", "pooling by the pooler is not supported for RoBERTa; use cls"
    )
    # Positions are counted from the padding token's number on.
    offset = raw.get("pad_token_id", 1) + 1
    return bert.encoder_config(raw, LearnedConfig(raw["max_position_embeddings"] - offset, offset))


FAMILY = Family(
    model_types=("roberta", "xlm-roberta"),
    read_config=read_config,
    names=NAMES,
    prefix="roberta.",
    ignored=bert.IGNORED,
)
