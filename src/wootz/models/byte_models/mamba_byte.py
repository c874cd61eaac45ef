"""MambaByte (arXiv 2401.13660): state-space layers need no patches. A byte costs what a token would, and the state does
not grow, so that long rows of bytes are no problem of memory. It is the Mamba of any tokenizer, with 259 ids.
"""

from __future__ import annotations

from typing import Any

from wootz.models.byte_models.stack import END_OF_TEXT, VOCAB_SIZE


def mamba_byte(*, hidden_size: int, num_layers: int, vocab_size: int = VOCAB_SIZE, **settings: Any) -> dict[str, Any]:
    """A config for `wootz.models.read_config`: trains, serves and saves as any model of the family "mamba" does (and
    transformers reads what is saved)."""
    return {
        "model_type": "mamba",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "state_size": 16,
        "conv_kernel": 4,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": None,
        "eos_token_id": END_OF_TEXT,
        **settings,
    }
