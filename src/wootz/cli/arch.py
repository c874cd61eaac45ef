"""`wootz arch`: look at architectures. Their parameters, their costs, and what small ones of each kind can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli import measures, studies
from wootz.cli.common import AsJson, human_bytes, human_count, load, print_json, stdout, table

if TYPE_CHECKING:
    from wootz.models import Decoder

app = typer.Typer(
    help="Count, cost, compare and build architectures. MODEL is a preset, a pulled model, a folder or a GGUF file.",
    no_args_is_help=True,
)

for name, command in studies.COMMANDS.items():
    app.command(name, rich_help_panel="Experiments on small models")(command)
for name, command in measures.COMMANDS.items():
    app.command(name, rich_help_panel="Measurements")(command)

Model = Annotated[str, typer.Argument(help="A preset (`wootz arch presets`), a pulled model, a folder or a GGUF file.")]
Context = Annotated[int, typer.Option("--ctx", min=1, help="Tokens in the context.")]


def open_model(ctx: typer.Context, name: str, changes: dict[str, Any] | None = None) -> Decoder:
    """The model on the meta device: no weights, whatever its size."""
    from wootz.core.errors import BadRequestError, NotFoundError
    from wootz.models.planning.accounting import on_meta
    from wootz.models.planning.presets import describe
    from wootz.store import ModelStore

    try:
        raw = describe(name)
    except NotFoundError:
        store = ModelStore(load(ctx).config.models_dir)
        if name not in [model.name for model in store.list()]:
            raise
        raw = describe(store.path_of(name))
    try:
        return on_meta(raw | (changes or {}))
    except (KeyError, ValueError) as error:
        raise BadRequestError(f"{name}: {error}") from None


@app.command()
def presets(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the public models whose configs are built in."""
    from wootz.models.planning.accounting import count_parameters
    from wootz.models.planning.presets import presets as known

    counts = {name: count_parameters(open_model(ctx, name)) for name in known()}
    if as_json:
        print_json({name: {"total": count.total, "active": count.active} for name, count in counts.items()})
        return
    rows = table("preset", "family", "parameters", "active", right=("parameters", "active"))
    for name, count in counts.items():
        rows.add_row(name, known()[name]["model_type"], human_count(count.total), human_count(count.active))
    stdout().print(rows)


@app.command()
def params(ctx: typer.Context, model: Model, as_json: AsJson = False) -> None:
    """Count parameters by part, without allocating any.

    Example:
      [bold]wootz arch params mixtral-8x7b[/bold]
    """
    from wootz.models.planning.accounting import count_parameters

    count = count_parameters(open_model(ctx, model))
    if as_json:
        print_json({"total": count.total, "active": count.active, "by_part": count.by_part})
        return
    rows = table("part", "parameters", "share", right=("parameters", "share"))
    for part, number in count.by_part.items():
        rows.add_row(part, f"{number:,}", f"{number / count.total:.1%}")
    rows.add_section()
    rows.add_row("[bold]total[/bold]", f"[bold]{count.total:,}[/bold]", "")
    rows.add_row("active per token", f"{count.active:,}", f"{count.active / count.total:.1%}")
    stdout().print(rows)


