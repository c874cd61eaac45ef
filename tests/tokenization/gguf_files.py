"""GGUF files with a vocabulary of our choosing and a model just big enough for llama.cpp to load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def write_gguf(
    file: Path,
    *,
    kind: str,
    tokens: Sequence[str],
    types: Sequence[int],
    scores: Sequence[float] | None = None,
    merges: Sequence[str] | None = None,
    pre: str | None = None,
    **fields: Any,
) -> Path:
    """``fields`` are further ``tokenizer.ggml.*`` keys; ``chat_template`` is ``tokenizer.chat_template``."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if scores is not None:
        writer.add_token_scores(scores)
    if merges is not None:
        writer.add_token_merges(merges)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    for key, value in fields.items():
        if key == "chat_template":
            writer.add_chat_template(value)
        elif isinstance(value, np.ndarray):
            writer.add_precompiled_charsmap(value.tobytes())
        elif isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{key}", value)
        else:
            writer.add_uint32(f"tokenizer.ggml.{key}", value)
    square = np.zeros((32, 32), np.float32)
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    tensors = {f"blk.0.{name}.weight": square for name in names}
    tensors |= {
        f"{name}.weight": np.ones(32, np.float32) for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
    }
    tensors["token_embd.weight"] = np.zeros((len(tokens), 32), np.float32)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
