"""`wootz bench serve`: how a running server behaves as more callers come. `wootz bench engine`: an engine by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, ServerURL, load, numbers, print_json, server_url, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.app.diagnosis import Objectives
    from wootz.app.load import Level
    from wootz.models.planning.hardware import Device

app = typer.Typer(help="Measure a running server, or an engine by itself.", no_args_is_help=True)


@app.command("engine")
def engine(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A model folder, a GGUF file, a name of `wootz models`, or a source.")],
    requests: Annotated[int, typer.Option(min=1, help="All of them are there from the start.")] = 32,
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    output_len: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
    profile: Annotated[Path | None, typer.Option(help="Write a Chrome trace of every step here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Offline throughput of the engine, under the \\[engine] settings; with --profile, what its steps' time goes to.

    Examples:
      [bold]wootz bench engine smollm2-135m-instruct --requests 64[/bold]
      [bold]wootz bench engine ./my-model --profile trace.json[/bold]  (open it in ui.perfetto.dev)
    """
    import json

    from wootz.app.offline import measure
    from wootz.app.single import locate
    from wootz.core import progress_bar

    config = load(ctx).config
    _, path = locate(config, model)
    with progress_bar("Generating", requests) as progress:
        result, timeline = measure(
            path,
            config.engine,
            requests=requests,
            input_len=input_len,
            output_len=output_len,
            profile=profile is not None,
            done=progress.advance,
        )
    if profile is not None and timeline is not None:
        profile.write_text(json.dumps(timeline.chrome_trace()))
        stderr().print(f"[green]✓[/green] {profile}")
    if as_json:
        print_json(result)
        return
    stdout().print(
        f"[bold]{model}[/bold]  {requests} requests, {input_len} tokens in, {output_len} out, "
        f"{result['wall_seconds']:.1f} s: [bold]{result['output_tokens_per_second']:.1f}[/bold] tokens out a second, "
        f"{result['total_tokens_per_second']:.1f} in and out\n"
        f"p50/p95/p99 in ms: first token {_spread(result['time_to_first_token'], 1000)}, "
        f"between tokens {_spread(result['inter_token_latency'], 1000)}; "
        f"{result['steps']} steps, {result['preemptions']} preemptions"
    )
    if timeline is not None:
        rows = table("phase", "share", "ms a step", "longest ms", right=("share", "ms a step", "longest ms"))
        for phase in timeline.summary():
            each, longest = f"{1000 * phase.per_step:.2f}", f"{1000 * phase.longest:.2f}"
            rows.add_row(phase.phase, f"{phase.share:.1%}", each, longest)
        stdout().print(rows)