@app.command()
def cost(
    ctx: typer.Context,
    model: Model,
    context: Context = 32_768,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    gpu: Annotated[str, typer.Option(help="b200, h200, h100, a100, l40s, l4, rtx4090, mi300x")] = "h100",
    weights: Annotated[str, typer.Option(help="bf16, fp8, int8, int4, …")] = "bf16",
    kv: Annotated[str | None, typer.Option(help="Another attention: mha, mqa or gqa:K")] = None,
    kv_dtype: Annotated[str, typer.Option(help="bf16, fp8, int8, int4")] = "bf16",
    as_json: AsJson = False,
) -> None:
    """What one token costs: cache, arithmetic, and the floor that memory and arithmetic set.

    Example:
      [bold]wootz arch cost llama-3-70b --ctx 32768 --kv gqa:8 --kv-dtype int4 --gpu h100[/bold]
    """
    from wootz.models.families.wootz import kv_heads
    from wootz.models.planning.hardware import device
    from wootz.models.planning.presets import describe
    from wootz.models.planning.roofline import Workload, plan

    changes = {}
    if kv is not None:
        changes["num_key_value_heads"] = kv_heads(kv, describe(model)["num_attention_heads"])
    work = Workload(context=context, batch=batch, weights=weights, kv=kv_dtype)
    made = plan(open_model(ctx, model, changes), device(gpu), work)
    figures = {
        "parameters": made.parameters.total,
        "active_parameters": made.parameters.active,
        "weight_bytes": made.weight_bytes,
        "cache_bytes_per_token": made.cache.bytes_per_token,
        "cache_bytes": made.cache_bytes,
        "flops_per_token": made.flops_per_token,
        "read_ms": 1e3 * made.read_seconds,
        "compute_ms": 1e3 * made.compute_seconds,
        "bound": made.bound,
        "devices": made.fit.devices if made.fit else None,
    }
    if as_json:
        print_json(figures)
        return
    rows = table("what", "figure", "", right=("figure",))
    rows.add_row("parameters", human_count(made.parameters.total), f"{human_count(made.parameters.active)} active")
    rows.add_row("weights", human_bytes(made.weight_bytes), weights)
    rows.add_row("cache per token", human_bytes(made.cache.bytes_per_token), f"{kv_dtype}, all layers")
    rows.add_row("cache", human_bytes(made.cache_bytes), f"{batch} x {context:,} tokens")
    rows.add_row("arithmetic per token", f"{made.flops_per_token / 1e9:.1f} GFLOP", "")
    rows.add_row("reading", f"{1e3 * made.read_seconds:.2f} ms", "of weights and cache, at full bandwidth")
    rows.add_row("computing", f"{1e3 * made.compute_seconds:.2f} ms", "at full arithmetic")
    rows.add_row("bound by", f"[bold]{made.bound}[/bold]", f"a step takes at least {1e3 * made.step_seconds:.2f} ms")
    where = f"{made.fit.devices} x {gpu}" if made.fit else "does not fit"
    rows.add_row("devices", where, _spread(made.fit))
    stdout().print(rows)


def _spread(fit: Any) -> str:
    return f"tensor parallel {fit.tensor}, pipeline {fit.pipeline}" if fit and fit.devices > 1 else ""


