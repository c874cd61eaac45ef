"""`wootz plan capacity`: how many replicas, how busy, how long people wait, at what cost; what an autoscaler saves."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, print_json, stdout, table

if TYPE_CHECKING:
    from wootz.gateway.scaling import Machine, Policy, Result, Trace
    from wootz.gateway.scaling.policy import PreWarm
    from wootz.models.planning.knobs import Knobs

HOURS_A_MONTH = 730


def capacity(
    ctx: typer.Context,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests a second at the busiest time.")] = 4.0,
    prompt: Annotated[int, typer.Option("--in", min=1, help="Tokens of a prompt.")] = 1000,
    output: Annotated[int, typer.Option("--out", min=1, help="Tokens of an answer.")] = 200,
    model: Annotated[
        str | None, typer.Option(help="Plan its engine too, by roofline: places, speed, format of weights.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="The device for --model: h100, a100, l40s, …")] = "h100",
    weights: Annotated[str | None, typer.Option(help="bf16, fp8, int4, …; default: as advised for the device.")] = None,
    ttft: Annotated[float, typer.Option(min=0, help="Seconds to the first token, without a queue.")] = 0.3,
    itl: Annotated[float, typer.Option(min=0.0001, help="Seconds between tokens; with --model, the goal.")] = 0.025,
    places: Annotated[int, typer.Option(min=1, help="Requests that a replica works on at a time.")] = 8,
    wait: Annotated[float, typer.Option(min=0, help="Longest wait for a place, in seconds …")] = 1.0,
    share: Annotated[float, typer.Option(min=0.5, max=0.9999, help="… of this share of the requests.")] = 0.95,
    price: Annotated[float | None, typer.Option(min=0, help="USD an hour for a replica.")] = None,
    day: Annotated[bool, typer.Option("--day", help="Simulate a working day: little at night, all from nine.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Simulate this load: a CSV of seconds and requests a second.")
    ] = None,
    up: Annotated[float, typer.Option(min=0.05, max=1, help="More replicas from this busy share on.")] = 0.6,
    down: Annotated[float, typer.Option(min=0.01, max=1, help="Fewer from this one down.")] = 0.3,
    load_delay: Annotated[float, typer.Option(min=0, help="Seconds until a new replica answers.")] = 180.0,
    prewarm: Annotated[
        list[str] | None, typer.Option(help="FROM-TO=REPLICAS, each day: 08:50-09:30=8. May be given twice.")
    ] = None,
    floor: Annotated[int, typer.Option(min=1, help="Replicas there are always.")] = 1,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this file (.png, .svg).")] = None,
    as_json: AsJson = False,
) -> None:
    """Replicas, utilisation, waiting times and cost for a load, by queueing theory (M/M/c).

    With --day or --trace also by simulation: a fixed number, the autoscaler, and the autoscaler with pre-warming.

    Examples:
      [bold]wootz plan capacity --rate 6 --in 1000 --out 200 --places 16 --price 2.5[/bold]
      [bold]wootz plan capacity --rate 12 --model qwen3-8b --gpu h100 --itl 0.03[/bold]
      [bold]wootz plan capacity --rate 6 --day --prewarm 08:50-09:30=9 --plot day.svg[/bold]
    """
    from wootz.gateway.scaling import Machine, Policy, Queue, fewest_servers

    if down >= up:
        raise typer.BadParameter("must be under --up, or it would go up and down for ever", param_hint="--down")
    warm = [_pre_warm(text) for text in prewarm or []]
    knobs, advice = None, None
    if model is not None:
        knobs, advice, cost = _engine(ctx, model, gpu, weights, prompt, output, itl)
        places, ttft, itl = knobs.max_num_seqs, knobs.first_token_seconds, knobs.inter_token_seconds
        price = cost if price is None else price
    price = price or 0.0
    service = ttft + output * itl
    servers = fewest_servers(rate, service, wait=wait, share=share, utilisation=up, step=places)
    wanted = servers // places
    rows = []
    for replicas in range(max(1, wanted - 2), wanted + 3):
        queue = Queue(rate, service, replicas * places)
        rows.append(
            {
                "replicas": replicas, "utilisation": queue.utilisation, "waiting": queue.waiting_probability,
                "mean_wait": queue.mean_wait, "wait": queue.wait_quantile(share), "usd_an_hour": replicas * price,
                "usd_a_month": replicas * price * HOURS_A_MONTH, "enough": replicas >= wanted,
            }
        )  # fmt: skip
    runs: dict[str, Result] = {}
    if day or trace is not None:
        load = _trace(trace, rate)
        machine = Machine(places=places, service=service, load_delay=load_delay)
        policy = Policy(up=up, down=down, floor=floor)
        runs = _simulate(load, machine, policy, wanted, warm)
        if plot is not None:
            from wootz.cli.plan_plot import draw

            draw(load, runs, places, plot)
    elif plot is not None:
        raise typer.BadParameter("draws a simulation: give --day or --trace", param_hint="--plot")
    if as_json:
        return print_json(
            {
                "service_seconds": service, "offered_erlangs": rate * service, "replicas": wanted,
                "engine": _knobs_as_json(knobs, advice), "by_replicas": rows,
                "simulated": {name: _summary(run, wait, price) for name, run in runs.items()},
            }
        )  # fmt: skip
    _show(rate, service, places, wanted, rows, share, knobs, advice)
    if runs:
        _show_runs(runs, wait, price)


def _engine(
    ctx: typer.Context, model: str, gpu: str, weights: str | None, prompt: int, output: int, goal: float
) -> tuple[Knobs, str, float]:
    from wootz.cli.arch import open_model
    from wootz.core.errors import BadRequestError
    from wootz.models.planning.hardware import device
    from wootz.models.planning.knobs import advise_weights, tune
    from wootz.models.planning.roofline import Workload

    on = device(gpu)
    advised = advise_weights(on)
    work = Workload(context=prompt + output, prompt=prompt, weights=weights or advised.weights)
    knobs = tune(open_model(ctx, model), on, work, inter_token=goal)
    if knobs is None or knobs.plan.fit is None:
        raise BadRequestError(
            f"{model} on {gpu} does not write a token in {1e3 * goal:g} ms",
            hint="give a larger --itl or other --weights",
        )
    advice = f"{advised.name}: {advised.why}" + ("" if weights in (None, advised.weights) else f" (here: {weights})")
    return knobs, advice, on.dollars_per_hour * knobs.plan.fit.devices


def _knobs_as_json(knobs: Knobs | None, advice: str | None) -> dict[str, Any] | None:
    if knobs is None or knobs.plan.fit is None:
        return None
    return {
        "max_num_seqs": knobs.max_num_seqs,
        "max_num_batched_tokens": knobs.max_num_batched_tokens,
        "inter_token_seconds": knobs.inter_token_seconds,
        "first_token_seconds": knobs.first_token_seconds,
        "devices": knobs.plan.fit.devices,
        "weights": advice,
    }


def _trace(file: Path | None, peak: float) -> Trace:
    from wootz.core.errors import BadRequestError
    from wootz.gateway.scaling.traces import recorded, working_day

    if file is None:
        return working_day(peak)
    try:
        with file.open(newline="") as stream:
            rows = [row for row in csv.reader(stream) if row]
        points = [(float(time), float(rate)) for time, rate, *_ in (rows[1:] if _is_a_head(rows[0]) else rows)]
    except (OSError, ValueError, IndexError) as error:
        raise BadRequestError(f"{file} is no CSV of seconds and requests a second ({error})") from None
    times = [time for time, _ in points]
    if not points or times != sorted(set(times)) or min(rate for _, rate in points) < 0 or not max(points)[1] >= 0:
        raise BadRequestError(f"{file}: times must rise and rates must not be negative")
    if not any(rate for _, rate in points):
        raise BadRequestError(f"{file}: nobody asks for anything")
    return recorded(points)


def _is_a_head(row: list[str]) -> bool:
    return not re.match(r"\s*-?[\d.]", row[0])


def _simulate(load: Trace, machine: Machine, policy: Policy, fixed: int, warm: list[PreWarm]) -> dict[str, Result]:
    from dataclasses import replace

    from wootz.gateway.scaling import simulate

    runs = {
        f"{fixed} always": simulate(load, machine, fixed),
        "autoscaled": simulate(load, machine, policy),
    }
    if warm:
        runs["pre-warmed"] = simulate(load, machine, replace(policy, pre_warm=warm))
    return runs


def _pre_warm(text: str) -> PreWarm:
    from wootz.gateway.scaling.policy import PreWarm

    found = re.fullmatch(r"(\d\d):(\d\d)-(\d\d):(\d\d)=(\d+)", text)
    if found is None or not int(found[5]):
        raise typer.BadParameter(f'"{text}" is not like 08:50-09:30=8', param_hint="--prewarm")
    hours = [int(part) for part in found.groups()]
    if max(hours[0], hours[2]) > 23 or max(hours[1], hours[3]) > 59:
        raise typer.BadParameter(f'"{text}" has a time that no clock shows', param_hint="--prewarm")
    return PreWarm(hours[0] * 3600 + hours[1] * 60, hours[2] * 3600 + hours[3] * 60, hours[4])


def _summary(run: Result, wait: float, price: float) -> dict[str, float]:
    return {
        "requests": len(run.waits),
        "mean_wait": run.mean_wait,
        "wait_p95": run.wait_quantile(0.95),
        "wait_p99": run.wait_quantile(0.99),
        "waited_longer": run.share_waiting(wait),
        "most_replicas": max(loaded for _, loaded, _ in run.samples),
        "replica_hours_paid": run.paid_hours,
        "usd": run.paid_hours * price,
        "changes": len(run.changes),
        "flaps": run.flaps(within=360.0),
    }


def _show(
    rate: float,
    service: float,
    places: int,
    wanted: int,
    rows: list[dict[str, Any]],
    share: float,
    knobs: Knobs | None,
    advice: str | None,
) -> None:
    if knobs is not None and knobs.plan.fit is not None:
        first, following = 1e3 * knobs.first_token_seconds, 1e3 * knobs.inter_token_seconds
        stdout().print(
            f"An engine on {knobs.plan.fit.devices} device(s), by roofline: max_num_seqs {knobs.max_num_seqs}, "
            f"max_num_batched_tokens {knobs.max_num_batched_tokens:,}; first token {first:.0f} ms, then one every "
            f"{following:.1f} ms.\nWeights: {advice}."
        )
    stdout().print(
        f"{rate:g} requests a second of {service:.2f} s each keep {rate * service:.1f} places busy: "
        f"[bold]{wanted} replica{'s' if wanted > 1 else ''}[/bold] of {places} places"
    )
    heads = ("replicas", "busy", "wait at all", "mean wait", f"wait, {share:.0%} of them", "USD/h", "USD/month")
    shown = table(*heads, "", right=heads)
    for row in rows:
        shown.add_row(
            str(row["replicas"]), f"{row['utilisation']:.0%}", f"{row['waiting']:.1%}", _seconds(row["mean_wait"]),
            _seconds(row["wait"]), f"{row['usd_an_hour']:,.2f}", f"{row['usd_a_month']:,.0f}",
            "enough" if row["enough"] else "",
        )  # fmt: skip
    stdout().print(shown)


def _show_runs(runs: dict[str, Result], wait: float, price: float) -> None:
    heads = ("mean wait", "p95", "p99", f"over {wait:g} s", "most", "hours paid", "USD", "changes", "flaps")
    shown = table("simulated", *heads, right=heads)
    for name, run in runs.items():
        one = _summary(run, wait, price)
        shown.add_row(
            name, _seconds(one["mean_wait"]), _seconds(one["wait_p95"]), _seconds(one["wait_p99"]),
            f"{one['waited_longer']:.2%}", f"{one['most_replicas']}", f"{one['replica_hours_paid']:,.0f}",
            f"{one['usd']:,.2f}", str(one["changes"]), str(one["flaps"]),
        )  # fmt: skip
    stdout().print(shown)


def _seconds(value: float) -> str:
    return "for ever" if value == float("inf") else f"{value:,.2f} s" if value >= 0.005 else "none"
