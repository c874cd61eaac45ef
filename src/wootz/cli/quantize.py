"""`wootz quantize`: a model in fewer bits, in the layouts that other engines read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wootz.cli.common import AsJson, human_bytes, print_json, stderr, stdout, table


def quantize(
    source: Annotated[Path, typer.Argument(help="A model folder, or a .gguf file.")],
    target: Annotated[Path, typer.Argument(help="The folder to write; for q4_0, q4_k, … a .gguf file.")],
    method: Annotated[
        str,
        typer.Option(help="rtn4, int8, gptq, awq, smoothquant, llm-int8, fp8, fp8-static; q8_0, q6_k, q4_k, q4_0, …"),
    ],
    calib: Annotated[
        Path | None,
        typer.Option(
            help="Texts to calibrate and to test on: .txt, .jsonl with text or messages, or a folder of them."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Pieces of text to calibrate with.")] = 128,
    seq: Annotated[int, typer.Option(min=16, help="Tokens of a piece.")] = 512,
    test_samples: Annotated[int, typer.Option(min=0, help="Other pieces, to take the perplexity of.")] = 16,
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale. \\[default: 128, 64 or 32, as divides all]")
    ] = None,
    output_tensor_type: Annotated[
        str | None,
        typer.Option(help="GGUF: of the output layer, q4_1 for instance. \\[default: six bits at least]"),
    ] = None,
    act_order: Annotated[bool, typer.Option("--act-order", help="GPTQ: columns of large activations first.")] = False,
    clip: Annotated[bool, typer.Option(help="AWQ: search for where to cut each group's range off.")] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Replace what was quantised there before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Quantise a whole model: size, error of each layer, perplexity before and after.

    GPTQ and AWQ are written as AutoGPTQ and AutoAWQ do, llm-int8 as bitsandbytes, the rest as compressed-tensors, so
    vLLM and transformers read them too; a report lies beside the weights. The target is there as a whole or not at all.

    Examples:
      [bold]wootz quantize smollm2 smollm2-awq --method awq --calib book.txt[/bold]
      [bold]wootz quantize smollm2 smollm2-w8a8 --method smoothquant --calib chats.jsonl --samples 64[/bold]
      [bold]wootz quantize smollm2 smollm2.gguf --method q4_k[/bold]
      [bold]wootz quantize smollm2 fast.gguf --method q4_1 --output-tensor-type q4_1[/bold]
    """
    from wootz.core import progress_bar
    from wootz.core.errors import BadRequestError
    from wootz.models.gguf_metadata import FILE_TYPES
    from wootz.models.weight_quantization.whole_model import quantize as quantize_model
    from wootz.tokenization.export import tokenizer_files

    to_gguf = method.upper() in FILE_TYPES
    if to_gguf != (target.suffix == ".gguf"):
        kind = "a .gguf file" if to_gguf else "a folder"
        raise BadRequestError(f"{target}: {method} is written to {kind}", hint="name another target or method")
    if output_tensor_type and not to_gguf:
        raise BadRequestError(f"{method} leaves the output layer as it is", hint="--output-tensor-type is for GGUF")
    pieces = _pieces(source, calib, seq, samples + test_samples) if calib else []
    if calib and len(pieces) < 2:
        raise BadRequestError(f"{calib}: has less than two pieces of {seq} tokens", hint="use more text or --seq")
    # Where there is too little text for all that was asked, an eighth of it is for the test.
    num_test = min(test_samples, max(1, len(pieces) // 8)) if pieces else 0
    every = max(1, len(pieces) // max(1, num_test))
    test = pieces[every - 1 :: every][:num_test]
    calibration = [piece for piece in pieces if piece not in test][:samples]
    if to_gguf:
        report = _to_gguf(source, target, method, output_tensor_type, test, replace)
    else:
        with progress_bar(f"Quantising {source.name}") as progress:
            report = quantize_model(
                source,
                target,
                method,
                calibration=calibration,
                test=test,
                described={"source": str(calib), "tokens_per_text": seq} if calib else None,
                group_size=group_size,
                act_order=act_order,
                clip=clip,
                files=tokenizer_files(source) if source.suffix == ".gguf" else None,
                replace=replace,
                progress=progress,
            )
    if as_json:
        print_json(vars(report))
        return
    _show(report)
    stderr().print(f"[green]✓[/green] [bold]{target}[/bold]  {human_bytes(report.bytes_after)}")


def _to_gguf(
    source: Path, target: Path, method: str, output_type: str | None, test: list[list[int]], replace: bool
) -> Any:
    from wootz.core import progress_bar
    from wootz.models import converting, load
    from wootz.models.weight_quantization.report import perplexity
    from wootz.models.weight_quantization.whole_model import Report, bytes_of_weights
    from wootz.tokenization.export import gguf_vocabulary

    vocabulary = gguf_vocabulary(source) if source.suffix != ".gguf" else None
    with progress_bar(f"Quantising {source.name}", unit="bytes") as progress:
        converting.convert(
            source,
            target,
            type=method,
            output_type=output_type,
            vocabulary=vocabulary,
            replace=replace,
            progress=progress,
        )
    report = Report(method, None, {}, bytes_of_weights(source), bytes_of_weights(target))
    if test:
        report.perplexity_before = perplexity(load(source), test)
        report.perplexity_after = perplexity(load(target, keep_quantized="exact"), test)
    return report


def _pieces(source: Path, calib: Path, seq: int, most: int) -> list[list[int]]:
    """Texts end to end, cut into pieces of one length (each with the model's first token before it), taken evenly."""
    from wootz.tokenization import load_tokenizer
    from wootz.tokenization.texts import read_texts

    tokenizer = load_tokenizer(source)
    first = tokenizer.encode("")[:1]
    texts = (tokenizer.encode(text, add_special_tokens=False, control="text") for text in read_texts(calib))
    token_ids, size = [token for text in texts for token in text], seq - len(first)
    pieces = [first + token_ids[start : start + size] for start in range(0, len(token_ids) - size + 1, size)]
    return pieces[:: max(1, len(pieces) // most)][:most]


def _show(report: Any) -> None:
    rows = table("", "before", "after", right=("before", "after"))
    rows.add_row("weights", human_bytes(report.bytes_before), human_bytes(report.bytes_after))
    if report.bits:
        rows.add_row("bits of a quantised weight", "", f"{report.bits:.2f}")
    if report.mean_error is not None:
        worst = max(report.errors, key=report.errors.__getitem__)
        rows.add_row("output error, mean of all projections", "0", f"{report.mean_error:.1e}")
        rows.add_row(f"output error of the worst, {worst}", "0", f"{report.errors[worst]:.1e}")
    if report.perplexity_before is not None:
        rows.add_row("perplexity", f"{report.perplexity_before:.2f}", f"{report.perplexity_after:.2f}")
    stdout().print(rows)
    if report.rarely_used:
        few = ", ".join(f"{name} ({count})" for name, count in [*report.rarely_used.items()][:3])
        stdout().print(f"{len(report.rarely_used)} experts had too few tokens and were rounded as they are: {few} …")