@app.command()
def advise(
    context: Annotated[int, typer.Option("--ctx", help="Tokens that have to fit.")] = 8192,
    memory: Annotated[float, typer.Option(help="GB of one device.")] = 80,
    devices: Annotated[int, typer.Option(help="How many of them.")] = 1,
    low_latency: Annotated[bool, typer.Option("--low-latency", help="Answers must come at once.")] = False,
    low_cost: Annotated[bool, typer.Option("--low-cost", help="Cost per token matters most.")] = False,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="Hard problems, long thinking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Which kind of architecture suits a workload, with reasons and numbers.

    Example:
      [bold]wootz arch advise --ctx 500000 --low-latency[/bold]
    """
    from wootz.models.planning.advisor import Needs, advise

    needs = Needs(
        context=context,
        memory_gb=memory,
        devices=devices,
        low_latency=low_latency,
        low_cost=low_cost,
        reasoning=reasoning,
    )
    advice = advise(needs)
    if as_json:
        print_json(vars(advice))
        return
    stdout().print(f"[bold]{advice.choice}[/bold], for example {advice.example} in {advice.weights}")
    for reason in advice.reasons:
        stdout().print(f"  • {reason}")


@app.command()
def build(
    source: Annotated[
        Path,
        typer.Argument(metavar="[SETTINGS]", help="A TOML or JSON file that describes the model; may be left out."),
    ],
    folder: Annotated[Path | None, typer.Argument(metavar="FOLDER", help="Where to write the model.")] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Pattern of mixers, repeated: A attention, W windowed, D differential, L latent, N native sparse, "
            "I linear, G gated linear, T retention, M Mamba, S Mamba-2, 4 S4D, R RWKV-7, r RWKV-4, C convolution. "
            "A - behind a letter: no feed-forward part; an e: experts. \\[default: A]"
        ),
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Number of layers. \\[default: 4]")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Model width. \\[default: 128]")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads. \\[default: 4]")] = None,
    vocab: Annotated[int | None, typer.Option(min=1, help="Vocabulary size. \\[default: 256]")] = None,
    context: Annotated[int | None, typer.Option("--ctx", min=1, help="Longest text. \\[default: 2048]")] = None,
    attention: Annotated[str | None, typer.Option("--attn", help="mha, mqa or gqa:K")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Tokens that W and N look back.")] = None,
    qk_norm: Annotated[bool | None, typer.Option("--qk-norm", help="Normalise queries and keys.")] = None,
    softcap: Annotated[float | None, typer.Option(min=0.1, help="Bound of attention scores.")] = None,
    sinks: Annotated[bool | None, typer.Option("--sinks", help="A learned sink per head.")] = None,
    state: Annotated[int | None, typer.Option(min=1, help="State per channel of M, S, 4 and G.")] = None,
    ffn: Annotated[
        str | None, typer.Option(help="swiglu, geglu, reglu, glu, gelu, relu, relu2, rwkv, or moe:ExK[+S] everywhere")
    ] = None,
    experts: Annotated[str | None, typer.Option(help="ExK[+S], in layers marked with e")] = None,
    positions: Annotated[
        str | None,
        typer.Option("--pos", help="rope, alibi, t5, learned, nope, …; rope,nope by turns, rope+t5 together"),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="Where to normalise: pre, post, output, sandwich, none")] = None,
    parallel: Annotated[bool | None, typer.Option("--parallel", help="Both parts of a layer side by side.")] = None,
    tie: Annotated[
        bool | None, typer.Option("--tie/--untie", help="Head and embedding are one. \\[default: tied]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
) -> None:
    """Build a model out of parts, with random weights, as a folder that everything here can load.

    What the options say holds over what a file says.

    Examples:
      [bold]wootz arch build tiny --layers MMMMMMMA --depth 8 --attn gqa:2 --ffn moe:8x2+1[/bold]
      [bold]wootz arch build jamba --layers "M Me M Ae" --experts 16x2 --pos nope[/bold]
      [bold]wootz arch build tiny.toml tiny --pos alibi[/bold]
    """
    import torch

    from wootz.core.errors import BadRequestError
    from wootz.models import Decoder, read_config, save
    from wootz.models.families.settings import read_settings

    given = {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "layers": layers,
        "attention": attention,
        "sliding_window": window,
        "qk_norm": qk_norm,
        "softcap": softcap,
        "sinks": sinks,
        "state_size": state,
        "ffn": ffn,
        "experts": experts,
        "positions": positions,
        "norm_placement": norm,
        "parallel": parallel,
        "tie_word_embeddings": tie,
    }
    raw = {"model_type": "wootz", "vocab_size": 256, "hidden_size": 128, "num_hidden_layers": 4}
    raw |= {"num_attention_heads": 4} | (read_settings(source) if folder else {})
    raw |= {name: value for name, value in given.items() if value is not None}
    torch.manual_seed(seed)
    try:
        model = read_config(raw).build()
    except (KeyError, ValueError) as error:
        raise BadRequestError(str(error)) from None
    assert isinstance(model, Decoder)
    save(model, folder or source)
    stdout().print(f"[green]✓[/green] {folder or source}  {human_count(model.num_parameters)} parameters")
    stdout().print(json.dumps(raw), style="dim")
