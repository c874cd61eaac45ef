"""`wootz data synthesize`: texts that models write from seed topics."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import AsJson, human_count, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from wootz.data.synthesis import Synthesis
    from wootz.data.synthetic import Generation
    from wootz.providers import Endpoint


def synthesize(
    out: Annotated[Path, typer.Option("-o", "--out", help="The new folder. A stopped run goes on there.")],
    topics: Annotated[Path, typer.Option(help="A file of seed topics, one a line.")],
    base_url: Annotated[list[str], typer.Option(help="An OpenAI-compatible endpoint, such as http://host:8000/v1.")],
    model: Annotated[list[str], typer.Option(help="A teacher at it. Repeat both for several, who take turns.")],
    key_env: Annotated[
        list[str] | None, typer.Option(help="The environment variable that has an endpoint's key, or all endpoints'.")
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help="Texts to ask for; filters leave some of them out.")] = 100,
    seeds: Annotated[
        Path | None, typer.Option(help="Texts of a stronger teacher as examples: its texts.jsonl, or any text file.")
    ] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="Text that people wrote, to be mixed with: is there enough of it?")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each text.")] = 1024,
    min_words: Annotated[int, typer.Option(min=1, help="Shorter texts are left out.")] = 50,
    temperature: Annotated[float, typer.Option(min=0)] = 1.0,
    jaccard: Annotated[float, typer.Option(help="How similar near-copies are, which are left out.")] = 0.7,
    seed: Annotated[int, typer.Option()] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    price: Annotated[
        str | None, typer.Option(metavar="IN,OUT", help="Dollars per million tokens, to estimate the cost by.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="HOUR,RATE", help="A GPU's dollars per hour, and its tokens per second.")
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print what it may cost, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let models write texts from seed topics: kinds and audiences vary, teachers take turns, each line says who wrote
    it. Refusals, cut-off and short texts and near-copies are left out, with the reason.

    Whatever ends it, the same command goes on: no text is asked for twice. Two steps make many diverse texts for
    little: a strong teacher writes few, and a mid-size one many, shown those with --seeds.

    Examples:
      [bold]wootz data synthesize -o few --topics topics.txt --base-url https://api.openai.com/v1 --model gpt-4o
      --key-env OPENAI_API_KEY --texts 200 --price 2.5,10[/bold]
      [bold]wootz data synthesize -o many --topics topics.txt --base-url http://127.0.0.1:8000/v1 --model smollm2
      --seeds few/texts.jsonl --texts 20000 --gpu 2.5,3000 --beside human/[/bold]
    """
    import asyncio
    from dataclasses import asdict

    from wootz.core import progress_bar
    from wootz.data.synthesis import synthesize as write
    from wootz.data.synthetic import Generation
    from wootz.providers import OpenAICompatibleModel

    endpoints = _endpoints(base_url, model, key_env or [])
    plan = Generation(
        topics=_lines(topics),
        num_texts=texts,
        seeds=_texts(seeds) if seeds else (),
        max_tokens=max_tokens,
        temperature=temperature,
        min_words=min_words,
        jaccard=jaccard,
        seed=seed,
        concurrency=concurrency,
    )
    stderr().print(_estimate(plan, len(endpoints), price, gpu), soft_wrap=True)
    if dry:
        return

    async def run() -> Synthesis:
        teachers = [OpenAICompatibleModel(endpoint) for endpoint in endpoints]
        try:
            with progress_bar("Writing texts") as progress:
                return await write(teachers, plan, out, progress)
        finally:
            for teacher in teachers:
                await teacher.close()

    found = asyncio.run(run())
    warning = _mix_warning(found, beside or [])
    if as_json:
        print_json(asdict(found) | {"asked": found.asked, "warning": warning})
        return
    _show(found, out)
    if warning:
        stdout().print(warning, style="yellow", markup=False)


