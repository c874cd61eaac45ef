"""Models without a tokenizer: they read and write bytes, by the ids of `wootz.tokenization.byte_tokenizer`.

A text has about four times as many bytes as tokens, so what matters is where the expensive layers run: once in each
patch (`megabyte`), once in each word (`space_byte`), or at every byte but with a state instead of attention
(`mamba_byte`).
"""

from wootz.models.byte_models.mamba_byte import mamba_byte
from wootz.models.byte_models.megabyte import Megabyte, MegabyteConfig
from wootz.models.byte_models.space_byte import SpaceByte, SpaceByteConfig

__all__ = ["Megabyte", "MegabyteConfig", "SpaceByte", "SpaceByteConfig", "mamba_byte"]
