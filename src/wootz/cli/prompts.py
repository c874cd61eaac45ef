"""`wootz prompts`: look at prompts as a provider's cache sees them."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

import typer

from wootz.cli.common import AsJson, load, print_json, stderr, stdout, table

app = typer.Typer(help="Look at prompts as a provider's cache sees them.", no_args_is_help=True)


@app.callback()
def prompts() -> None:
    """Look at prompts as a provider's cache sees them."""


@app.command("lint-cache")
def lint_cache(
    ctx: typer.Context,
    requests: Annotated[Path, typer.Argument(help="JSONL of chat requests, each alone or under body or request.")],
    baseline: Annotated[
        Path | None, typer.Option(help="The requests before a change: exit with 1 when less is shared now.")
    ] = None,
    input_price: Annotated[
        str | None, typer.Option(help="USD per million tokens. \\[default: the model's own]")
    ] = None,
    cached_price: Annotated[
        str | None, typer.Option(help="Of cached ones. \\[default: the model's, or a tenth]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say where requests stop sharing their beginning, what stands there, and what it costs.

    Examples:
      [bold]wootz prompts lint-cache requests.jsonl --input-price 3[/bold]
      [bold]wootz prompts lint-cache new.jsonl --baseline old.jsonl[/bold]
    """
    from wootz.gateway.caches.lint import lint, read_requests

    groups = lint(read_requests(requests))
    models = load(ctx).config.models

    def prices(model: str) -> tuple[Decimal, Decimal]:
        own = models[model].price if model in models else None
        fresh = _decimal(input_price) if input_price else own.input if own else Decimal(0)
        cached = _decimal(cached_price) if cached_price else own.cached_input if own else None
        return fresh, fresh / 10 if cached is None else cached

    saved = {id(group): group.saved(*prices(group.model)) for group in groups}
    if as_json:
        print_json([asdict(group) | {"saved_usd": saved[id(group)]} for group in groups])
    else:
        rows = table("model", "where", "what", "found", "requests", "tokens lost", right=("requests", "tokens lost"))
        for group in groups:
            for finding in group.findings[:10]:
                figures = (f"{finding.requests:,}", f"{finding.lost_tokens:,}")
                rows.add_row(group.model, finding.where, finding.what, finding.text, *figures)
        if rows.row_count:
            stdout().print(rows)
        for group in groups:
            stderr().print(
                f"{group.model}: {group.requests} share {group.cacheable:.0%} of {group.prompt_tokens:,} tokens; "
                f"{group.lost_tokens:,} more are lost to breaks, USD {saved[id(group)].normalize():f}"
            )
    if baseline is not None:
        before = _shared(lint(read_requests(baseline)))
        now = _shared(groups)
        if now < before:
            stderr().print(f"[red]✗[/red] {now:.0%} of the tokens are shared; it was {before:.0%}")
            raise typer.Exit(1)
        stderr().print(f"[green]✓[/green] {now:.0%} of the tokens are shared; it was {before:.0%}")


def _shared(groups: list) -> float:
    total = sum(group.prompt_tokens for group in groups)
    return sum(group.shared_tokens for group in groups) / total if total else 0.0


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise typer.BadParameter(f'"{text}" is not a price') from None
