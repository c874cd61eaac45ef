"""Heads that say the tokens after the next one: what each may know, what it is asked, and that its drafts are right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from wootz.data.batch import Batch
from wootz.models import read_config
from wootz.models.decoder import LayerConfig
from wootz.models.multi_token import MultiTokenConfig, MultiTokenModel, depth_losses, multi_token_loss
from wootz.training.fit import FitConfig, fit

VOCAB = 11
KINDS = pytest.mark.parametrize("sequential", [True, False], ids=["sequential", "parallel"])


def tiny(depth: int = 3, sequential: bool = True, **settings) -> MultiTokenModel:
    torch.manual_seed(0)
    raw = {"model_type": "wootz", "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
    raw |= {"num_attention_heads": 2, "initializer_range": 0.2}
    return MultiTokenConfig(depth=depth, sequential=sequential).build(read_config(raw | settings).build())


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


@KINDS
@torch.inference_mode()
def test_a_depth_knows_the_tokens_up_to_its_own_and_no_later(sequential) -> None:
    """Change one token: depth k changes from k places before it on, or from its own place if its heads are parallel."""
    model, text = tiny(sequential=sequential), tokens(9)
    states = model(text, [9])
    assert [len(state) for state in states] == [9, 8, 7, 6]
    for changed in range(9):
        other = text.clone()
        other[changed] = (other[changed] + 1) % VOCAB
        for depth, (before, after) in enumerate(zip(states, model(other, [9]), strict=True)):
            differs = (before - after).abs().amax(-1) > 1e-6
            first = max(0, changed - depth if sequential else changed)
            assert differs.nonzero().flatten().tolist() == list(range(first, 9 - depth))


@KINDS
def test_packed_documents_are_as_if_alone(sequential) -> None:
    model, lengths = tiny(sequential=sequential), [7, 1, 2, 7]
    documents = tokens(sum(lengths)).split(lengths)
    packed = model(torch.cat(documents), lengths)
    alone = [model(document, [len(document)]) for document in documents]
    for depth, state in enumerate(packed):
        torch.testing.assert_close(state, torch.cat([states[depth] for states in alone]))


def test_loss_asks_each_depth_for_its_own_token() -> None:
    model, rows = tiny(depth=2), tokens(3, 8)
    losses = depth_losses(model, rows)
    for depth in range(3):
        by_hand = []
        for row in rows:
            logits = model.unembed(model(row[:-1], [7])[depth])
            by_hand += [F.cross_entropy(logits[i], row[i + 1 + depth]) for i in range(7 - depth)]
        torch.testing.assert_close(losses[depth], torch.stack(by_hand).mean())
    torch.testing.assert_close(multi_token_loss(model, rows, 0.3), losses[0] + 0.15 * (losses[1] + losses[2]))
    with pytest.raises(ValueError, match="nothing to predict"):
        depth_losses(model, tokens(2, 3))


def test_embedding_and_unembedding_are_shared_and_the_trunk_is_untouched() -> None:
    model = tiny(tie_word_embeddings=False)
    names = {name for name, _ in model.named_parameters()}
    assert {name for name in names if "embedding" in name or "head.w" in name} == {
        "trunk.embedding.weight",
        "trunk.head.weight",
    }
    text = tokens(6)
    torch.testing.assert_close(model.unembed(model(text, [6])[0]), model.trunk.logits(text))
    assert len(model.cache_specs) == 5
    assert model.cache_specs[:2] == model.trunk.cache_specs


@KINDS
def test_proposals_are_what_teacher_forcing_says_of_them(sequential) -> None:
    model, text = tiny(sequential=sequential), tokens(6)
    proposed = model.propose(text)
    states = model(torch.cat((text, proposed)), [6 + 4])
    assert [model.unembed(state)[5].argmax().item() for state in states] == proposed.tolist()
    assert proposed[0] == model.trunk.logits(text)[-1].argmax()


@KINDS
def test_learns_and_drafts_what_the_trunk_would_write(sequential) -> None:
    """Rows step by one of three strides: two tokens tell all that follow."""
    model, generator = tiny(depth=2, sequential=sequential), torch.Generator().manual_seed(0)

    def batches():
        while True:
            starts = torch.randint(VOCAB, (32, 1), generator=generator)
            strides = torch.randint(1, 4, (32, 1), generator=generator)
            yield Batch.of((starts + strides * torch.arange(13)) % VOCAB)

    def loss(model: MultiTokenModel, batch: Batch) -> torch.Tensor:
        return multi_token_loss(model, torch.cat((batch.tokens_BT, batch.labels_BT[:, -1:]), 1), 0.5)

    fitted = fit(model, batches(), FitConfig(steps=110, learning_rate=7e-3), loss_of=loss)
    assert fitted.losses[0] > 3 > 0.6 > sum(fitted.losses[-10:]) / 10
    accepted = 0
    for start in range(VOCAB):
        text = (start + 2 * torch.arange(5)) % VOCAB
        accepted += (model.propose(text) == (start + 2 * torch.arange(5, 8)) % VOCAB).sum().item()
    assert accepted >= 0.9 * 3 * VOCAB


def test_a_head_may_be_another_layer_than_the_trunk_has() -> None:
    trunk = tiny().trunk
    light = LayerConfig(mixer=trunk.config.layers[0].mixer)
    assert MultiTokenConfig(layer=light).build(trunk).heads[0].layer.ffn is None
    with pytest.raises(ValueError, match="depth"):
        MultiTokenConfig(depth=0)
