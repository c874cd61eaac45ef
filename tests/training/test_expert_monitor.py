"""How busy experts are is counted over whole steps and all ranks; dead and overloaded ones are told of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import join, small_model, small_trainer, start

from wootz.models.blocks.router import Router
from wootz.models.routing import RoutingReport
from wootz.training.guards.experts import ExpertMonitor
from wootz.training.runs import RunFolder
from wootz.training.trainer import Callback, Trainer, rank

EXPERTS = {
    "model_type": "qwen3_moe",
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


class Counted(Callback):
    """Each router's choices in one step, one by one."""

    def __init__(self, step: int) -> None:
        self.step, self.choices = step, dict[Router, list[int]]()

    def on_start(self, trainer: Trainer) -> None:
        for module in trainer.model.modules():
            if isinstance(module, Router):
                module.register_forward_hook(lambda router, _, routing: self._count(trainer, router, routing))

    def _count(self, trainer: Trainer, router: Any, routing: Any) -> None:
        if trainer.step == self.step:
            self.choices.setdefault(router, []).extend(routing.experts_Tk.flatten().tolist())


def test_loads_are_those_of_all_micro_batches_of_a_step(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    counted = Counted(3)
    trainer = small_trainer(ExpertMonitor(run, every=4), counted, model=small_model(**EXPERTS), steps=6, accumulate=3)
    trainer.run()
    (row,) = run.rows("experts")
    assert row["step"] == 3
    assert list(row["routers"]) == ["layers.0.ffn.router", "layers.1.ffn.router"]
    for found, choices in zip(row["routers"].values(), counted.choices.values(), strict=True):
        assert found["load"] == [choices.count(expert) for expert in range(4)]
        assert sum(found["load"]) == 3 * 4 * 16 * 2
        assert found["max_over_mean"] == pytest.approx(max(found["load"]) / (sum(found["load"]) / 4))
        assert 0.9 < found["token_entropy"] <= 1
    assert all(len(router._forward_hooks) == 1 for router in counted.choices)  # the test's own


def watched(folder: Path) -> None:
    run = RunFolder.create(folder, {}) if rank() == 0 else RunFolder(folder)
    small_trainer(ExpertMonitor(run, every=2), model=small_model(**EXPERTS), steps=2).run()


def test_ranks_are_added_up(tmp_path: Path) -> None:
    for ranks in (1, 2):
        assert join(start(ranks, watched, tmp_path / str(ranks))) == [0] * ranks
    alone, together = (RunFolder(tmp_path / str(ranks)).rows("experts")[0]["routers"] for ranks in (1, 2))
    for name, found in alone.items():
        assert found["load"] == together[name]["load"]
        assert found["token_entropy"] == pytest.approx(together[name]["token_entropy"])


def test_dead_overloaded_and_full_experts_are_told_of_once(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    model = small_model(**EXPERTS)
    for layer in model.layers:
        layer.ffn.router.weight_ED.requires_grad_(False).zero_()  # type: ignore[union-attr]
    trainer = small_trainer(monitor := ExpertMonitor(run, every=1), model=model, steps=4)
    lines: list[str] = []
    trainer.report = lines.append
    trainer.run()
    assert [line.split(":")[1].strip() for line in lines] == [
        "unbalanced experts in layers.0.ffn.router",
        "unbalanced experts in layers.1.ffn.router",
        "dead experts in layers.0.ffn.router",
        "dead experts in layers.1.ffn.router",
    ]
    healthy = RoutingReport.of_sums(torch.tensor([20, 25, 30, 25]), num_tokens=50, entropy=60.0, turned_away=5.0)
    assert monitor.alarms({"r": healthy}) == []
    assert "full experts in r: 30% of all" in monitor.alarms({"r": replace(healthy, drop_rate=0.3)})[0]
    again = ExpertMonitor(run)
    again.load_state_dict(monitor.state_dict())
    assert again.said == monitor.said


def test_a_dense_model_has_no_experts_to_tell_of(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    small_trainer(ExpertMonitor(run, every=1), steps=2).run()
    assert run.rows("experts") == []
