"""`wootz tokenizer`: look at tokenizers, measure and compare them, price them, check them."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, numbers, print_json, stderr, stdout, table
from wootz.cli.tokenizer_inputs import Name, Names, Texts, load_named, read_text, texts_of
from wootz.cli.tokenizer_making import add_commands

if TYPE_CHECKING:
    from rich.text import Text

    from wootz.tokenization import Tokenizer
    from wootz.tokenization.fertility import Fertility
    from wootz.tokenization.inspection import TokenView

app = typer.Typer(
    help="Inspect, measure, compare and extend tokenizers. A TOKENIZER is the name of a model that is here, a model "
    "folder, or a file: tokenizer.json, .tiktoken, .gguf.",
    no_args_is_help=True,
)


@app.command("report")
def report(ctx: typer.Context, tokenizer: Name, texts: Texts = None, as_json: AsJson = False) -> None:
    """How many tokens texts take: per word, per character, per byte; what is unknown, what comes back unchanged.

    Examples:
      [bold]wootz tokenizer report smollm2[/bold]
      [bold]wootz tokenizer report ./model --texts prompts/[/bold]
    """
    measured = _measure(load_named(ctx, tokenizer), texts_of(texts))
    if as_json:
        print_json({name: _as_dict(seen) for name, seen in measured.items()})
        return
    columns = ("tokens", "per word", "per character", "bytes per token", "unknown", "exact")
    rows = table("texts", *columns, right=columns)
    for name, seen in measured.items():
        rows.add_row(
            name,
            f"{seen.num_tokens:,}",
            f"{seen.tokens_per_word:.2f}" if seen.tokens_per_word else "-",
            f"{float(seen.tokens_per_character):.3f}",
            f"{seen.bytes_per_token:.2f}",
            f"{seen.unknown_rate:.1%}",
            f"{seen.round_trip_rate:.0%}",
        )
    stdout().print(rows)


@app.command("compare")
def compare(
    ctx: typer.Context,
    tokenizers: Names,
    texts: Texts = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this file (.png, .svg).")] = None,
    as_json: AsJson = False,
) -> None:
    """Tokenizers side by side on the same texts: tokens, and tokens per word where there are words.

    Examples:
      [bold]wootz tokenizer compare smollm2 ./qwen --texts prompts/ --plot fertility.png[/bold]
    """
    chosen = texts_of(texts)
    measured = {name: _measure(load_named(ctx, name), chosen) for name in tokenizers}
    if plot:
        from wootz.tokenization.plots import plot_fertility

        plot_fertility(measured, plot)
        stderr().print(f"[green]✓[/green] {plot}")
    if as_json:
        print_json({name: {text: _as_dict(seen) for text, seen in rows.items()} for name, rows in measured.items()})
        return
    rows = table("texts", *tokenizers, right=tuple(tokenizers))
    for text in chosen:
        fewest = min(measured[name][text].num_tokens for name in tokenizers)
        rows.add_row(text, *(_cell(measured[name][text], fewest) for name in tokenizers))
    stdout().print(rows)


def _cell(seen: Fertility, fewest: int) -> str:
    count = f"[green]{seen.num_tokens:,}[/green]" if seen.num_tokens == fewest else f"{seen.num_tokens:,}"
    return count + (f" [dim]{seen.tokens_per_word:.2f} a word[/dim]" if seen.tokens_per_word else "")


@app.command("cost")
def cost(
    ctx: typer.Context,
    tokenizers: Annotated[list[str] | None, typer.Argument(metavar="[TOKENIZER...]", help="As above.")] = None,
    texts: Texts = None,
    ratio: Annotated[
        list[str] | None, typer.Option(help="Tokens per character known from elsewhere: NAME=24/14. May be repeated.")
    ] = None,
    system: Annotated[int, typer.Option(min=0, help="Characters of the system prompt.")] = 600,
    user: Annotated[int, typer.Option(min=0, help="Characters of a question.")] = 80,
    response: Annotated[int, typer.Option(min=0, help="Characters of an answer.")] = 200,
    conversations: Annotated[float, typer.Option(min=0, help="A day.")] = 1_000_000,
    days: Annotated[int, typer.Option(min=1)] = 30,
    price: Annotated[str, typer.Option(help="USD for a million tokens in.")] = "1",
    output_price: Annotated[str | None, typer.Option(help="And out. \\[default: the same]")] = None,
    as_json: AsJson = False,
) -> None:
    """What a workload would cost with each tokenizer, cheapest first, by the tokens that texts like yours take.

    Examples:
      [bold]wootz tokenizer cost smollm2 ./qwen --texts prompts/zh.txt --conversations 1e6 --price 1[/bold]
      [bold]wootz tokenizer cost --ratio cl100k=24/14 --ratio o200k=18/14 --ratio qwen=13/14[/bold]
    """
    from fractions import Fraction

    from wootz.tokenization.token_cost import Workload, token_cost

    workload = Workload(system, user, response, int(conversations), _money(price), _money(output_price or price), days)
    ratios: dict[str, Fraction] = {}
    for name in tokenizers or []:
        measured = _measure(load_named(ctx, name), texts_of(texts)).values()
        ratios[name] = Fraction(sum(s.num_tokens for s in measured), max(1, sum(s.num_characters for s in measured)))
    for entry in ratio or []:
        name, _, value = entry.partition("=")
        try:
            ratios[name] = Fraction(value)
        except (ValueError, ZeroDivisionError):
            raise typer.BadParameter(f'"{entry}" is not NAME=RATIO, such as qwen=13/14') from None
    if not ratios:
        raise typer.BadParameter("name a tokenizer, or give a --ratio")
    costs = sorted(((token_cost(workload, value), name) for name, value in ratios.items()), key=lambda row: row[0].cost)
    if as_json:
        print_json(
            [
                {"name": name, "tokens_per_character": str(ratios[name]), **asdict(result), "days": days}
                for result, name in costs
            ]
        )
        return
    columns = ("tokens per character", "tokens each", "tokens a day", f"USD in {days} days", "")
    rows = table("tokenizer", *columns, right=columns)
    for result, name in costs:
        more = f"×{result.cost / costs[0][0].cost:.2f}" if costs[0][0].cost else ""
        rows.add_row(
            name,
            f"{float(ratios[name]):.3f}",
            f"{result.tokens_per_conversation:,}",
            f"{result.tokens_per_day:,}",
            f"{result.cost:,.2f}",
            more,
        )
    stdout().print(rows)


@app.command("lint")
def lint(
    ctx: typer.Context,
    tokenizer: Name,
    messages: Annotated[Path | None, typer.Option(help="A conversation to check: JSON, a list of messages.")] = None,
    prompt: Annotated[Path | None, typer.Option(help="A prompt to check: a text file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find what makes a model answer badly without an error: BOS doubled, no generation prompt, roles out of order.

    Ends with status 1 if there is an error among the findings.

    Examples:
      [bold]wootz tokenizer lint ./model[/bold]
      [bold]wootz tokenizer lint ./model --messages chat.json[/bold]
    """
    from wootz.tokenization.lint import lint_messages, lint_prompt, lint_tokenizer

    loaded = load_named(ctx, tokenizer)
    findings = lint_tokenizer(loaded)
    if messages is not None:
        findings += lint_messages(loaded, _messages(messages))
    if prompt is not None:
        findings += lint_prompt(loaded, read_text(prompt))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    elif not findings:
        stderr().print("[green]✓[/green] nothing found")
    else:
        colors = {"error": "red", "warning": "yellow", "note": "dim"}
        rows = table("", "what", "")
        for finding in findings:
            rows.add_row(f"[{colors[finding.severity]}]{finding.severity}[/]", finding.code, _plain(finding.message))
        stdout().print(rows)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@app.command("encode")
