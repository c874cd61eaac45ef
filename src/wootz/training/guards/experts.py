"""`ExpertMonitor`: how busy a mixture keeps its experts, over the tokens of whole steps of all ranks, layer by layer.

| figure in ``experts.jsonl`` | what it is | alarm |
|---|---|---|
| `max_over_mean` | the busiest expert's tokens, in units of the mean | half-way to the worst there can be, or 4 |
| `load_entropy` | of the load's shares: 1 if all are equally busy | (none: for the eye) |
| `token_entropy` | of a token's probabilities: 0 if the router is always certain | (none) |
| `dead` | experts that nobody chose | the same one at two looks in a row |
| `drop_rate` | share of choices that found their expert full | above 0.2 |

What is watched is training itself, not a pass beside it: which experts text goes to is a matter of the text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from wootz.models.blocks.router import Router, Routing
from wootz.models.routing import RoutingReport
from wootz.training.runs import RunFolder
from wootz.training.trainer import Callback, Step, Trainer, rank


class ExpertMonitor(Callback):
    MOST_DROPPED = 0.2
    REMEDY = "balance them (wootz.models.routing: balance_loss, update_balance_bias)"

    def __init__(self, run: RunFolder, *, every: int = 100) -> None:
        self.run, self.every = run, every
        self.dead: dict[str, list[int]] = {}
        """At the last look."""
        self.said: list[str] = []
        """Alarms are given once."""
        self._sums: dict[Router, torch.Tensor] = {}
        self._hooks: list[Any] = []

    def before_step(self, trainer: Trainer) -> None:
        if (trainer.step + 1) % self.every == 0:
            routers = [module for module in trainer.model.modules() if isinstance(module, Router)]
            self._hooks = [router.register_forward_hook(self._heard) for router in routers]

    @torch.no_grad()
    def _heard(self, router: nn.Module, _: object, routing: Routing) -> None:
        """Of a pass: tokens of each expert; choices that were turned away; tokens, and their routers' entropies."""
        assert isinstance(router, Router)
        turned_away = 0.0 if routing.kept_Tk is None else (~routing.kept_Tk).sum().item()
        odds_TE = routing.probabilities_TE
        own = [turned_away, float(len(odds_TE)), -torch.xlogy(odds_TE, odds_TE).sum().item()]
        sums = torch.tensor([*routing.load_E.tolist(), *own], dtype=torch.float64)
        self._sums[router] = self._sums.get(router, torch.zeros_like(sums)) + sums

    def after_step(self, trainer: Trainer, step: Step) -> None:
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        names = {module: name for name, module in trainer.model.named_modules() if isinstance(module, Router)}
        found = {names[router]: _report(trainer.sum_over_ranks(*sums.tolist())) for router, sums in self._sums.items()}
        self._hooks, self._sums = [], {}
        if rank() == 0:
            self.run.append("experts", {"step": step.number, "routers": {n: vars(each) for n, each in found.items()}})
        for alarm in self.alarms(found):
            if alarm.split(":")[0] not in self.said:
                self.said.append(alarm.split(":")[0])
                trainer.report(f"step {step.number}: {alarm}; {self.REMEDY}")

    def alarms(self, found: dict[str, RoutingReport]) -> list[str]:
        lines = []
        for name, report in found.items():
            if lasting := sorted(set(report.dead) & set(self.dead.get(name, []))):
                lines.append(f"dead experts in {name}: nobody chose {', '.join(map(str, lasting))} at two looks")
            most = len(report.load) / max(1.0, report.choices_per_token)
            if report.max_over_mean > min(4.0, (1 + most) / 2):
                busiest = report.load.index(max(report.load))
                lines.append(
                    f"unbalanced experts in {name}: {busiest} has {report.max_over_mean:.1f} times the mean load"
                )
            if report.drop_rate > self.MOST_DROPPED:
                lines.append(f"full experts in {name}: {report.drop_rate:.0%} of all choices are dropped")
        self.dead = {name: list(report.dead) for name, report in found.items()}
        return lines

    def state_dict(self) -> dict[str, Any]:
        return {"dead": self.dead, "said": self.said}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dead, self.said = state.get("dead", {}), state.get("said", [])


def _report(sums: list[float]) -> RoutingReport:
    *load, turned_away, num_tokens, entropy = sums
    return RoutingReport.of_sums(
        torch.tensor(load, dtype=torch.int64), num_tokens=int(num_tokens), entropy=entropy, turned_away=turned_away
    )
