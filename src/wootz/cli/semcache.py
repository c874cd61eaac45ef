"""`wootz semcache`: find the threshold of answers by meaning, and report one that was wrong."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import AsJson, ServerURL, load, print_json, server_url, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.gateway.caches.tuning import Pair, Tuning

app = typer.Typer(help="Answers by meaning: tune their threshold, report false ones.", no_args_is_help=True)

ApiKey = Annotated[str | None, typer.Option("--key", envvar="WOOTZ_API_KEY", help="A key of that server.")]


@app.command("tune")
def tune(
    ctx: typer.Context,
    pairs: Annotated[Path, typer.Argument(help='JSONL of {"a": "…", "b": "…", "same": true}.')],
    embedder: Annotated[str, typer.Option(help="A folder, source or stored model; with --url a model of that server.")],
    max_false_hits: Annotated[float, typer.Option(min=0, max=1, help="Of what is served.")] = 0.01,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve into this PNG or SVG.")] = None,
    url: ServerURL = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Measure hits and false hits at each threshold, with the guard and without, and pick one.

    Examples:
      [bold]wootz semcache tune pairs.jsonl --embedder ./all-MiniLM-L6-v2[/bold]
      [bold]wootz semcache tune pairs.jsonl --embedder minilm --url http://127.0.0.1:8080 --plot curve.png[/bold]
    """
    from wootz.gateway.caches import tuning

    result = asyncio.run(_tune(ctx, tuning.read_pairs(pairs), embedder, max_false_hits, url, key))
    if plot is not None:
        tuning.plot(result, plot)
    best = {guard: result.best(guard=guard) for guard in (True, False)}
    if as_json:
        curves = {"guarded": result.guarded, "plain": result.plain}
        chosen = {"guarded": best[True], "plain": best[False]}
        print_json(
            {name: [asdict(point) for point in points] for name, points in curves.items()}
            | {"chosen": {name: point and asdict(point) for name, point in chosen.items()}}
        )
        return
    columns = ("hits", "false", "at most")
    rows = table("threshold", *columns, *(f"{name}, unguarded" for name in columns), right=columns)
    for guarded, plain in zip(result.guarded, result.plain, strict=True):
        both = (
            (f"{p.hit_rate:.1%}", f"{p.false_hit_rate:.1%}", f"{p.false_hit_rate_at_most:.1%}")
            for p in (guarded, plain)
        )
        rows.add_row(f"{guarded.threshold:.2f}", *(text for three in both for text in three))
    stdout().print(rows)
    if (chosen := best[True]) is None:
        stderr().print(
            f"[red]✗[/red] no threshold keeps false hits within {max_false_hits:.1%} of what is served: "
            "leave this workload without answers by meaning, or use another embedder"
        )
        raise typer.Exit(1)
    stderr().print(
        f"[green]✓[/green] threshold = {chosen.threshold:.2f} serves {chosen.hit_rate:.1%} of equal questions; "
        f"{chosen.false_hits} of {chosen.hits} hits were false"
    )
    if chosen.false_hit_rate_at_most > max_false_hits:
        stderr().print(
            f"[yellow]![/yellow] so few pairs prove no more than {chosen.false_hit_rate_at_most:.1%} (95 % confidence)"
        )


@app.command("report")
def report(
    ctx: typer.Context,
    request_id: Annotated[str, typer.Argument(help="The header x-request-id of the answer that was wrong.")],
    url: ServerURL = None,
    key: ApiKey = None,
) -> None:
    """An answer by meaning was another question's: have it forgotten, and counted."""
    import httpx

    from wootz.core import NotFoundError, UnavailableError

    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.post(
            f"{url or server_url(ctx)}/v1/caches/false_hits", json={"request_id": request_id}, headers=headers
        )
    except httpx.HTTPError:
        raise UnavailableError(f"{url or server_url(ctx)} does not answer") from None
    if answer.is_error:
        raise NotFoundError(answer.json()["error"]["message"])
    stderr().print("[green]✓[/green] forgotten")


async def _tune(
    ctx: typer.Context, pairs: list[Pair], embedder: str, target: float, url: str | None, key: str | None
) -> Tuning:
    from wootz.app.connect import local_model, models_of_server
    from wootz.app.single import locate
    from wootz.core import NotFoundError
    from wootz.gateway.caches.tuning import tune

    config = load(ctx).config
    if url is not None:
        async with models_of_server(url, key) as models:
            if embedder not in models:
                raise NotFoundError(f'{url} has no model "{embedder}"')
            return await tune(pairs, models[embedder], target)
    async with local_model(config, locate(config, embedder)[1]) as models:
        return await tune(pairs, next(iter(models.values())), target)
