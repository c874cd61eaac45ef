"""`wootz arch bench`, `moe-report`, `probe`, `read`, `quantization`: what is measured of forms of attention, and of one
model on one text."""

from __future__ import annotations

import itertools
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


def read(
    model: ModelPath,
    text: TextFile,
    tokens: Annotated[int, typer.Option(min=2, help="At most so many of its tokens.")] = 5000,
    window: Annotated[int, typer.Option(min=1, help="Tokens that a bounded cache keeps.")] = 256,
    sinks: Annotated[int, typer.Option(min=1, help="First tokens that it keeps beside them.")] = 4,
    as_json: AsJson = False,
) -> None:
    """One long text through a model's cache: full as far as it was trained, a window, a window and sinks.

    Example:
      [bold]wootz arch read smollm2.gguf --text book.txt --tokens 5000 --window 256[/bold]
    """
    import torch

    from wootz.core import progress_bar
    from wootz.core.errors import BadRequestError
    from wootz.models import load
    from wootz.models.attention.streaming import StreamingContext, stream_losses

    loaded = load(model)
    token_ids = torch.tensor(tokens_of(loaded, model, text)[:tokens])
    if len(token_ids) < 2:
        raise BadRequestError(f"{text}: is too short")
    trained = loaded.config.max_position_embeddings
    policies = {
        "full": StreamingContext(loaded, capacity=min(trained, len(token_ids))),
        f"window {window}": StreamingContext(loaded, window=window),
        f"window {window} + {sinks} sinks": StreamingContext(loaded, window=window, sinks=sinks),
    }
    edges = [0, *(window * 2**power for power in range(40) if window * 2**power < len(token_ids)), len(token_ids)]
    report = {}
    with progress_bar("Reading") as progress, torch.inference_mode():
        progress.set_total(len(policies))
        for name, context in policies.items():
            read_T = token_ids[: trained + 1] if name == "full" else token_ids
            losses = stream_losses(loaded, read_T, context)
            parts = {end: losses[start:end] for start, end in itertools.pairwise(edges) if start < len(losses)}
            perplexities = {end: part.mean().exp().item() for end, part in parts.items()}
            report[name] = {"perplexity": perplexities, "cache_bytes": context.num_bytes}
            progress.advance()
    if as_json:
        print_json(report)
        return
    columns = [f"to {end:,}" for end in edges[1:]]
    rows = table("cache", *columns, "memory", right=(*columns, "memory"))
    for name, measured in report.items():
        figures = [f"{measured['perplexity'][end]:.1f}" if end in measured["perplexity"] else "" for end in edges[1:]]
        rows.add_row(name, *figures, human_bytes(measured["cache_bytes"]))
    stdout().print(rows)
    stdout().print("perplexity of the tokens since the column before", style="dim")


def quantization(
    model: ModelPath,
    text: TextFile,
    tokens: Annotated[int, typer.Option(min=64, help="Of the text: half to calibrate with, half to test on.")] = 4096,
    methods: Annotated[str, typer.Option(help="Of int8, llm.int8, int4, int4 gptq, int4 awq, int3, …")] = "",
    as_json: AsJson = False,
) -> None:
    """What fewer bits would cost a model: size, error of its layers, perplexity, by method.

    Example:
      [bold]wootz arch quantization smollm2.gguf --text book.txt --methods "int8,int4,int4 gptq"[/bold]
    """
    from wootz.core import progress_bar
    from wootz.core.errors import BadRequestError
    from wootz.models import load
    from wootz.models.weight_quantization import METHODS, quantization_report

    chosen = methods.split(",") if methods else list(METHODS)
    if unknown := [name for name in chosen if name not in METHODS]:
        raise BadRequestError(f"no method is called {', '.join(unknown)}", hint=f"there are {', '.join(METHODS)}")
    loaded = load(model)
    token_ids = tokens_of(loaded, model, text)[:tokens]
    length = min(512, loaded.config.max_position_embeddings, len(token_ids) // 2)
    if length < 16:
        raise BadRequestError(f"{text}: is too short")
    documents = [token_ids[start : start + length] for start in range(0, len(token_ids) - length + 1, length)]
    half = len(documents) // 2
    with progress_bar("Rounding weights") as progress:
        named = {name: METHODS[name] for name in chosen}
        try:
            report = quantization_report(loaded, documents[:half], documents[half:], named, progress=progress)
        except ValueError as error:
            raise BadRequestError(f"{model}: {error}") from None
    if as_json:
        print_json([vars(line) for line in report])
        return
    columns = ("bits", "size", "output error", "perplexity", "worse by")
    rows = table("method", *columns, right=columns)
    for line in report:
        size, gap = human_bytes(line.num_bytes), f"{line.gap:+.1%}"
        rows.add_row(line.method, f"{line.bits:.2f}", size, f"{line.output_mse:.1e}", f"{line.perplexity:.2f}", gap)
    stdout().print(rows)


COMMANDS = {"bench": bench, "moe-report": moe_report, "probe": probe, "read": read, "quantization": quantization}


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