def encode(
    ctx: typer.Context,
    tokenizer: Name,
    text: Annotated[str, typer.Argument(help="The text; - reads it from stdin.")],
    control: Annotated[str, typer.Option(help="Control tokens written in the text: parse, text or forbid.")] = "text",
    special: Annotated[bool, typer.Option(help="Add what the model wants around a document (BOS).")] = False,
    ids: Annotated[bool, typer.Option("--show-ids", help="Print the ids, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show where tokens begin and end. Bytes of a character that is cut apart stand in ⟨hexadecimal⟩.

    Examples:
      [bold]wootz tokenizer encode smollm2 "Grüße, 世界"[/bold]
      [bold]wootz tokenizer encode ./model - --control parse --show-ids < prompt.txt[/bold]
    """
    import sys

    from wootz.tokenization.inspection import view_tokens

    if control not in ("parse", "text", "forbid"):
        raise typer.BadParameter(f'"{control}" is not parse, text or forbid')
    loaded = load_named(ctx, tokenizer)
    found = loaded.encode(sys.stdin.read() if text == "-" else text, add_special_tokens=special, control=control)
    _show(view_tokens(loaded, found), ids, as_json)


@app.command("chat")
def chat(
    ctx: typer.Context,
    tokenizer: Name,
    messages: Annotated[Path, typer.Argument(help="JSON: a list of messages, or an object with them.")],
    template: Annotated[str | None, typer.Option(help="chatml, qwen, llama3, mistral or plain, not its own.")] = None,
    mask: Annotated[bool, typer.Option(help="Underline what training would teach: the assistant's tokens.")] = False,
    ids: Annotated[bool, typer.Option("--show-ids", help="Print the ids, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a conversation as the chat template writes it, token by token, and what the linter has to say about it.

    Examples:
      [bold]wootz tokenizer chat ./model messages.json --show-ids[/bold]
      [bold]wootz tokenizer chat ./model messages.json --template llama3 --mask[/bold]
    """
    from wootz.tokenization.built_in_templates import built_in_template
    from wootz.tokenization.inspection import view_tokens
    from wootz.tokenization.lint import lint_messages

    loaded = load_named(ctx, tokenizer)
    if template is not None:
        ids_of = {"bos_token": loaded.bos_token_id, "eos_token": min(loaded.eos_token_ids, default=None)}
        roles = {role: loaded.token_bytes(id).decode() for role, id in ids_of.items() if id is not None}
        loaded = loaded.with_chat_template(built_in_template(template, special_tokens=roles))
    conversation, tools = _messages(messages), _tools(messages)
    if mask:
        encoded = loaded.encode_chat_masked(conversation, tools=tools)
        _show(view_tokens(loaded, encoded.ids), ids, as_json, encoded.assistant_mask)
    else:
        _show(view_tokens(loaded, loaded.encode_chat(conversation, tools=tools)), ids, as_json)
    for finding in lint_messages(loaded, conversation):
        stderr().print(f"{finding.severity}: {finding.message}", style="yellow", markup=False)


@app.command("inspect")
def inspect(
    ctx: typer.Context,
    tokenizer: Name,
    ids: Annotated[list[int] | None, typer.Argument(help="Token ids to look at.")] = None,
    as_json: AsJson = False,
) -> None:
    """Describe a tokenizer, or single tokens of it: their bytes, their kind, and the merges that build them.

    Examples:
      [bold]wootz tokenizer inspect ./model[/bold]
      [bold]wootz tokenizer inspect ./model 1234 151644[/bold]
    """
    from wootz.core import BadRequestError
    from wootz.tokenization.fingerprint import fingerprint
    from wootz.tokenization.inspection import merge_tree, view_token

    loaded = load_named(ctx, tokenizer)
    if ids is None:
        ends = ", ".join(f"{id} {loaded.token_spelling(id)}" for id in sorted(loaded.eos_token_ids))
        facts = {
            "tokens": loaded.vocab_size,
            "special": len(loaded.special_ids),
            "begins with": None if loaded.bos_token_id is None else loaded.token_spelling(loaded.bos_token_id),
            "ends": ends,
            "chat template": loaded.chat_template is not None,
            "fingerprint": " ".join(fingerprint(loaded).values()),
        }
        if as_json:
            print_json({**facts, "fingerprint": fingerprint(loaded)})
            return
        rows = table("", "")
        for name, value in facts.items():
            rows.add_row(name, _plain("-" if value is None else str(value)))
        stdout().print(rows)
        return
    views = [view_token(loaded, id) for id in ids]
    if as_json:
        print_json([_view_as_dict(view) for view in views])
        return
    rows = table("id", "spelling", "text", "bytes", "kind", right=("id",))
    for view in views:
        rows.add_row(str(view.id), _plain(view.spelling or "-"), _plain(repr(view.text)), view.data.hex(" "), view.kind)
    stdout().print(rows)
    for view in views:
        if view.kind in ("text", "partial"):
            try:
                lines = merge_tree(loaded, view.id).lines()
            except BadRequestError:  # not a BPE
                return
            stdout().print("\n".join(lines), markup=False, style="dim")


@app.command("verify")
def verify(ctx: typer.Context, first: Name, second: Name, texts: Texts = None) -> None:
    """Whether two tokenizers give the same ids for texts. Ends with status 1 at the first difference.

    Examples:
      [bold]wootz tokenizer verify ./model model.gguf --texts corpus/[/bold]
    """
    one, other = load_named(ctx, first), load_named(ctx, second)
    num_texts = num_tokens = 0
    for name, parts in texts_of(texts).items():
        for text in parts:
            mine, theirs = (each.encode(text, add_special_tokens=False) for each in (one, other))
            num_texts, num_tokens = num_texts + 1, num_tokens + len(mine)
            if mine != theirs:
                at = next(n for n, (a, b) in enumerate(zip([*mine, -1], [*theirs, -1], strict=False)) if a != b)
                around = one.decode(mine[max(at - 5, 0) : at + 5])
                stderr().print(f"{name}: ids differ from token {at} on, near {around!r}", style="red", markup=False)
                raise typer.Exit(1)
    stderr().print(f"[green]✓[/green] the same {num_tokens:,} ids for {num_texts:,} texts")


@app.command("study")
def study(
    ctx: typer.Context,
    tokenizer: Name,
    sizes: Annotated[str, typer.Option(help="Vocabulary sizes, up to the tokenizer's own.")],
    width: Annotated[int, typer.Option(min=1, help="Channels of the model.")],
    layer_parameters: Annotated[float, typer.Option(min=0, help="Parameters of its layers, without embeddings.")],
    texts: Texts = None,
    tied: Annotated[bool, typer.Option(help="Whether embedding and output head are one matrix.")] = True,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this file (.png, .svg).")] = None,
    as_json: AsJson = False,
) -> None:
    """What a vocabulary of each size would do to length, parameters and computation, for a BPE's first merges.

    Examples:
      [bold]wootz tokenizer study ./model --sizes 4096,16384,49152 --width 576 --layer-parameters 106e6[/bold]
    """
    from wootz.tokenization.vocabulary_size import study as measure_sizes

    chosen = [text for parts in texts_of(texts).values() for text in parts]
    loaded = load_named(ctx, tokenizer)
    points = measure_sizes(
        loaded, chosen, sorted(numbers(sizes)), width=width, layer_parameters=int(layer_parameters), tied=tied
    )
    if plot:
        from wootz.tokenization.plots import plot_vocabulary_sizes

        plot_vocabulary_sizes(points, plot)
        stderr().print(f"[green]✓[/green] {plot}")
    if as_json:
        print_json([{**asdict(point), "flops": point.flops} for point in points])
        return
    columns = ("tokens", "of the text", "bytes each", "embedding", "share", "GFLOPs", "of these, head")
    rows = table(*columns, right=columns)
    for point in points:
        rows.add_row(
            f"{point.vocab_size:,}",
            f"{point.num_tokens:,}",
            f"{point.bytes_per_token:.2f}",
            f"{point.embedding_parameters / 1e6:.1f}M",
            f"{point.embedding_parameters / (point.embedding_parameters + layer_parameters):.0%}",
            f"{point.flops / 1e9:,.1f}",
            f"{point.head_flops / max(point.flops, 1):.0%}",
        )
    stdout().print(rows)


add_commands(app)


# --- parts ------------------------------------------------------------------------------------------------------


def _conversation(file: Path) -> dict[str, Any]:
    import json

    from wootz.core import BadRequestError

    try:
        content = json.loads(read_text(file))
    except ValueError as error:
        raise BadRequestError(f"{file} is not JSON ({error})") from None
    content = {"messages": content} if isinstance(content, list) else content
    if not isinstance(content, dict) or not isinstance(content.get("messages"), list):
        raise BadRequestError(f"{file} holds no list of messages")
    if not all(isinstance(message, dict) and "role" in message for message in content["messages"]):
        raise BadRequestError(f'{file}: a message is an object with "role" and "content"')
    return content


def _messages(file: Path) -> list[dict[str, Any]]:
    return _conversation(file)["messages"]


def _tools(file: Path) -> list[dict[str, Any]] | None:
    return _conversation(file).get("tools")


def _measure(tokenizer: Tokenizer, texts: dict[str, list[str]]) -> dict[str, Fertility]:
    from wootz.tokenization.fertility import measure

    return {name: measure(tokenizer, parts) for name, parts in texts.items()}


def _as_dict(seen: Fertility) -> dict[str, Any]:
    derived = ("tokens_per_word", "bytes_per_token", "unknown_rate", "round_trip_rate")
    ratio = {"tokens_per_character": float(seen.tokens_per_character)}
    return {**asdict(seen), **{name: getattr(seen, name) for name in derived}, **ratio}


def _money(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:
        raise typer.BadParameter(f'"{text}" is not a price') from None


_STYLES = ("on grey23", "on dark_blue")


def _show(views: list[TokenView], ids: bool, as_json: bool, mask: list[bool] | None = None) -> None:
    """Tokens in alternating colours; control tokens stand out, learned ones are underlined."""
    if as_json:
        learned = mask or [None] * len(views)
        print_json(
            [
                {**_view_as_dict(view), **({} if one is None else {"learned": one})}
                for view, one in zip(views, learned, strict=True)
            ]
        )
        return
    from rich.text import Text

    line = Text()
    for index, view in enumerate(views):
        style = "bold white on dark_red" if view.kind == "control" else _STYLES[index % 2]
        style += " underline" if mask and mask[index] else ""
        shown = view.text.replace("\n", "↵\n").replace("\t", "→\t")
        line.append(shown or f"⟨{view.id}⟩", style=style)
        if ids:
            line.append(f"{view.id}", style="dim")
            line.append(" ")
    stdout().print(line)
    stderr().print(f"{len(views)} tokens", style="dim")


def _view_as_dict(view: TokenView) -> dict[str, Any]:
    return {"id": view.id, "spelling": view.spelling, "text": view.text, "bytes": view.data.hex(), "kind": view.kind}


def _plain(text: str) -> Text:
    """For a table: nothing in it is markup."""
    from rich.text import Text

    return Text(text)
