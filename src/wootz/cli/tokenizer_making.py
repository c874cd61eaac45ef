"""`wootz tokenizer expand`, `train`, `convert`: what leaves a new vocabulary behind."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wootz.cli.common import AsJson, print_json, stderr, stdout
from wootz.cli.tokenizer_inputs import Name, Texts, files_in, load_named, read_text, texts_of


def add_commands(app: typer.Typer) -> None:
    app.command("expand")(expand)
    app.command("train")(train)
    app.command("convert")(convert)


def expand(
    ctx: typer.Context,
    model: Annotated[Path, typer.Argument(help="A model folder with safetensors.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    terms: Annotated[Path, typer.Option("--new-terms", help="A text file, one term a line; spaces at its ends count.")],
    init: Annotated[str, typer.Option(help="New rows: subpiece-mean, mean or random.")] = "subpiece-mean",
    spaced: Annotated[bool, typer.Option(help="Also each term with a space before it.")] = True,
    multiple: Annotated[int, typer.Option("--pad-to-multiple-of", min=1, help="Rows of the embedding.")] = 1,
    seed: Annotated[int, typer.Option()] = 0,
    texts: Texts = None,
    as_json: AsJson = False,
) -> None:
    """Give a trained model new tokens: it knows them only after training, its new rows first.

    Examples:
      [bold]wootz tokenizer expand ./model ./model-medical --new-terms medical.txt --texts notes/[/bold]
    """
    from wootz.tokenization import load_tokenizer
    from wootz.tokenization.expand import expand_vocabulary
    from wootz.tokenization.expand import report as expansion_report

    if init not in ("random", "mean", "subpiece-mean"):
        raise typer.BadParameter(f'"{init}" is not random, mean or subpiece-mean')
    lines = [line for line in read_text(terms).splitlines() if line.strip()]
    wanted = list(dict.fromkeys(form for line in lines for form in ((line, f" {line}") if spaced else (line,))))
    expansion = expand_vocabulary(model, out, wanted, init=init, seed=seed, pad_to_multiple_of=multiple)
    chosen = [text for parts in texts_of(texts).values() for text in parts]
    seen = expansion_report(load_tokenizer(model), load_tokenizer(out), expansion, chosen)
    if as_json:
        print_json({**asdict(expansion), **asdict(seen), "out": out})
        return
    stderr().print(f"[green]✓[/green] {out}: {len(expansion.ids)} new tokens, {expansion.num_rows:,} rows")
    stdout().print(f"These texts take {seen.tokens_after:,} tokens instead of {seen.tokens_before:,}.")
    if seen.bytes_to_learn is None:
        stdout().print(
            f'"{seen.rarest}" never occurs in them: what is not seen in training is not learned.', markup=False
        )
    else:
        stdout().print(
            f'The rarest, "{seen.rarest}", occurs {seen.rarest_count} times: training needs about '
            f"{seen.bytes_to_learn / 1e6:,.1f} MB like this to see it a hundred times.",
            markup=False,
        )


def train(
    texts: Annotated[list[Path], typer.Argument(help="Text files, or folders of them.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new folder.")],
    vocab_size: Annotated[int, typer.Option(min=1, help="Tokens, special and reserved ones included.")],
    algorithm: Annotated[str, typer.Option(help="byte_bpe, sentencepiece_bpe, wordpiece or unigram.")] = "byte_bpe",
    pattern: Annotated[
        str, typer.Option(help="How byte_bpe cuts words: a name such as cl100k, or a regex.")
    ] = "cl100k",
    special: Annotated[
        list[str] | None, typer.Option(help="A special token; the first ends a text. \\[default: <|endoftext|>]")
    ] = None,
    reserve: Annotated[int, typer.Option(min=0, help="Special tokens to keep for later.")] = 0,
    template: Annotated[str | None, typer.Option(help="chatml, qwen, llama3, mistral or plain.")] = None,
) -> None:
    """Make a vocabulary out of texts, in a folder that models, transformers and these commands read.

    Examples:
      [bold]wootz tokenizer train corpus/ -o my-tokenizer --vocab-size 8000 --reserve 256[/bold]
    """
    from wootz.core import BadRequestError
    from wootz.tokenization.built_in_templates import built_in_template
    from wootz.tokenization.train import train_tokenizer, write_tokenizer

    algorithms = ("byte_bpe", "sentencepiece_bpe", "wordpiece", "unigram")
    if algorithm not in algorithms:
        raise typer.BadParameter(f'"{algorithm}" is none of {", ".join(algorithms)}')
    chosen = special or ["<|endoftext|>"]
    source = built_in_template(template).source if template else None
    files = files_in(texts)
    if not files:
        raise BadRequestError("there are no texts to train on")
    made = train_tokenizer(
        (read_text(file) for file in files),
        algorithm,  # type: ignore[arg-type]  (looked at above)
        vocab_size=vocab_size,
        pattern=pattern,
        special_tokens=chosen,
        reserve=reserve,
    )
    write_tokenizer(made, out, roles={"eos_token": chosen[0]}, chat_template=source)
    stderr().print(f"[green]✓[/green] {out}: {made.get_vocab_size():,} tokens")


def convert(
    ctx: typer.Context,
    tokenizer: Name,
    out: Annotated[Path, typer.Argument(help="A .tiktoken file, or a new folder for tokenizer.json.")],
) -> None:
    """Write a tokenizer in another form, and read it back to see that it gives the same ids.

    Examples:
      [bold]wootz tokenizer convert ./my-tokenizer ranks.tiktoken[/bold]
      [bold]wootz tokenizer convert model.gguf ./tokenizer[/bold]
    """
    import tokenizers

    from wootz.tokenization import load_tokenizer
    from wootz.tokenization.ranks import read_tiktoken, write_tiktoken
    from wootz.tokenization.train import write_tokenizer

    loaded = load_named(ctx, tokenizer)
    backend = tokenizers.Tokenizer.from_str(loaded.to_json())
    if out.suffix == ".tiktoken":
        write_tiktoken(backend, out)
        stderr().print(f"[green]✓[/green] {out}: {len(read_tiktoken(out)):,} ranks; it does not say how words are cut")
        return
    ids_of = {"bos_token": loaded.bos_token_id, "eos_token": min(loaded.eos_token_ids, default=None)}
    roles = {role: loaded.token_spelling(id) or "" for role, id in ids_of.items() if id is not None}
    template = loaded.chat_template.source if loaded.chat_template else None
    write_tokenizer(backend, out, roles=roles, chat_template=template)
    again = load_tokenizer(out)
    differs = [
        name
        for name, parts in texts_of(None).items()
        if any(again.encode(part) != loaded.encode(part) for part in parts)
    ]
    if differs:
        stderr().print(f"error: {out} gives other ids for {', '.join(differs)}", style="red", markup=False)
        raise typer.Exit(1)
    stderr().print(f"[green]✓[/green] {out}: {again.vocab_size:,} tokens, the same ids")
