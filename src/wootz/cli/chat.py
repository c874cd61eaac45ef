"""`wootz chat`: talk to a model in this terminal.

The model behind it is any `LanguageModel`: one of a running platform, or a file that is served by an engine of this
chat's own. One event loop lives as long as the chat, but runs only while there is an answer to wait for; so Ctrl-C
during an answer stops the answer, and at the prompt it only clears the line.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import ServerURL, load, server_url, stderr, stdout

if TYPE_CHECKING:
    from wootz.cli.conversation import Conversation


def chat(
    ctx: typer.Context,
    message: Annotated[str | None, typer.Argument(help="Ask this one thing and exit; - reads it from stdin.")] = None,
    model: Annotated[str | None, typer.Option(help="A model of the platform, or a path to run right here.")] = None,
    url: ServerURL = None,
    key: Annotated[str | None, typer.Option(envvar="WOOTZ_API_KEY", help="The API key to show.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="\\[default: the model's own]")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
) -> None:
    """Chat in this terminal. /help lists what can be typed; Ctrl-C stops an answer, Ctrl-D leaves.

    Examples:
      [bold]wootz chat --key sk-wootz-…[/bold]                (or WOOTZ_API_KEY)
      [bold]wootz chat --model ./model.gguf[/bold]            (needs no platform)
      [bold]wootz chat "Name three rivers"[/bold]
      [bold]git diff | wootz chat --system "Write a commit message" -[/bold]
    """
    from wootz.app.connect import local_model, models_of_server
    from wootz.cli.conversation import Conversation
    from wootz.core import NotFoundError

    path = Path(model).expanduser().absolute() if model else None
    local = path is not None and path.exists()
    url = url or server_url(ctx)
    with asyncio.Runner() as runner:
        resources = AsyncExitStack()
        try:
            source = local_model(load(ctx).config, path) if path and local else models_of_server(url, key)
            with stderr().status(f"Loading {model}…" if local else f"Connecting to {url}…"):
                models = runner.run(resources.enter_async_context(source))
            chosen = model if model and not local else next(iter(models))
            if chosen not in models:
                raise NotFoundError(f'{url} has no model "{chosen}"', hint=f"there is {', '.join(models)}")
            conversation = Conversation(models[chosen], models, system, temperature, max_tokens)
            if message is not None:
                text = sys.stdin.read() if message == "-" else message
                runner.run(conversation.answer_plainly(text))
            else:
                _talk(runner, conversation)
        finally:
            runner.run(resources.aclose())


def _talk(runner: asyncio.Runner, conversation: Conversation) -> None:
    """Read, answer, repeat."""
    from wootz.core import WootzError

    _load_line_editing()
    stdout().print(f"[bold]{conversation.model.name}[/bold]  [dim]/help for commands, Ctrl-D to leave[/dim]")
    while True:
        try:
            text = _read()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if not text:
            continue
        try:
            if text.startswith("/"):
                if conversation.command(text):
                    return
            else:
                runner.run(conversation.answer(text))
        except KeyboardInterrupt:
            stdout().print("[dim]stopped[/dim]")
        except WootzError as error:
            stderr().print(f"error: {error}", style="red", markup=False)


def _read() -> str:
    '''One message: a line; lines that end in a backslash go on; """ opens a block that the next """ closes.'''
    line = input("\n› ").strip()
    if line.startswith('"""'):
        lines = [line.removeprefix('"""')]
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(input("… "))
        return "\n".join(lines).strip().removesuffix('"""').strip()
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{input('… ')}"
    return line


def _load_line_editing() -> None:
    """Arrow keys and history at the prompt, where this Python has them. History stays in memory only."""
    with suppress(ImportError):
        import readline  # noqa: F401
