"""`wootz rope`: what rotary positions a model has seen, and how to stretch them to longer texts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, print_json, stdout, table

if TYPE_CHECKING:
    from wootz.models import Decoder

app = typer.Typer(help="Inspect, stretch, convert and plot positions, rotary ones above all.", no_args_is_help=True)

Dim = Annotated[int, typer.Option(min=2, help="Dimensions of a head that turn.")]
Base = Annotated[float, typer.Option(help="Of the frequencies.")]
Train = Annotated[int, typer.Option("--train", min=1, help="Length that the model was trained on, in tokens.")]


@app.command()
def inspect(
    dim: Dim = 128,
    base: Base = 10_000.0,
    train: Train = 4096,
    target: Annotated[int, typer.Option(min=1, help="Length that it is to read.")] = 32_768,
    method: Annotated[str, typer.Option(help="none, linear, ntk or yarn")] = "none",
    as_json: AsJson = False,
) -> None:
    """Each pair of dimensions: how fast it turns, how far it turned in training, how far it will.

    Pairs that never completed a turn in training break first, and are marked.

    Example:
      [bold]wootz rope inspect --dim 128 --train 4096 --target 32768 --method yarn[/bold]
    """
    from wootz.core.errors import BadRequestError
    from wootz.models.positions.inspect import compare_scalings

    try:
        methods = compare_scalings(dim, base, train, target)
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    if method not in methods:
        raise BadRequestError(f'no method is called "{method}"', hint=f"there are {', '.join(methods)}")
    if as_json:
        print_json({name: dataclasses.asdict(found) for name, found in methods.items()})
        return
    numbers = ("tokens per turn", "turns in training", "trained to", "will turn to")
    rows = table("pair", *numbers, "", right=("pair", *numbers))
    for pair in methods[method].pairs:
        angles = (f"{angle:.4g} rad" for angle in (pair.trained_angle, pair.target_angle))
        mark = "[red]never seen[/red]" if pair.is_broken else ""
        rows.add_row(str(pair.index), f"{pair.wavelength:.4g}", f"{pair.turns:.3g}", *angles, mark)
    stdout().print(rows)
    broken = ", ".join(f"{name} {len(found.broken)}" for name, found in methods.items())
    stdout().print(f"pairs that would turn where they never were: {broken}; of {dim // 2}")


@app.command()
def advise(
    longest: Annotated[int, typer.Option("--max-ctx", min=1, help="The longest text, in tokens.")],
    train: Annotated[int, typer.Option("--train-ctx", min=1, help="Length of the training texts.")],
    kind: Annotated[str, typer.Option(help="decoder, encoder or encoder-decoder")] = "decoder",
    tuning: Annotated[bool, typer.Option("--finetune/--no-finetune", help="May it be trained on longer texts?")] = True,
    as_json: AsJson = False,
) -> None:
    """Which position scheme to train with, and which rule to stretch it by.

    Example:
      [bold]wootz rope advise --max-ctx 32768 --train-ctx 4096 --no-finetune[/bold]
    """
    from wootz.core.errors import BadRequestError
    from wootz.models.positions.inspect import advise

    if kind not in ("decoder", "encoder", "encoder-decoder"):
        raise BadRequestError(f'no kind is called "{kind}"', hint="decoder, encoder or encoder-decoder")
    advice = advise(trained_length=train, longest=longest, kind=kind, tuning=tuning)
    if as_json:
        print_json(vars(advice))
        return
    scaling = f" with {advice.scaling} scaling" if advice.scaling else ""
    stdout().print(f"[bold]{advice.scheme}[/bold]{scaling}: {advice.reason}")


@app.command()
def scale(
    model: Annotated[Path, typer.Argument(help="A model folder or GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the stretched model.")],
    factor: Annotated[float, typer.Option(min=1, help="How many times longer.")],
    method: Annotated[str, typer.Option(help="linear (PI), ntk, dynamic, yarn or longrope")] = "yarn",
    text: Annotated[Path | None, typer.Option(help="Long text to search LongRoPE's factors on.")] = None,
    population: Annotated[int, typer.Option(min=4, help="Of the search.")] = 16,
    generations: Annotated[int, typer.Option(min=1, help="Of the search.")] = 5,
) -> None:
    """Stretch a model to longer texts: no weight changes, the config says how. A second time is refused.

    Examples:
      [bold]wootz rope scale smollm2 smollm2-32k --factor 4[/bold]
      [bold]wootz rope scale tiny tiny-long --method longrope --factor 4 --text book.txt[/bold]
    """
    from wootz.core.errors import BadRequestError
    from wootz.models import load, save
    from wootz.models.surgery import stretch

    if method not in ("linear", "ntk", "dynamic", "yarn", "longrope"):
        raise BadRequestError(f'no method is called "{method}"', hint="linear, ntk, dynamic, yarn or longrope")
    loaded = load(model)
    found: dict[str, Any] = {}
    if method == "longrope":
        if text is None:
            raise BadRequestError("longrope searches for its factors", hint="give it a long text with --text")
        found = _search(loaded, model, text, factor, population, generations)
    save(stretch(loaded, method, factor, **found), folder, beside=model if model.is_dir() else None)
    stdout().print(f"[green]✓[/green] {folder}  {method} x{factor:g}")


def _search(model: Decoder, path: Path, text: Path, factor: float, population: int, generations: int) -> dict[str, Any]:
    import torch

    from wootz.cli.measures import tokens_of
    from wootz.core.errors import BadRequestError
    from wootz.models.positions.longrope_search import loss_with, search
    from wootz.models.positions.rotary import Rotary

    trained = model.config.max_position_embeddings
    length = int(trained * factor)
    tokens = tokens_of(model, path, text)
    rows = torch.tensor(tokens[: len(tokens) // length * length][: 4 * length]).view(-1, length)
    if not len(rows):
        raise BadRequestError(f"{text}: {len(tokens)} tokens, and the stretched length is {length}")
    rotary = next((module.config for module in model.modules() if isinstance(module, Rotary)), None)
    fitness = loss_with(model, rows, trained)
    assert rotary is not None  # or there would be no fitness
    sizes: dict[str, Any] = {"population": population, "parents": max(2, population // 4), "generations": generations}
    result = search(rotary, trained, length, fitness, **sizes)
    for rule, loss in result.seeds.items():
        stdout().print(f"{rule:8} {loss:.4f} nats per token", style="dim")
    kept = f", {result.unscaled_tokens} first tokens unscaled" if result.unscaled_tokens else ""
    stdout().print(f"found    {result.loss:.4f} nats per token{kept}")
    return {"long_factors": result.factors, "unscaled_tokens": result.unscaled_tokens}


@app.command("convert-layout")
def convert_layout(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the converted model.")],
) -> None:
    """Rotary pairs from half-split to interleaved or back: weights and config together, so it computes the same.

    Example:
      [bold]wootz rope convert-layout tiny tiny-interleaved[/bold]
    """
    from wootz.models import load, save
    from wootz.models.surgery import other_layout

    converted = other_layout(load(model))
    save(converted, folder, beside=model)
    stdout().print(f"[green]✓[/green] {folder}  {converted.config.raw['positions']}")


@app.command()
def plot(
    file: Annotated[Path, typer.Argument(help="The picture, such as rope.png.")],
    scheme: Annotated[str, typer.Option(help="rope, alibi, sinusoidal, or learned (of --model)")] = "rope",
    dim: Dim = 64,
    base: Base = 10_000.0,
    heads: Annotated[int, typer.Option(min=1, help="Of ALiBi.")] = 8,
    length: Annotated[int, typer.Option(min=2, help="Tokens to show.")] = 256,
    model: Annotated[Path | None, typer.Option(help="A model folder with a learned table.")] = None,
) -> None:
    """Draw a position scheme: RoPE's fall with distance, ALiBi's biases, sinusoids, or a learned table's likeness.

    Example:
      [bold]wootz rope plot alibi.png --scheme alibi --heads 8[/bold]
    """
    from wootz.core.errors import BadRequestError
    from wootz.models import load
    from wootz.models.positions import plots
    from wootz.models.positions.rotary import RotaryConfig

    if scheme == "rope":
        plots.plot_rope(file, RotaryConfig(dim, base), length)
    elif scheme == "alibi":
        plots.plot_alibi(file, heads, length)
    elif scheme == "sinusoidal":
        plots.plot_sinusoids(file, length, dim)
    elif scheme == "learned" and model is not None:
        positions = load(model).embedding_positions
        if positions is None or not hasattr(positions, "table"):
            raise BadRequestError(f"{model}: has no learned positions")
        plots.plot_similarity(file, positions.get_submodule("table").get_parameter("weight")[:length])
    else:
        raise BadRequestError(f'cannot draw "{scheme}"', hint="rope, alibi, sinusoidal, or learned with --model")
    stdout().print(f"[green]✓[/green] {file}")
