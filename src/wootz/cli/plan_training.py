"""`wootz plan MODEL --train-tokens …`: how to lay out a training run, what it takes, and what speaks against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wootz.cli.common import human_bytes, human_count, print_json, stdout, table

if TYPE_CHECKING:
    from wootz.models import Decoder
    from wootz.models.planning.hardware import Device


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What was asked on the command line."""

    tokens: float
    batch_tokens: int
    length: int
    devices: int
    unique_tokens: float | None
    utilisation: float
    dollars_per_hour: float | None


def plan_training(model: Decoder, on: Device, run: TrainingRun, *, as_json: bool, most_rows: int = 8) -> None:
    from wootz.models.planning.accounting import count_parameters
    from wootz.training.planning.budget import budget, data_warnings
    from wootz.training.planning.layouts import Training, candidates
    from wootz.training.planning.scaling_laws import TOKENS_PER_PARAMETER

    counted = count_parameters(model)
    made = budget(
        counted.active, run.tokens, on, run.devices, utilisation=run.utilisation, dollars_per_hour=run.dollars_per_hour
    )
    work = Training(batch_tokens=run.batch_tokens, length=run.length)
    found = candidates(model, on, run.devices, work, efficiency=run.utilisation)
    warnings = data_warnings(run.tokens, run.unique_tokens) if run.unique_tokens else []
    if not found[0].fits:
        warnings.append(
            f"no layout fits into {human_bytes(on.memory)}: the least takes {human_bytes(found[0].memory_bytes)}"
        )
    steps = run.tokens / run.batch_tokens
    if as_json:
        print_json(
            {
                "parameters": counted.total, "flops": made.flops, "steps": steps, "days": made.days,
                "device_years": made.device_years, "dollars": made.dollars, "warnings": warnings,
                "layouts": [
                    {
                        "tensor": c.layout.tensor, "pipeline": c.layout.pipeline, "shard": c.layout.shard,
                        "expert": c.layout.expert, "checkpointing": c.checkpointing, "fits": c.fits,
                        "memory": c.memory, "step_seconds": c.step_seconds, "bubble": c.bubble,
                    }
                    for c in found
                ],
            }
        )  # fmt: skip
        return
    ratio = made.tokens_per_parameter
    stdout().print(
        f"{human_count(counted.total)} parameters on {human_count(run.tokens)} tokens ({ratio:,.0f} for each, "
        f"{ratio / TOKENS_PER_PARAMETER['chinchilla']:.1f} times Chinchilla's): [bold]{made.flops:.2g} FLOPs[/bold], "
        f"{steps:,.0f} steps of {human_count(run.batch_tokens)} tokens"
    )
    stdout().print(
        f"At {run.utilisation:.0%} of {run.devices} {on.name}: [bold]{made.days:,.1f} days[/bold], "
        f"{made.device_years:,.1f} device-years, ${made.dollars:,.0f}"
    )
    columns = ("GB", "s/step", "bubble", "TP", "exposed")
    rows = table("layout", "recompute", *columns, "", right=columns)
    for candidate in found[:most_rows]:
        rows.add_row(
            candidate.name,
            "all" if candidate.checkpointing == "full" else "no",
            f"{candidate.memory_bytes / 1e9:.1f}",
            f"{candidate.step_seconds:.2f}",
            f"{candidate.bubble:.1%}",
            f"{candidate.tensor_seconds:.2f}",
            f"{candidate.shard_seconds:.2f}",
            "" if candidate.fits else "too big",
        )
    stdout().print(rows)
    best = found[0].memory
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in best.items() if size)
    stdout().print(f"The first one's GB per device: {parts}.", style="dim")
    for warning in warnings:
        stdout().print(f"[yellow]{warning}[/yellow]")
    stdout().print("A model calculation, of makers' figures. Measure before you rely on it.", style="dim")
