"""`wootz bench serve`: how a running server behaves as more callers come."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, ServerURL, numbers, print_json, server_url, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.app.load import Level

app = typer.Typer(help="Measure a running server.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure a running server."""


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
    slo_ttft: Annotated[float | None, typer.Option(help="Limit in ms for the p95 of time to first token.")] = None,
    slo_itl: Annotated[float | None, typer.Option(help="Limit in ms for the p95 of inter-token latency.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for serve.json and serve.png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sweep concurrency: time to first token, inter-token latency, end-to-end time and throughput, with percentiles.

    With --slo-ttft or --slo-itl, each level is held against the limits and the exit code is 1 when one is missed.

    Examples:
      [bold]wootz bench serve --concurrency 1,8,32 --requests 64[/bold]
      [bold]wootz bench serve --url https://llm.example.com --slo-ttft 500 --slo-itl 50 --out bench-out[/bold]
    """
    from wootz.app.load import LoadGenerator
    from wootz.core import UpstreamError, progress_bar

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
    missed = [level for level in levels if not _holds(level, slo_ttft, slo_itl)]
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


def _holds(level: Level, slo_ttft: float | None, slo_itl: float | None) -> bool:
    """Print one line for each limit that was given, and say whether all of them hold."""
    summary, holds = level.summary(), True
    for label, limit, name in (("TTFT", slo_ttft, "time_to_first_token"), ("ITL", slo_itl, "inter_token_latency")):
        if limit is None:
            continue
        measured = 1000 * summary[name]["p95"]
        kept = measured <= limit
        holds = holds and kept
        mark = "[green]✓[/green]" if kept else "[red]✗[/red]"
        stderr().print(f"{mark} {level.concurrency} at a time: p95 {label} {measured:.0f} ms, limit {limit:g} ms")
    if slo_ttft is not None or slo_itl is not None:
        share = level.share_within(
            time_to_first_token=slo_ttft and slo_ttft / 1000, inter_token_latency=slo_itl and slo_itl / 1000
        )
        stderr().print(f"  {share:.0%} of the requests kept every limit")
    return holds


def _write(result: dict[str, Any], out: Path) -> None:
    import json

    from wootz.app.load_plot import plot

    out.mkdir(parents=True, exist_ok=True)
    (out / "serve.json").write_text(json.dumps(result, indent=2))
    title = f"{result['model']}: {result['input_len']} tokens in, {result['output_len']} out"
    plot(result["levels"], title, out / "serve.png")
    stderr().print(f"[green]✓[/green] {out / 'serve.json'}, {out / 'serve.png'}")
