"""`Chaos`: faults on purpose, to see the guards at work. ``--chaos nan@120,spike@300,hang@400,kill@500``.

Each fault happens once, at its step, on the last rank: what guards must find is which rank it was.
"""

from __future__ import annotations

import os
import signal
import time

import torch

from wootz.core.errors import BadRequestError
from wootz.training.trainer import Callback, Step, Trainer, rank, world_size

FAULTS = {
    "nan": "a weight is not a number during one step",
    "spike": "weights are thrown far off, as by a bad batch",
    "corrupt": "from then on one rank computes a layer a little wrong",
    "hang": "the process stands still",
    "kill": "the process is killed (SIGKILL)",
}


class Chaos(Callback):
    def __init__(self, faults: dict[int, str], *, hang_seconds: float = 3600.0) -> None:
        self.faults, self.hang_seconds = dict(faults), hang_seconds
        self._kept: tuple[torch.Tensor, torch.Tensor] | None = None

    @staticmethod
    def parse(text: str) -> Chaos:
        faults = {}
        for part in text.split(","):
            name, _, step = part.strip().partition("@")
            if name not in FAULTS or not step.isdecimal():
                raise BadRequestError(f'--chaos "{part}" is not FAULT@STEP', hint=f"faults are {', '.join(FAULTS)}")
            faults[int(step)] = name
        return Chaos(faults)

    def before_step(self, trainer: Trainer) -> None:
        if rank() != world_size() - 1 or (fault := self.faults.pop(trainer.step, None)) is None:
            return
        weight = _local(max(trainer.parameters, key=lambda parameter: parameter.numel()))
        match fault:
            case "nan":
                self._kept = weight, weight.clone()
                weight.view(-1)[0] = torch.nan
            case "spike":
                for parameter in trainer.parameters:
                    _local(parameter).mul_(3.0)
            case "corrupt":
                layer = trainer.model.get_submodule("layers.0")
                layer.register_forward_hook(lambda module, inputs, output: output * 1.05)
            case "hang":
                time.sleep(self.hang_seconds)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        if self._kept is not None:
            weight, kept = self._kept
            weight.copy_(kept)
            self._kept = None


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's own shard, to be written to."""
    return getattr(parameter, "to_local", lambda: parameter)().detach()
