"""The way of a migration: its stages, the share of users that each gives to the new model, and what leads on.

    shadow → canary → ramp-5 → ramp-25 → ramp-50 → full → warm → decommissioned
       └────────┴────────┴────────┴─────────┴───────┴──────┴──→ rolled-back

*Shadow* copies requests to the new model and throws its answers away. From *canary* (1 %) on, a part of the users is
answered by it. In *full* all are, and the gates still compare with what the old one did last. *Warm* is full with the
old model standing by: one word brings it back, until 30 clean days are over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from wootz.core.sections.migrations import MigrationsConfig, Stage, seconds_of
from wootz.gateway.migration.gates import Gate

DECOMMISSIONED, ROLLED_BACK = "decommissioned", "rolled-back"
STAGES: tuple[str, ...] = (*get_args(Stage), DECOMMISSIONED)
"""The good way, in order."""
SHARES: dict[str, float] = {
    "shadow": 0.0, "canary": 0.01, "ramp-5": 0.05, "ramp-25": 0.25, "ramp-50": 0.5, "full": 1.0, "warm": 1.0,
    DECOMMISSIONED: 1.0, ROLLED_BACK: 0.0,
}  # fmt: skip
ENDED = (DECOMMISSIONED, ROLLED_BACK)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What holds for one migration from its start, whatever the config says later."""

    durations: dict[str, float] = field(default_factory=dict)
    """Seconds, of each stage but the last."""
    margins: dict[str, float] = field(default_factory=dict)
    """Of each gate: how much worse is not yet too bad (`GatesConfig`)."""
    min_samples: int = 200
    min_ratings: int = 0
    shadow_share: float = 0.1
    automatic: bool = True
    """Whether stages are advanced by themselves. Rolled back is always."""

    @classmethod
    def of(cls, config: MigrationsConfig, *, automatic: bool = True) -> Plan:
        margins = {name: margin for name, margin in config.gates.model_dump().items() if margin != float("inf")}
        return cls(
            durations={stage: float(seconds_of(period)) for stage, period in config.durations.items()},
            margins=margins,
            min_samples=config.min_samples,
            min_ratings=config.min_ratings,
            shadow_share=config.shadow_share,
            automatic=automatic,
        )


@dataclass(frozen=True)
class Move:
    to: str
    why: str


def after(stage: str) -> str:
    """The next stage of the good way."""
    return STAGES[STAGES.index(stage) + 1]


def decide(stage: str, seconds_in_it: float, gates: Sequence[Gate], plan: Plan) -> Move | None:
    """What is to be done now without being asked; None: wait.

    A gate that fails rolls back at once, whatever the time. What is passed is passed at the end of the stage's time, by
    every gate; but *warm* ends by being clean: its traffic may have become too little to prove anything again.
    """
    if failed := [gate for gate in gates if gate.verdict == "fail"]:
        return Move(ROLLED_BACK, "; ".join(gate.words for gate in failed))
    if not plan.automatic or seconds_in_it < plan.durations[stage]:
        return None
    if stage == "warm" or all(gate.verdict == "pass" for gate in gates):
        return Move(after(stage), "every gate passed" if stage != "warm" else "no gate failed while it was warm")
    return None
