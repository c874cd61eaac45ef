"""What every command of `wootz eval` does: reach the model, ask, keep, report, print; and the options that takes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, load, print_json, server_url, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.core import Config, LanguageModel
    from wootz.evals.long_context import Case, Row, Setup, TokenizerLike


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The options of every command here."""

    ctx: typer.Context
    model: Annotated[str, typer.Option(help="A path or name of `wootz models` to run right here, or a server's model.")]
    url: Annotated[str | None, typer.Option(help="Any OpenAI-compatible server that has the model.")] = None
    key: Annotated[str | None, typer.Option(envvar="WOOTZ_API_KEY", help="The API key to show.")] = None
    tokenizer: Annotated[
        str | None, typer.Option(help="Model folder or GGUF file that counts tokens. \\[default: the model's]")
    ] = None
    plain: Annotated[bool, typer.Option("--plain", help="Continue plain text, don't chat: for base models.")] = False
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, for models that think first. \\[default: by task]")
    ] = None
    seed: Annotated[int, typer.Option(help="Another seed, other texts and needles.")] = 0
    concurrency: Annotated[int, typer.Option(min=1, help="Questions asked at a time.")] = 1
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; one that was cut short goes on. \\[default: under WOOTZ_HOME/runs]"),
    ] = None
    as_json: AsJson = False


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Typer reads options off a signature: this gives the command's the fields of `Shared` too, and hands them over as
    its first argument."""
    own = list(signature(command, eval_str=True).parameters.values())[1:]
    shared = list(signature(Shared, eval_str=True).parameters.values())

    @wraps(command)
    def run(**given: Any) -> None:
        command(Shared(**{option.name: given.pop(option.name) for option in shared}), **given)

    options = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in (*shared[:2], *own, *shared[2:])]
    run.__dict__["__signature__"] = Signature(options)
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


class Run:
    """One evaluation: ``kind`` and ``what`` say which cases; together with the model they name the folder it is kept
    in."""

    def __init__(self, kind: str, shared: Shared, haystack: Path | None, what: dict[str, Any]) -> None:
        self.kind, self.shared, self.haystack = kind, shared, haystack
        self.config: Config = load(shared.ctx).config
        self.settings = {
            "kind": kind, "model": shared.model, "url": shared.url, "seed": shared.seed, "tokenizer": shared.tokenizer,
            "haystack": fingerprint(haystack), "answer_tokens": shared.answer_tokens, "plain": shared.plain, **what,
        }  # fmt: skip
        self.folder = shared.out or self.config.home / "runs" / self._name()

    def ask(self, make_cases: Callable[[Setup], list[Case]]) -> list[Row]:
        """The rows of all cases, those from an earlier try included. Ctrl-C keeps what is done."""
        try:
            return asyncio.run(self._ask(make_cases))
        except KeyboardInterrupt:
            stderr().print(f"stopped; the same command goes on where this one was ({self.folder})", markup=False)
            raise typer.Exit(130) from None

    def show(self, rows: list[Row], threshold: float | None = None, claimed: int | None = None) -> None:
        """Write the report with its pictures, and print it."""
        from wootz.core import MissingExtraError
        from wootz.evals.long_context.plots import plot_report
        from wootz.evals.long_context.report import build_report, write_report

        report = build_report(rows, self.settings, threshold=threshold, claimed=claimed)
        files = write_report(report, self.folder)
        try:
            files += plot_report(report, self.folder)
        except MissingExtraError as error:
            stderr().print(f"no pictures: {error}", style="dim", markup=False)
        if self.shared.as_json:
            print_json(report)
        else:
            _print(report)
        names = ", ".join(file.name for file in files)
        stderr().print(f"[green]✓[/green] {self.folder}: {names}", soft_wrap=True)

    def check_can_record(self) -> Path | None:
        """The ``config.json`` that `record` writes to, or None if that is the store's own record of the model. Raises
        `BadRequestError`, before anything is asked, where there is neither."""
        from wootz.core import BadRequestError, NotFoundError
        from wootz.store import ModelStore

        name, path = self.shared.model, Path(self.shared.model).expanduser().absolute()
        if self.shared.url is not None:
            raise BadRequestError("--record writes to a model that is here, and this one is a server's")
        if path.exists():
            if not (path / "config.json").is_file():
                raise BadRequestError(f"{path} has no config.json to write to", hint="pull it first, and name it")
            return path / "config.json"
        try:
            ModelStore(self.config.models_dir).get(name)
        except NotFoundError:
            raise BadRequestError(f'--record writes to a model that is here, and "{name}" is not') from None
        return None

    def record(self, measured: dict[str, Any]) -> None:
        """Write what was measured into the model's metadata."""
        from wootz.core.atomic import atomic_file
        from wootz.models.positions.extension import with_working_context
        from wootz.store import ModelStore

        file, length = self.check_can_record(), measured["working_length"]
        if file is None:
            ModelStore(self.config.models_dir).record_working_length(self.shared.model, length)
        else:
            config = with_working_context(json.loads(file.read_bytes()), measured)
            with atomic_file(file) as stream:
                stream.write((json.dumps(config, indent=2) + "\n").encode())
        stderr().print(f"[green]✓[/green] recorded: {self.shared.model} works up to {length} tokens")

    async def _ask(self, make_cases: Callable[[Setup], list[Case]]) -> list[Row]:
        from wootz.core import progress_bar
        from wootz.evals import Journal, long_context

        chat = not self.shared.plain
        async with self._open() as (model, tokenizer):
            if tokenizer is None:
                count = await long_context.counter_by_probing(model, chat=chat)
            else:
                count = long_context.chat_counter(tokenizer) if chat else long_context.plain_counter(tokenizer)
            setup = long_context.Setup(
                count=count, seed=self.shared.seed, answer_tokens=self.shared.answer_tokens, chat=chat,
                haystack=long_context.from_file(self.haystack) if self.haystack else long_context.essays,
            )  # fmt: skip
            cases = make_cases(setup)
            with Journal(self.folder, self.settings) as journal, progress_bar(f"{self.kind}, {model.name}") as progress:
                return await long_context.evaluate(
                    model, cases, journal, concurrency=self.shared.concurrency, chat=chat, progress=progress
                )

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[tuple[LanguageModel, TokenizerLike | None]]:
        """The model, and what counts its tokens. Without --url, a path or a model of the store is run by an engine of
        this command's own; any other name is the platform's."""
        from wootz.app.connect import local_model, models_of_server
        from wootz.core import NotFoundError

        name, server = self.shared.model, self.shared.url or server_url(self.shared.ctx)
        path = self._path_of(name)
        local = path if self.shared.url is None else None
        tokenizer = self._tokenizer(path)
        with stderr().status(f"Loading {name}…" if local else f"Connecting to {server}…") as status:
            source = local_model(self.config, local) if local else models_of_server(server, self.shared.key)
            async with source as models:
                status.stop()
                chosen = next(iter(models)) if local else name
                if chosen not in models:
                    raise NotFoundError(f'{server} has no model "{chosen}"', hint=f"there is {', '.join(models)}")
                yield models[chosen], tokenizer

    def _tokenizer(self, model: Path | None) -> TokenizerLike | None:
        from wootz.core import NotFoundError

        named = self.shared.tokenizer
        path = self._path_of(named) if named else model
        if path is None and named:
            raise NotFoundError(f'there is no tokenizer "{named}"', hint="give a model folder or a GGUF file")
        if path is None:
            return None
        from wootz.tokenization import load_tokenizer

        return load_tokenizer(path)

    def _path_of(self, name: str) -> Path | None:
        """A path that is there, or a model of the store."""
        from wootz.core import NotFoundError
        from wootz.store import ModelStore

        path = Path(name).expanduser().absolute()
        if path.exists():
            return path
        try:
            return ModelStore(self.config.models_dir).path_of(name)
        except NotFoundError:
            return None

    def _name(self) -> str:
        """The same for the same settings, so that the same command finds its run."""
        model = re.sub(r"[^\w.-]+", "-", Path(self.shared.model).name)
        return f"{self.kind}-{model}-{hashlib.sha256(json.dumps(self.settings).encode()).hexdigest()[:8]}"


