"""Callbacks that write down what happens: each step, held-out loss, samples. Only rank 0 does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wootz.core.errors import MissingExtraError
from wootz.training.runs import RunFolder
from wootz.training.trainer import Callback, Step, Trainer, rank

Watch = Callable[[Step, Trainer], None]


class Recorder(Callback):
    """``metrics.jsonl`` and the run's status; ``watch`` is told of each step, to show it."""

    def __init__(self, run: RunFolder, watch: Watch = lambda step, trainer: None) -> None:
        self.run, self.watch = run, watch

    def on_start(self, trainer: Trainer) -> None:
        if rank() == 0:
            self.run.go_back_to(trainer.step)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        if rank() != 0:
            return
        row: dict[str, Any] = {
            "step": step.number,
            "loss": step.loss,
            "grad_norm": step.grad_norm,
            "learning_rate": step.learning_rate,
            "tokens": step.num_tokens,
            "tokens_per_second": round(step.num_tokens / step.seconds, 1),
        }
        if trainer.loss_scale.dynamic:
            row["loss_scale"] = trainer.loss_scale.value
        self.run.append("metrics", row | ({"skipped": step.skipped} if step.skipped else {}))
        self.run.set_status("running", stage="pretrain", step=trainer.step, steps=trainer.config.steps, loss=step.loss)
        self.watch(step, trainer)


class TensorBoard(Callback):
    """The same figures as event files, for whoever watches runs with TensorBoard: ``tensorboard --logdir runs``. What
    the run had written behind the checkpoint that it goes on from is marked as void."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        if rank() == 0:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=trainer.step)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        if self._writer is not None:
            for name, figure in {
                "loss": step.loss,
                "grad_norm": step.grad_norm,
                "learning_rate": step.learning_rate,
                "tokens_per_second": step.num_tokens / step.seconds,
            }.items():
                self._writer.add_scalar(f"train/{name}", figure, step.number)

    def evaluated(self, row: dict[str, Any]) -> None:
        if self._writer is not None:
            figures = {"bits_per_byte": row["bits_per_byte"]}
            figures |= {name: scored["accuracy"] for name, scored in row["benchmarks"].items()}
            for name, figure in figures.items():
                self._writer.add_scalar(f"evaluation/{name}", figure, row["step"])

    def on_end(self, trainer: Trainer) -> None:
        if self._writer is not None:
            self._writer.close()


class Every(Callback):
    """Calls ``look(trainer)`` after every so many steps and after the last. What it returns is one line in a file of
    the run, of which ``told`` hears: held-out loss and benchmarks, a sample."""

    def __init__(
        self,
        run: RunFolder,
        kind: str,
        steps: int,
        look: Callable[[Trainer], dict[str, Any]],
        told: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> None:
        self.run, self.kind, self.steps, self.look, self.told = run, kind, steps, look, told

    def after_step(self, trainer: Trainer, step: Step) -> None:
        if trainer.step % self.steps == 0 or trainer.step == trainer.config.steps:
            row = self.look(trainer)  # on every rank: a sharded model needs them all
            if rank() == 0:
                row = {"step": step.number, **row}
                self.run.append(self.kind, row)
                self.told(row)


def plot_curves(run: RunFolder, file: Path) -> None:
    """Loss and held-out bits per byte over steps. Needs the ``bench`` extra."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise MissingExtraError("training", "bench", "matplotlib") from None
    metrics, evaluations = run.rows("metrics"), run.rows("evaluations")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    axes[0].plot([row["step"] for row in metrics], [row["loss"] for row in metrics], linewidth=0.8)
    axes[0].set(xlabel="step", ylabel="loss (nats per token)", title=run.name)
    axes[1].plot([row["step"] for row in evaluations], [row["bits_per_byte"] for row in evaluations], "o-")
    axes[1].set(xlabel="step", ylabel="bits per byte, held out")
    for each in axes:
        each.grid(alpha=0.25)
    figure.savefig(file, dpi=120)
    plt.close(figure)
