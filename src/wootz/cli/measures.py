"""`wootz arch bench`, `moe-report`, `probe`: what is measured of forms of attention, and of one model on one text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wootz.cli.common import AsJson, human_bytes, print_json, stdout, table

if TYPE_CHECKING:
    from torch import Tensor

    from wootz.models import Decoder

ModelPath = Annotated[Path, typer.Argument(help="A model folder or GGUF file.")]
TextFile = Annotated[Path, typer.Option(help="A text to read.")]
Tokens = Annotated[int, typer.Option(min=2, help="At most so many of its tokens.")]


def bench(
    what: Annotated[str, typer.Argument(help="attention")],
    n: Annotated[str, typer.Option("--n", help="Lengths: 512,1024, or 512..8192 for doublings.")] = "512..4096",
    impl: Annotated[str, typer.Option(help="Of naive, sdpa, tiled, swa, linear.")] = "naive,sdpa,tiled,swa,linear",
    backward: Annotated[bool, typer.Option("--backward", help="The backward pass too.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    picture: Annotated[Path | None, typer.Option("--plot", help="Draw both curves into this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Forms of attention side by side: time and peak memory over the length of the text.

    Example:
      [bold]wootz arch bench attention --n 512..8192 --impl naive,tiled,swa --plot attention.png[/bold]
    """
    from wootz.core import progress_bar
    from wootz.core.errors import BadRequestError
    from wootz.models.attention.comparison import IMPLEMENTATIONS, measure, plot

    names = impl.split(",")
    if what != "attention":
        raise BadRequestError(f'nothing called "{what}" can be measured', hint="attention can")
    if unknown := [name for name in names if name not in IMPLEMENTATIONS]:
        raise BadRequestError(f"no form is called {', '.join(unknown)}", hint=f"there are {', '.join(IMPLEMENTATIONS)}")
    results = []
    with progress_bar("Measuring attention") as progress:
        progress.set_total(len(names) * len(lengths(n)))
        for name in names:
            for length in lengths(n):
                results.append(measure(length, name, backward=backward, device=device))
                progress.advance()
    if picture is not None:
        plot(results, picture)
    if as_json:
        print_json([vars(result) for result in results])
        return
    columns = ("tokens", "ms", "peak memory", "largest difference")
    rows = table("form", *columns, right=columns)
    for result in results:
        error = "" if result.max_error is None else f"{result.max_error:.1e}"
        rows.add_row(result.impl, f"{result.n:,}", f"{1e3 * result.seconds:.2f}", human_bytes(result.peak_bytes), error)
    stdout().print(rows)