def fingerprint(file: Path | None) -> str | None:
    """Name and content of a file that shapes a run, so that a changed file is another run."""
    from wootz.core import BadRequestError

    if file is None:
        return None
    try:
        return f"{file.name} sha256:{hashlib.sha256(file.expanduser().read_bytes()).hexdigest()[:16]}"
    except OSError as error:
        raise BadRequestError(f"{file} can't be read ({error.strerror})") from None


def _print(report: dict[str, Any]) -> None:
    from wootz.evals.long_context.report import findings

    if "prefill" in report:
        rows = table("tokens", "seconds to first token", right=("tokens", "seconds to first token"))
        for length, seconds in report["prefill"]["medians"].items():
            rows.add_row(str(length), f"{seconds:.3f}")
    elif not report["by_length"]:
        rows = table("position", "score", "95 % interval", right=("position", "score", "95 % interval"))
        for entry in sorted(report.get("by_depth", ()), key=lambda entry: entry["depth"]):
            rows.add_row(f"{entry['depth']:.0%}", f"{entry['mean']:.0%}", f"{entry['low']:.0%}–{entry['high']:.0%}")
    else:
        lengths = [entry["length"] for entry in report["by_length"]]
        columns = [str(length) for length in lengths]
        rows = table("task", *columns, right=tuple(columns))
        cells = {(entry["task"], entry["length"]): _cell(entry) for entry in report["scores"]}
        tasks = list(dict.fromkeys(entry["task"] for entry in report["scores"]))
        for task in tasks:
            rows.add_row(task, *(cells.get((task, length), "") for length in lengths))
        if len(tasks) > 1 and "layouts" not in report:
            rows.add_row("[bold]all[/bold]", *(_cell(entry) for entry in report["by_length"]))
    stdout().print(rows)
    for line in findings(report):
        stdout().print(line, markup=False, soft_wrap=True)


def _cell(entry: dict[str, Any]) -> str:
    """``60% (31–83)``, and the strict share where partial credit makes a difference."""
    strict = f", all {entry['strict']:.0%}" if abs(entry["strict"] - entry["mean"]) > 1e-9 else ""
    return f"{entry['mean']:.0%} ({100 * entry['low']:.0f}–{100 * entry['high']:.0f}{strict})"
