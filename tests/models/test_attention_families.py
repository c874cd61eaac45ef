"""Dense families, each with its own switches around attention, equal transformers: see `parity.prove`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from parity import prove
from test_families import SIZES

from wootz.models import DecoderConfig, load, read_config
from wootz.models.blocks.attention import AttentionConfig

GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 20, "num_hidden_layers": 3, "sliding_window": 7}
CASES = {
    "gemma2": (transformers.Gemma2Config, GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}),
    "gemma3": (
        transformers.Gemma3TextConfig,
        GEMMA
        | {
            "sliding_window_pattern": 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 200.0},
            },
        },
    ),
    "phi3": (
        transformers.Phi3Config,
        {"sliding_window": 9, "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    ),
    "phi3-longrope": (
        transformers.Phi3Config,
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 500.0,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.1, 1.3],
                "long_factor": [1.0, 2.0, 4.0],
            },
        },
    ),
    "olmo2": (transformers.Olmo2Config, {}),
    "cohere2": (
        transformers.Cohere2Config,
        {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"], "logit_scale": 0.3},
    ),
}


SLOW = {"gemma2", "phi3-longrope", "cohere2"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_family_equals_transformers(tmp_path: Path, case: str) -> None:
    config_class, settings = CASES[case]
    prove(tmp_path, config_class(**(SIZES | settings)))


@torch.inference_mode()
def test_a_multimodal_gemma_is_its_text_model(tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    text = SIZES | GEMMA
    torch.manual_seed(0)
    reference = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    ).eval()
    reference.save_pretrained(tmp_path)
    tokens = torch.arange(3, 30)
    model = load(tmp_path)
    torch.testing.assert_close(model.logits(tokens), reference(tokens[None]).logits[0], atol=1e-4, rtol=0)
    assert model.config.raw["model_type"] == "gemma3_text"


def test_what_published_gemma_configs_leave_out_is_filled_in() -> None:
    """The 4B's text_config, as on the hub, has these alone."""
    published = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    ours = read_config({"model_type": "gemma3", "text_config": published})
    theirs = transformers.Gemma3TextConfig(**published)
    assert isinstance(ours, DecoderConfig)
    assert (ours.vocab_size, ours.max_position_embeddings) == (theirs.vocab_size, theirs.max_position_embeddings)
    for layer, kind in zip(ours.layers, theirs.layer_types, strict=True):
        mixer, rope = layer.mixer, theirs.rope_parameters[kind]
        assert isinstance(mixer, AttentionConfig)
        assert mixer.rotary is not None
        assert mixer.rotary.theta == rope["rope_theta"]
        assert (mixer.rotary.scaling is None) == (rope["rope_type"] == "default")
        assert (mixer.window is None) == (kind == "full_attention")
        heads = theirs.num_attention_heads, theirs.num_key_value_heads, theirs.head_dim
        assert (mixer.num_heads, mixer.num_kv_heads, mixer.head_dim) == heads