def lengths(text: str) -> list[int]:
    """``512..4096``: 512, 1024, 2048, 4096; or a list with commas."""
    from wootz.cli.common import numbers

    first, dots, last = text.partition("..")
    if not dots:
        return numbers(text)
    (low,), (high,) = numbers(first), numbers(last)
    return [low * 2**power for power in range((high // low).bit_length())]


def moe_report(model: ModelPath, text: TextFile, tokens: Tokens = 2048, as_json: AsJson = False) -> None:
    """How busy each layer's router keeps its experts on a text: load, entropy, dead experts, drops.

    Example:
      [bold]wootz arch moe-report runs/moe --text book.txt[/bold]
    """
    import torch

    from wootz.core.errors import BadRequestError
    from wootz.models.routing import RoutingReport, watch_routing

    loaded, token_ids = _read(model, text, tokens)
    with torch.inference_mode(), watch_routing(loaded) as routings:
        loaded.logits(token_ids)
    reports = [RoutingReport.of(routing) for routing in routings.values()]
    if not reports:
        raise BadRequestError(f"{model}: has no experts")
    if as_json:
        print_json([vars(report) for report in reports])
        return
    columns = ("busiest / mean", "load entropy", "token entropy", "dead", "dropped")
    rows = table("router", *columns, "load", right=columns)
    for number, report in enumerate(reports):
        numbers = (f"{report.max_over_mean:.2f}", f"{report.load_entropy:.3f}", f"{report.token_entropy:.3f}")
        load = " ".join(map(str, report.load[:16])) + (" …" if len(report.load) > 16 else "")
        rows.add_row(str(number), *numbers, str(len(report.dead)), f"{report.drop_rate:.1%}", load)
    stdout().print(rows)
    stdout().print("entropies are shares of the largest possible: 1 is all alike", style="dim")


def probe(
    model: ModelPath,
    text: TextFile,
    tokens: Tokens = 512,
    at_least: Annotated[float, typer.Option(help="An activation is massive above this size …")] = 100.0,
    ratio: Annotated[float, typer.Option(help="… and this many times its layer's median.")] = 1000.0,
    as_json: AsJson = False,
) -> None:
    """Attention sinks and massive activations of a model on a text, and what the loss is without the latter.

    Example:
      [bold]wootz arch probe smollm2.gguf --text book.txt[/bold]
    """
    from wootz.core.errors import BadRequestError
    from wootz.models import RecurrentState
    from wootz.models.probes import ablate, attention_sinks, massive_activations

    loaded, token_ids = _read(model, text, tokens)
    if all(isinstance(spec, RecurrentState) for spec in loaded.cache_specs):
        raise BadRequestError(f"{model}: has no attention to look into")
    sinks = attention_sinks(loaded, token_ids)
    massive = massive_activations(loaded, token_ids, at_least=at_least, ratio=ratio)
    loss = ablate(loaded, token_ids, massive) if massive else None
    if as_json:
        print_json(
            {
                "first_token_share": sinks.first_mass.tolist(),
                "uniform_share": sinks.uniform,
                "sinks": sinks.sinks(),
                "massive": [vars(activation) for activation in massive],
                "ablation": loss and vars(loss),
            }
        )
        return
    rows = table("attention layer", "first token's share", "strongest head", right=("first token's share",))
    for layer, mass in enumerate(sinks.first_mass):
        rows.add_row(str(layer), f"{mass.mean():.1%}", f"{int(mass.argmax())} with {mass.max():.1%}")
    stdout().print(rows)
    stdout().print(f"uniform attention would give it {sinks.uniform:.1%}; heads that are sinks: {len(sinks.sinks())}")
    for activation in massive[:10]:
        place = f"layer {activation.layer}, token {activation.token}, feature {activation.feature}"
        stdout().print(f"massive: {activation.value:.1f} at {place}, {activation.ratio:,.0f} times the median")
    if loss is None:
        stdout().print("no massive activations")
        return
    others = sum(loss.random) / len(loss.random)
    stdout().print(f"loss {loss.loss:.3f}; {loss.ablated:.3f} with these set to zero; {others:.3f} with as many others")


COMMANDS = {"bench": bench, "moe-report": moe_report, "probe": probe}


def _read(path: Path, text: Path, most: int) -> tuple[Decoder, Tensor]:
    """A model, and as many of the text's first tokens as it was made for, ``most`` at most."""
    import torch

    from wootz.core.errors import BadRequestError
    from wootz.models import load

    model = load(path)
    token_ids = tokens_of(model, path, text)[: min(most, model.config.max_position_embeddings)]
    if len(token_ids) < 2:
        raise BadRequestError(f"{text}: is too short")
    return model, torch.tensor(token_ids)


def tokens_of(model: Decoder, path: Path, text: Path) -> list[int]:
    """Models of bytes, as experiments make them, need no tokenizer."""
    from wootz.core.errors import NotFoundError
    from wootz.tokenization import load_tokenizer

    if not text.is_file():
        raise NotFoundError(f"{text}: no such file")
    if model.config.vocab_size == 256 and path.is_dir() and not (path / "tokenizer.json").exists():
        return list(text.read_bytes())
    return load_tokenizer(path).encode(text.read_text(errors="replace"))