@app.command("serve")
def serve(
    ctx: typer.Context,
    url: ServerURL = None,
    key: Annotated[str | None, typer.Option(envvar="WOOTZ_API_KEY", help="The API key to show.")] = None,
    model: Annotated[str | None, typer.Option(help="\\[default: the first of /v1/models]")] = None,
    concurrency: Annotated[str, typer.Option(help="Levels to sweep.")] = "1,4,16",
    requests: Annotated[int, typer.Option(min=1, help="Requests per level (at least the level itself).")] = 32,
    input_len: Annotated[int, typer.Option(min=1, help="Prompt tokens, the chat template included.")] = 128,
    output_len: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
    slo: Annotated[bool, typer.Option("--slo", help="The usual limits: 500 ms, 50 ms, 0.1 % errors.")] = False,
    slo_ttft: Annotated[float | None, typer.Option(help="Limit in ms for the p95 of time to first token.")] = None,
    slo_itl: Annotated[float | None, typer.Option(help="Limit in ms for the p95 of inter-token latency.")] = None,
    slo_errors: Annotated[float | None, typer.Option(min=0, max=100, help="Limit in % for failed requests.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Say what bounds the engine on this: b200, h100, l4, …")] = None,
    weight_bytes: Annotated[float, typer.Option(min=0.1, help="Bytes per weight, for --gpu: 2 is bf16.")] = 2.0,
    hourly: Annotated[float | None, typer.Option(min=0, help="Dollars per hour: what a million tokens cost.")] = None,
    api_price: Annotated[
        str | None, typer.Option(help="IN,OUT dollars per million to compare with, for --hourly.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for serve.json and serve.png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sweep concurrency: time to first token, inter-token latency, end-to-end time and throughput, with percentiles.

    With --slo (or one of the limits), each level is held against them and the exit code is 1 when one is missed.

    Examples:
      [bold]wootz bench serve --concurrency 1,8,32 --requests 64[/bold]
      [bold]wootz bench serve --url https://llm.example.com --slo-ttft 500 --slo-itl 50 --out bench-out[/bold]
      [bold]wootz bench serve --concurrency 1,8,32,128 --slo --gpu h100 --hourly 2.5 --api-price 0.3,1.2[/bold]
    """
    from dataclasses import astuple

    from wootz.app.diagnosis import Objectives
    from wootz.app.load import LoadGenerator
    from wootz.core import UpstreamError, progress_bar
    from wootz.models.planning.hardware import device

    address = url or server_url(ctx)
    levels: list[Level] = []

    async def run() -> str:
        async with LoadGenerator(address, key) as generator:
            names = await generator.models()
            if not names:
                raise UpstreamError(f"{address} has no model that this key may use")
            name = model or names[0]
            await generator.calibrate(name, input_len)
            for count in numbers(concurrency):
                total = max(requests, count)
                with progress_bar(f"{name}, {count} at a time", total) as progress:
                    levels.append(
                        await generator.level(
                            name,
                            concurrency=count,
                            requests=total,
                            input_len=input_len,
                            output_len=output_len,
                            done=progress.advance,
                        )
                    )
            return name

    name = asyncio.run(run())
    summaries = [level.summary() for level in levels]
    result = {
        "url": address, "model": name, "input_len": input_len, "output_len": output_len, "levels": summaries
    }  # fmt: skip
    if as_json:
        print_json(result)
    else:
        _print(name, summaries)
        for error in dict.fromkeys(sample.error for level in levels for sample in level.samples if sample.error):
            stderr().print(f"failed: {error}", style="red", markup=False)
    if out is not None:
        _write(result, out)
    objectives = Objectives(slo_ttft, slo_itl, None if slo_errors is None else slo_errors / 100)
    if slo:
        objectives = Objectives(
            *(ours or usual for ours, usual in zip(astuple(objectives), astuple(Objectives()), strict=True))
        )
    _advise(summaries, device(gpu) if gpu else None, weight_bytes)
    if hourly is not None:
        _price(summaries, hourly, api_price)
    missed = [level for level in levels if not _holds(level, objectives)]
    if missed or any(summary["failed"] for summary in summaries):
        raise typer.Exit(1)


def _print(name: str, summaries: list[dict[str, Any]]) -> None:
    first = summaries[0]
    stdout().print(
        f"[bold]{name}[/bold]  {first['prompt_tokens_mean']:.0f} tokens in, {first['completion_tokens_mean']:.0f} out; "
        "percentiles p50/p95/p99, times in ms"
    )
    right = ("clients", "answers", "tok/s", "TTFT", "ITL", "end to end", "tok/s each")
    rows = table(*right, right=right)
    for level in summaries:
        good = level["requests"] - level["failed"]
        rows.add_row(
            str(level["concurrency"]),
            f"[red]{good} of {level['requests']}[/red]" if level["failed"] else str(good),
            f"{level['output_tokens_per_second']:.1f}",
            _spread(level["time_to_first_token"], 1000),
            _spread(level["inter_token_latency"], 1000),
            _spread(level["end_to_end"], 1000),
            _spread(level["tokens_per_second_of_a_request"], 1),
        )
    stdout().print(rows)


def _spread(values: dict[str, float], scale: float) -> str:
    return "/".join(f"{scale * values[name]:.0f}" for name in ("p50", "p95", "p99"))


def _holds(level: Level, objectives: Objectives) -> bool:
    """Print one line for each limit that was given, and say whether all of them hold."""
    from wootz.app.diagnosis import check

    checks = check(level.summary(), objectives)
    for one in checks:
        mark = "[green]✓[/green]" if one.kept else "[red]✗[/red]"
        stderr().print(f"{mark} {level.concurrency} at a time: {one.name} {one.measured:.4g}, limit {one.limit:g}")
    ttft, itl = objectives.time_to_first_token, objectives.inter_token_latency
    if ttft is not None or itl is not None:
        share = level.share_within(time_to_first_token=ttft and ttft / 1000, inter_token_latency=itl and itl / 1000)
        stderr().print(f"  {share:.0%} of the requests kept every limit")
    return all(one.kept for one in checks)


def _advise(summaries: list[dict[str, Any]], device: Device | None, weight_bytes: float) -> None:
    """What the engine counted, where the curve bends, and what bounds it."""
    from wootz.app.diagnosis import knee, use, verdict

    for level in summaries:
        if counted := level["engine"]:
            stderr().print(
                f"{level['concurrency']} at a time: {counted['running']:.1f} running, {counted['waiting']:.1f} waiting "
                f"for {1000 * counted['queue_wait_seconds']:.0f} ms, cache {counted['cache_utilisation']:.0%} in use, "
                f"{counted['prefix_hit_rate']:.0%} of prompts found in it, {counted['preemptions']:.0f} preemptions"
            )
        if device is not None and (used := use(level, device, weight_bytes)):
            stderr().print(
                f"  {used.compute:.0%} of {device.name}'s arithmetic, {used.bandwidth:.0%} of its bandwidth: "
                f"{verdict(used)}"
            )
    if len(summaries) >= 3:
        at = knee(summaries)
        stderr().print(
            f"knee at {at} callers: beyond it they wait longer and little more is computed"
            if at
            else "no knee: throughput still grows with every level"
        )


def _price(summaries: list[dict[str, Any]], hourly: float, api_price: str | None) -> None:
    from wootz.app.diagnosis import break_even, cost
    from wootz.core import BadRequestError

    best = max(summaries, key=lambda level: level["output_tokens_per_second"])
    output = best["output_tokens_per_second"]
    if not output:
        return
    rates = best["total_tokens_per_second"] - output, output
    made = cost(hourly, *rates)
    stderr().print(
        f"${hourly:g} an hour, at {best['concurrency']} callers: ${made.output_alone:.3f} per million tokens out; "
        f"shared out 1:4, ${made.input:.3f} in and ${made.output:.3f} out"
    )
    if api_price is None:
        return
    try:
        api_input, api_output = map(float, api_price.split(","))
    except ValueError:
        raise BadRequestError(f'--api-price takes IN,OUT such as 0.3,1.2, not "{api_price}"') from None
    even = break_even(hourly, *rates, api_input=api_input, api_output=api_output)
    volume = even.tokens_a_month
    stderr().print(
        f"that API is {even.times_dearer:.1f} times as dear as this machine kept busy; "
        + (
            f"rented all month it pays from {volume / 1e6:,.0f} million tokens a month"
            if volume is not None
            else "and all it could compute in a month would not pay for it"
        )
    )


def _write(result: dict[str, Any], out: Path) -> None:
    import json

    from wootz.app.load_plot import plot

    out.mkdir(parents=True, exist_ok=True)
    (out / "serve.json").write_text(json.dumps(result, indent=2))
    title = f"{result['model']}: {result['input_len']} tokens in, {result['output_len']} out"
    plot(result["levels"], title, out / "serve.png")
    stderr().print(f"[green]✓[/green] {out / 'serve.json'}, {out / 'serve.png'}")
