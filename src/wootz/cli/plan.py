"""`wootz plan`: what serving a model would take, before renting anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from wootz.cli.arch import Context, Model, open_model
from wootz.cli.common import PLAIN_HELP, AsJson, human_bytes, human_count, print_json, stdout, table
from wootz.cli.plan_capacity import capacity

if TYPE_CHECKING:
    from wootz.models import Decoder
    from wootz.models.planning.hardware import Device
    from wootz.models.planning.roofline import Workload


class ModelByDefault(TyperGroup):
    """`wootz plan MODEL` is `wootz plan model MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["model", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ModelByDefault, no_args_is_help=True, help="What it would take, before renting anything.", **PLAIN_HELP
)


def plan(
    ctx: typer.Context,
    model: Model,
    gpu: Annotated[str, typer.Option(help="b200, h200, h100, a100, l40s, l4, rtx4090, mi300x")] = "h100",
    context: Context = 8192,
    prompt: Annotated[int | None, typer.Option(min=1, help="Tokens of each prompt. \\[default: the context]")] = None,
    weights: Annotated[str, typer.Option(help="bf16, fp8, int8, int4, …")] = "bf16",
    kv_dtype: Annotated[str, typer.Option(help="bf16, fp8, int8, int4")] = "bf16",
    batches: Annotated[str, typer.Option(help="Batch sizes to compare.")] = "1,8,32,128",
    efficiency: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the roofline you expect.")] = 0.6,
    price: Annotated[float | None, typer.Option(help="Dollars per device and hour.")] = None,
    scaling: Annotated[bool, typer.Option("--scaling", help="What more devices per layer gain instead.")] = False,
    train_tokens: Annotated[
        float | None, typer.Option(help="Plan a training run on so many tokens.", rich_help_panel="Training")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Devices to train on.", rich_help_panel="Training")] = 8,
    batch_tokens: Annotated[
        float, typer.Option(min=1, help="Tokens of one step, in whole contexts.", rich_help_panel="Training")
    ] = 2**22,
    unique_tokens: Annotated[
        float | None, typer.Option(min=1, help="Tokens that the corpus has.", rich_help_panel="Training")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Devices, memory, speed and cost per million tokens, by roofline; or of a training run.

    Example:
      [bold]wootz plan qwen3-235b-a22b --gpu h100 --ctx 32768 --weights fp8[/bold]
      [bold]wootz plan llama-3-70b --scaling --batches 1,64[/bold]
      [bold]wootz plan llama-3-70b --train-tokens 15e12 --gpus 2048 --batch-tokens 16777216[/bold]
    """
    from wootz.cli.common import numbers
    from wootz.models.planning.hardware import device
    from wootz.models.planning.roofline import Workload
    from wootz.models.planning.roofline import plan as make

    shape, on = open_model(ctx, model), device(gpu)
    if train_tokens is not None:
        from wootz.cli.plan_training import TrainingRun, plan_training
        from wootz.core.errors import BadRequestError

        if train_tokens <= 0:
            raise BadRequestError(f"--train-tokens {train_tokens:g} must be positive")
        run = TrainingRun(
            tokens=train_tokens, batch_tokens=int(batch_tokens), length=context, devices=gpus,
            unique_tokens=unique_tokens, utilisation=efficiency, dollars_per_hour=price,
        )  # fmt: skip
        plan_training(shape, on, run, as_json=as_json)
        return
    if scaling:
        works = [Workload(context=context, batch=batch, weights=weights, kv=kv_dtype) for batch in numbers(batches)]
        _scaling(shape, on, works, as_json=as_json)
        return
    plans = {
        batch: make(
            shape,
            on,
            Workload(context=context, batch=batch, prompt=prompt, weights=weights, kv=kv_dtype),
            efficiency=efficiency,
            dollars_per_hour=price,
        )
        for batch in numbers(batches)
    }
    if as_json:
        print_json(
            {
                batch: {
                    "devices": made.fit.devices if made.fit else None,
                    "tensor_parallel": made.fit.tensor if made.fit else None,
                    "pipeline_parallel": made.fit.pipeline if made.fit else None,
                    "weight_bytes": made.weight_bytes,
                    "cache_bytes": made.cache_bytes,
                    "step_ms": 1e3 * made.step_seconds,
                    "tokens_per_second": batch / made.step_seconds * efficiency,
                    "prefill_ms": 1e3 * made.prefill_seconds / efficiency,
                    "bound": made.bound,
                    "dollars_per_million_output": made.dollars_per_million_output,
                    "dollars_per_million_input": made.dollars_per_million_input,
                }
                for batch, made in plans.items()
            }
        )
        return
    first = next(iter(plans.values()))
    stdout().print(
        f"[bold]{model}[/bold]: {human_count(first.parameters.total)} parameters, "
        f"{human_bytes(first.weight_bytes)} in {weights}; {human_bytes(first.cache.bytes_at(context))} of cache per "
        f"sequence of {context:,} tokens"
    )
    rows = table(
        "batch", "TPxPP", "tok/s", "ms/token", "prefill ms", "bound", "$/M out", "$/M in",
        right=("batch", "tok/s", "ms/token", "prefill ms", "$/M out", "$/M in"),
    )  # fmt: skip
    for batch, made in plans.items():
        step = made.step_seconds / efficiency
        rows.add_row(
            str(batch),
            f"{made.fit.tensor}x{made.fit.pipeline}" if made.fit else "too big",
            f"{batch / step:,.0f}",
            f"{1e3 * step:.1f}",
            f"{1e3 * made.prefill_seconds / efficiency:,.0f}",
            made.bound,
            f"{made.dollars_per_million_output:.2f}",
            f"{made.dollars_per_million_input:.3f}",
        )
    stdout().print(rows)
    stdout().print(
        f"A model calculation: {efficiency:.0%} of what {gpu}'s makers specify. Measure before you rely on it.",
        style="dim",
    )


def _scaling(shape: Decoder, on: Device, works: list[Workload], *, as_json: bool) -> None:
    """Tensor parallelism by size, for each batch, and where it stops to pay."""
    from wootz.models.planning.tensor_parallel import sweet_spot, tensor_costs

    costs = {work.batch: tensor_costs(shape, on, work) for work in works}
    best = {batch: sweet_spot(sizes).devices for batch, sizes in costs.items()}
    if as_json:
        print_json(
            {
                batch: {
                    "sweet_spot": best[batch],
                    "sizes": {
                        cost.devices: {"step_ms": 1e3 * cost.seconds, "link_ms": 1e3 * cost.link_seconds}
                        for cost in sizes
                    },
                }
                for batch, sizes in costs.items()
            }
        )
        return
    rows = table("batch", "TP", "ms/step", "of it links", "speedup", "per device", right=("batch", "TP", "ms/step"))
    for batch, sizes in costs.items():
        for cost in sizes:
            mark = " *" if cost.devices == best[batch] else ""
            rows.add_row(
                str(batch),
                f"{cost.devices}{mark}",
                f"{1e3 * cost.seconds:.2f}",
                f"{cost.link_seconds / cost.seconds:.0%}",
                f"{cost.speedup:.1f}x",
                f"{cost.efficiency:.0%}",
            )
    stdout().print(rows)
    stdout().print(
        "* the last doubling that saves a fifth of the step. Decoding, by roofline, nothing measured.", style="dim"
    )


app.command("model")(plan)
app.command("capacity")(capacity)
