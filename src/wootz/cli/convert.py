"""`wootz convert`: any model file into any other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wootz.cli.common import human_bytes, stderr


def convert(
    source: Annotated[Path, typer.Argument(help="A model folder, a .gguf file, or a torch.distributed checkpoint.")],
    target: Annotated[Path, typer.Argument(help="Ends in .gguf for a GGUF file; anything else is a model folder.")],
    type: Annotated[
        str | None,
        typer.Option(help="f32, f16 or bf16; for GGUF also q8_0, q6_k, q5_k, q4_k, … \\[default: as the source]"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The folder with config.json and tokenizer, for a distributed checkpoint.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A LoRA folder in PEFT's format, merged into the source.")
    ] = None,
    max_shard: Annotated[float, typer.Option(help="Largest *.safetensors file, in GB.", min=0.001)] = 5.0,
    tokenizer: Annotated[bool, typer.Option(help="Bring the tokenizer along.")] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the target if it is a model.")] = False,
) -> None:
    """Convert a model between folders and GGUF, either way, tokenizer and all.

    The target is there as a whole or not at all, and never needs the memory of the whole model, unless an adapter is
    merged into it.

    Examples:
      [bold]wootz convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2[/bold]
      [bold]wootz convert smollm2 smollm2.gguf --type q4_k[/bold]
      [bold]wootz convert smollm2 smollm2-sql --adapter adapters/sql[/bold]
      [bold]wootz convert runs/7/step-900 tuned --config smollm2 --type bf16[/bold]
    """
    from wootz.core import progress_bar
    from wootz.models import converting
    from wootz.tokenization.export import gguf_vocabulary, tokenizer_files

    to_gguf, from_gguf = target.suffix == ".gguf", source.suffix == ".gguf"
    vocabulary = gguf_vocabulary(config or source) if tokenizer and to_gguf and not from_gguf else None
    files = tokenizer_files(source) if tokenizer and from_gguf and not to_gguf else None
    with progress_bar(f"Converting {source.name}", unit="bytes") as progress:
        converting.convert(
            source,
            target,
            type=type,
            config=config,
            adapter=adapter,
            vocabulary=vocabulary,
            files=files,
            max_shard_bytes=int(max_shard * 1e9),
            replace=replace,
            progress=progress,
        )
    size = sum(file.stat().st_size for file in ([target] if to_gguf else target.iterdir()))
    stderr().print(f"[green]✓[/green] [bold]{target}[/bold]  {human_bytes(size)}")
