"""What a run computes in: float16 with a scaled loss, by PyTorch's own scaler; compiled layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CountedBatches, Notes, join, small_model, small_trainer, start, whole_weights

from wootz.data.batch import Batch
from wootz.training.checkpoints import Checkpoints
from wootz.training.cross_entropy import sliced_language_loss
from wootz.training.guards.finite import FiniteGuard
from wootz.training.loss_scale import LossScale
from wootz.training.recompute import check_recompute, recompute_layers
from wootz.training.trainer import AfterStep, Callback, Trainer, rank


class Scales(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def before_step(self, trainer: Trainer) -> None:
        self.seen.append(trainer.loss_scale.value)


def by_pytorchs_scaler(steps: int, scale: float) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, scales and final weights of the same run with `torch.amp.GradScaler`."""
    model, batches = small_model(), CountedBatches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=LossScale.GROWTH_INTERVAL)
    losses, scales = [], []
    for step in range(steps):
        scales.append(scaler.get_scale())
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        with torch.autocast("cpu", torch.float16):
            loss = sliced_language_loss(model, next(batches))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, scales, {name: weight.detach() for name, weight in model.named_parameters()}


def test_float16_trains_as_with_pytorchs_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWTH_INTERVAL", 3)
    trainer = small_trainer(notes := Notes(), scales := Scales(), FiniteGuard(), precision="fp16", steps=20)
    trainer.loss_scale.value = 2.0**30
    trainer.run()
    losses, their_scales, weights = by_pytorchs_scaler(20, 2.0**30)
    assert scales.seen == their_scales
    assert notes.losses == losses
    assert [step.number for step in notes.steps if step.skipped] == [
        step for step in range(19) if their_scales[step + 1] < their_scales[step]
    ]
    assert 3 < sum(step.skipped is not None for step in notes.steps) < 15
    for name, weight in whole_weights(trainer).items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0)
        assert weight.dtype == torch.float32


def test_small_gradients_of_the_head_are_scaled_before_they_are_rounded() -> None:
    """Of 2,048 tokens and 4,096 words each has a share of 1e-7, which float16 has no digits for."""
    batch = Batch.of(torch.randint(64, (8, 257), generator=torch.Generator().manual_seed(0)))
    gradients = []
    for precision in ("fp32", "fp16"):
        model = small_model(vocab_size=4096, tie_word_embeddings=False, max_position_embeddings=256)
        trainer = small_trainer(model=model, precision=precision)
        trainer._backward([batch])
        trainer.loss_scale.unscale(trainer.parameters)
        gradients.append(model.head.weight.grad[64:])  # of words that are nowhere
    assert ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item() < 5e-3


def one_rank_overflows(folder: Path) -> None:
    trainer = small_trainer(notes := Notes(), precision="fp16", steps=4)
    plain = trainer.objective

    def objective(model: Any, batch: Batch) -> torch.Tensor:
        loss = plain(model, batch)
        return loss + (loss - loss.detach()) * 1e38 if (trainer.step, rank()) == (2, 1) else loss

    trainer.objective = objective
    trainer.run()
    torch.save((trainer.loss_scale.value, [step.skipped for step in notes.steps]), folder / f"{rank()}.pt")


def test_when_one_rank_overflows_all_skip(tmp_path: Path) -> None:
    assert join(start(2, one_rank_overflows, tmp_path)) == [0, 0]
    for number in (0, 1):
        scale, skipped = torch.load(tmp_path / f"{number}.pt")
        assert scale == 2.0**15
        assert [bool(reason) for reason in skipped] == [False, False, True, False]


def test_a_scale_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWTH_INTERVAL", 2)

    def run(name: str, steps: int) -> tuple[list[float], Trainer]:
        checkpoints = Checkpoints(tmp_path / name, every=100)
        trainer = small_trainer(checkpoints, scales := Scales(), precision="fp16", steps=steps)
        trainer.loss_scale.value = 2.0**30
        checkpoints.restore(trainer)
        trainer.run()
        return scales.seen, trainer

    seen, trainer = run("whole", 20)
    before, _ = run("twice", 15)
    after, resumed = run("twice", 20)
    assert before + after == seen
    assert sorted(set(after)) != [after[0]]
    weights = whole_weights(trainer)
    assert all(torch.equal(weight, weights[name]) for name, weight in whole_weights(resumed).items())


def test_what_no_scale_can_help_is_left_to_the_guards() -> None:
    scale = LossScale(dynamic=True)
    assert scale.overflow(float("nan"), float("nan")) is None
    assert all(scale.overflow(1.0, float("inf")) for _ in range(16))
    assert scale.value == 1.0
    assert scale.overflow(1.0, float("inf")) is None


class PackedBatches(CountedBatches):
    """Whose rows are made of other documents in each step."""

    def __next__(self) -> Batch:
        batch, first = super().__next__(), self.step % 14 + 1
        length = batch.tokens_BT.shape[1]
        packed = ((first, length - first), *[(length,)] * (len(batch.tokens_BT) - 1))
        return Batch(batch.tokens_BT, batch.labels_BT, packed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_train_as_plain_ones_and_are_compiled_once(recompute: bool) -> None:
    from torch._dynamo.utils import counters

    from wootz.training.compiling import compile_layers

    num_graphs = lambda: counters["stats"]["unique_graphs"]  # noqa: E731
    torch._dynamo.reset()
    counters.clear()
    deep = {"num_hidden_layers": 12}  # more than would be compiled if each were compiled by itself
    plain = small_trainer(theirs := Notes(), model=small_model(**deep), batches=PackedBatches(), steps=10)
    compile_layers(model := small_model(**deep))
    if recompute:
        recompute_layers(model)
        check_recompute(model, next(PackedBatches()), sliced_language_loss)
    graphs = []
    trainer = small_trainer(
        ours := Notes(),
        AfterStep(lambda step: graphs.append(num_graphs())),
        model=model,
        batches=PackedBatches(),
        steps=10,
    )
    plain.run()
    trainer.run()
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert 0 < graphs[0] == graphs[-1] < 12
    assert not counters["recompile_limit"]
    for name, weight in whole_weights(plain).items():
        torch.testing.assert_close(whole_weights(trainer)[name], weight, rtol=1e-3, atol=1e-4)