def _endpoints(urls: Sequence[str], models: Sequence[str], key_names: Sequence[str]) -> list[Endpoint]:
    """A URL, and a key's name, for each model; one alone is for all."""
    from wootz.providers import Endpoint

    if len(urls) not in (1, len(models)) or len(key_names) not in (0, 1, len(models)):
        raise typer.BadParameter(
            f"{len(models)} --model need one --base-url (and --key-env), or as many: "
            f"there are {len(urls)} (and {len(key_names)})"
        )
    urls = [*urls] * len(models) if len(urls) == 1 else urls
    key_names = [*key_names] * len(models) if len(key_names) == 1 else key_names
    found = []
    for number, (url, model) in enumerate(zip(urls, models, strict=True)):
        if not url.startswith(("http://", "https://")):
            raise typer.BadParameter(f'"{url}" is no http:// or https:// address')
        if key_names and not os.environ.get(key_names[number]):
            raise typer.BadParameter(f"the environment variable {key_names[number]} is not set")
        key = os.environ[key_names[number]] if key_names else None
        name = model if models.count(model) == 1 else f"{model}@{url.split('//')[1].split('/')[0]}"
        found.append(Endpoint(name=name, base_url=url, api_key=key, upstream_model=model))
    return found


def _lines(file: Path) -> list[str]:
    from wootz.core import ConfigError

    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not any(lines):
        raise ConfigError(f"{file}: has no topics", hint="one a line")
    return [line for line in lines if line]


def _texts(*paths: Path | str) -> list[str]:
    from wootz.data.documents import Source, read_documents

    return [doc.text for path in paths for doc in read_documents(Source(name=Path(path).stem, path=str(path)))]


def _estimate(plan: Generation, num_teachers: int, price: str | None, gpu: str | None) -> str:
    """What it may cost at most: every text as long as it may be. Words of prompts are counted as 4/3 tokens."""
    from decimal import Decimal

    from wootz.data.synthetic import estimate_cost

    words = sum(len(plan.prompt(number).split()) for number in range(min(plan.num_texts, 1000)))
    read = 4 / 3 * words / min(plan.num_texts, 1000)
    written = plan.num_texts * plan.max_tokens
    said = (
        f"{plan.num_texts:,} texts on {len(plan.topics):,} topics by {num_teachers} "
        f"teacher{'s' if num_teachers > 1 else ''}: at most {human_count(written)} tokens written, "
        f"about {human_count(read * plan.num_texts)} read"
    )
    price_in, price_out = _pair("--price", price) if price else (0.0, 0.0)
    hour, rate = _pair("--gpu", gpu) if gpu else (0.0, 1.0)
    cost = estimate_cost(
        written,
        kept=1.0,
        prompt_tokens_per_token=read / plan.max_tokens,
        price_in=Decimal(str(price_in)),
        price_out=Decimal(str(price_out)),
        gpu_hour=Decimal(str(hour)),
        tokens_per_second=rate,
    )
    ways = []
    if price:
        ways.append(f"${cost.api:,.2f} at ${price_in:g} and ${price_out:g} per million")
    if gpu:
        ways.append(f"${cost.self_hosted:,.2f} for {cost.gpu_hours:,.2f} hours of a GPU at {rate:,.0f} tokens/s")
    return f"{said}. " + (f"At most {', or '.join(ways)}." if ways else "What it costs: --price IN,OUT or --gpu.")


def _pair(option: str, text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f'{option} "{text}" is not two numbers, such as 2.5,10') from None
    if first < 0 or second <= 0:
        raise typer.BadParameter(f'{option} "{text}": numbers above 0')
    return first, second


def _mix_warning(found: Synthesis, beside: Sequence[str]) -> str | None:
    from wootz.data.synthetic import mix_guard

    if not beside:
        return None
    human = sum(len(text.split()) for text in _texts(*beside))
    return mix_guard({"people": human, "models": found.words}, ["models"])


def _show(found: Synthesis, out: Path) -> None:
    rows = table("answers", "number", "of all", right=("number", "of all"))
    kept = {f"kept, by {teacher}": number for teacher, number in sorted(found.by_teacher.items())}
    left_out = {f"left out: {reason}": number for reason, number in sorted(found.left_out.items())}
    for what, number in {**kept, **left_out}.items():
        rows.add_row(what, f"{number:,}", f"{number / found.asked:.1%}")
    stdout().print(rows)
    stdout().print(
        f"{human_count(found.completion_tokens)} tokens written, {human_count(found.prompt_tokens)} read; "
        f"{human_count(found.words)} words kept"
    )
    stderr().print(
        f"[green]✓[/green] {out / 'texts.jsonl'}: {found.kept:,} of {found.asked:,} answers kept", soft_wrap=True
    )
    stderr().print(
        f'As a source for wootz data build: name = "made", path = "{out / "texts.jsonl"}", synthetic = true',
        style="dim", markup=False, soft_wrap=True,
    )  # fmt: skip
