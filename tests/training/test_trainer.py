"""The trainer's arithmetic: micro-batches make one batch, the sliced loss is the plain one, recomputing is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_runs import CountedBatches, Notes, small_model, small_trainer, whole_weights

from wootz.core.errors import ConfigError
from wootz.data.batch import IGNORED, Batch
from wootz.training import cross_entropy
from wootz.training.cross_entropy import sliced_cross_entropy, sliced_language_loss
from wootz.training.fit import language_loss
from wootz.training.optimizers import OptimizerConfig, build_optimizer
from wootz.training.optimizers.pairs import orthogonalised
from wootz.training.recompute import check_recompute, recompute_layers


class Slices:
    """The same rows as `CountedBatches`, so many at a time; some labels are not asked."""

    def __init__(self, parts: int) -> None:
        self.whole, self.parts, self.waiting = CountedBatches(), parts, []

    def __next__(self) -> Batch:
        if not self.waiting:
            batch = next(self.whole)
            labels = batch.labels_BT.clone()
            labels[0, :9] = IGNORED  # micro-batches then ask for unequal numbers
            for tokens, asked in zip(batch.tokens_BT.chunk(self.parts), labels.chunk(self.parts), strict=True):
                self.waiting.append(Batch(tokens, asked))
        return self.waiting.pop(0)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_micro_batches_are_one_batch(parts: int) -> None:
    ended = {}
    for number in (1, parts):
        trainer = small_trainer(notes := Notes(), batches=Slices(number), accumulate=number, steps=3)
        trainer.run()
        ended[number] = notes.losses, whole_weights(trainer)
    assert ended[parts][0] == pytest.approx(ended[1][0], rel=1e-5)
    for name, weight in ended[1][1].items():
        torch.testing.assert_close(ended[parts][1][name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_the_sliced_loss_and_its_gradients_equal_the_plain_ones(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "SLICE_BYTES", 4 * 64 * 7)  # seven tokens at a time
    model = small_model(tie_word_embeddings=tied)
    batch = next(CountedBatches())
    batch = Batch(batch.tokens_BT, batch.labels_BT.clone())
    batch.labels_BT[1, 3:] = IGNORED
    found: list[dict[str, Any]] = []
    for loss_of in (language_loss, sliced_language_loss):
        model.zero_grad()
        loss = loss_of(model, batch)
        (3 * loss).backward()
        found.append({"loss": loss.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()})  # type: ignore[union-attr]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-7)


def test_the_sliced_loss_in_float64_equals_pytorchs() -> None:
    hidden = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(11, (30,))
    assert torch.autograd.gradcheck(lambda h, w: sliced_cross_entropy(h, w, labels), (hidden, weight))
    torch.testing.assert_close(sliced_cross_entropy(hidden, weight, labels), F.cross_entropy(hidden @ weight.T, labels))


def test_bf16_arithmetic_keeps_weights_and_gradients_in_float32() -> None:
    trainer = small_trainer(notes := Notes(), precision="bf16", steps=5)
    plain = small_trainer(plain_notes := Notes(), steps=5)
    trainer.run()
    plain.run()
    assert all(p.dtype == torch.float32 for p in trainer.parameters)
    assert notes.losses != plain_notes.losses
    assert notes.losses == pytest.approx(plain_notes.losses, rel=2e-2)


def test_recomputed_gradients_are_bit_identical_and_a_layer_that_differs_is_named() -> None:
    model = small_model()
    recompute_layers(model)
    batch = next(CountedBatches())
    check_recompute(model, batch, language_loss)
    times = iter(range(1000))
    model.layers[1].ffn.register_forward_hook(lambda module, inputs, output: output * (1 + 0.1 * next(times)))
    with pytest.raises(ConfigError, match="recomputing gives"):
        check_recompute(model, batch, language_loss)


def test_a_loss_that_is_no_number_ends_a_run_without_guards() -> None:
    trainer = small_trainer(steps=2)
    with torch.no_grad():
        trainer.parameters[0][0] = torch.nan
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0"):
        trainer.run()


def test_muon_in_float32_moves_as_pytorchs_does() -> None:
    moved = []
    for extra in ({}, {"full_precision": True}):
        model = small_model()
        optimizer = build_optimizer(model, OptimizerConfig(name="muon", learning_rate=1e-2, extra=extra))
        before = model.layers[0].mixer.output.weight.detach().clone()
        language_loss(model, next(CountedBatches())).backward()
        optimizer.step()
        moved.append(model.layers[0].mixer.output.weight.detach() - before)
    torch.testing.assert_close(moved[0], moved[1], rtol=0.05, atol=2e-4)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(8, 20), (3.4445, -4.775, 2.0315), 5))
    assert ((values > 0.5) & (values < 1.3)).all()
