"""What watches a run so that nobody has to: each guard is a `Callback` of its own and says what it saw in one line."""

from __future__ import annotations

from wootz.training.checkpoints import Checkpoints
from wootz.training.guards.corruption import CorruptionGuard
from wootz.training.guards.experts import ExpertMonitor
from wootz.training.guards.finite import FiniteGuard
from wootz.training.guards.health import HealthMonitor
from wootz.training.guards.spike import SpikeGuard
from wootz.training.guards.straggler import StragglerGuard
from wootz.training.guards.watchdog import Watchdog
from wootz.training.runs import RunFolder
from wootz.training.trainer import Callback


def guards_of(
    run: RunFolder, checkpoints: Checkpoints, *, vocab_size: int, whole: bool = True, hang_seconds: float = 300.0
) -> list[Callback]:
    """Those that a run has unless it is told otherwise. The first that objects to an update gives the reason, so what
    is no number is said to be that, and not a spike. Three of them ask the ``whole`` model, which no rank of a pipeline
    can."""
    wrong = CorruptionGuard(every=100, suspect=lambda ranks: run.suspect(ranks, sure=True))
    asking = [wrong, ExpertMonitor(run), HealthMonitor(run, vocab_size)] if whole else []
    return [
        FiniteGuard(),
        SpikeGuard(checkpoints),
        StragglerGuard(),
        *asking,
        Watchdog(run.path / "heartbeats", hang_seconds, suspect=run.suspect),
    ]
