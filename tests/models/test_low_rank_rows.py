"""LoRA on the embedding: PEFT's numbers, nothing else moved, and an ordinary model at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from parity import save_random
from test_families import SIZES

from wootz.models import Decoder, load
from wootz.models.low_rank_rows import low_rank_rows
from wootz.models.saving import save

TOKENS = torch.arange(20) % 11 + 3


def model_of(folder: Path, *, tied: bool) -> Decoder:
    save_random(folder, transformers.LlamaConfig(**SIZES, tie_word_embeddings=tied))
    return load(folder)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_only_the_rows_move_and_the_change_stays(tmp_path: Path, tied: bool) -> None:
    model = model_of(tmp_path, tied=tied)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain = model.logits(TOKENS)
    num_parameters = model.num_parameters
    with low_rank_rows(model, rank=2, alpha=4.0) as added:
        assert torch.equal(model.logits(TOKENS), plain)  # it starts as no change
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        assert {id(weight) for weight in trained} == {id(weight) for one in added for weight in one.parameters()}
        optimizer = torch.optim.Adam(trained, lr=1e-2)
        for _ in range(5):
            loss = torch.nn.functional.cross_entropy(model.logits(TOKENS)[:-1], TOKENS[1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        inside = model.logits(TOKENS).detach()
    torch.testing.assert_close(model.logits(TOKENS), inside)
    assert (inside - plain).abs().max() > 1e-2
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {"embedding.weight", "head.weight"}
    assert torch.linalg.matrix_rank(model.embedding.weight.detach() - before["embedding.weight"], rtol=1e-3) == 2
    assert (model.head.weight is model.embedding.weight) is tied
    assert num_parameters == sum(parameter.numel() for parameter in model.parameters())
    save(model, tmp_path / "saved")
    torch.testing.assert_close(load(tmp_path / "saved").logits(TOKENS), inside)


def test_the_change_is_pefts(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = model_of(tmp_path, tied=False)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["embed_tokens"])
    adapted = peft.get_peft_model(reference, config).eval()
    layer = adapted.base_model.model.model.embed_tokens
    with low_rank_rows(model, rank=3, alpha=6.0) as added, torch.no_grad():
        torch.nn.init.normal_(layer.lora_embedding_A["default"], std=0.1)
        added[0].a_Vr.copy_(layer.lora_embedding_A["default"].T)
        added[0].b_rD.copy_(layer.lora_embedding_B["default"].T)
        torch.testing.assert_close(model.logits(TOKENS), adapted(TOKENS[None]).logits[0], atol=1e-4, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(TOKENS), adapted(TOKENS[None]).logits[0], atol=1e-4, rtol=0)
