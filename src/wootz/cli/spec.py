"""`wootz spec`: drafts that make a model faster: what they bring, and how to make them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wootz.cli.common import AsJson, load, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from torch import Tensor

    from wootz.training.fit import Fitted

app = typer.Typer(help="Speculative decoding: measure it, and train what drafts.", no_args_is_help=True)

Model = Annotated[Path, typer.Argument(help="A model folder or GGUF file.")]
Text = Annotated[Path, typer.Option("--text", help="A text file, like what the model will be asked and will answer.")]
Out = Annotated[Path, typer.Option("--out", help="The folder to write.")]
Steps = Annotated[int, typer.Option(min=1, help="Training steps.")]
Batch = Annotated[int, typer.Option(min=1, help="Texts per step.")]
Length = Annotated[int, typer.Option(min=8, help="Tokens of each text.")]
Rate = Annotated[float, typer.Option("--learning-rate", min=0)]
Replace = Annotated[bool, typer.Option("--replace", help="Replace the folder if it is there.")]
Answers = Annotated[int, typer.Option(min=0, help="Train on so many answers that the model writes itself.")]


@app.command("simulate")
def simulate(
    alpha: Annotated[float, typer.Option(min=0, max=1, help="How often a drafted token is right.")] = 0.7,
    k: Annotated[int, typer.Option("--k", min=1, help="Longest draft.")] = 4,
    cost: Annotated[float, typer.Option(min=0, help="Drafting one token, in steps of the model.")] = 0.05,
    row_cost: Annotated[float, typer.Option(min=0, help="One more row, as a part of reading the weights.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps to simulate.")] = 10_000,
    as_json: AsJson = False,
) -> None:
    """What the speed-up model says for each draft length, and drafts simulated by chance beside it.

    Examples:
      [bold]wootz spec simulate --alpha 0.7 --k 4[/bold]
      [bold]wootz spec simulate --alpha 0.8 --k 8 --row-cost 0.125 --batch 16[/bold]
    """
    from wootz.engine.speculation.measure import model_table
    from wootz.engine.speculation.pace import simulate

    rows = [
        row | {"simulated_tokens": simulate(alpha, int(row["tokens"]), steps)}
        for row in model_table(alpha, cost, row_cost, batch, k)
    ]
    if as_json:
        print_json(rows)
        return
    columns = ("drafted", "tokens per step", "simulated", "speed-up")
    shown = table(*columns, right=columns)
    for row in rows:
        mark = "[bold]{}[/bold]" if row["best"] else "{}"
        figures = (f"{row['expected_tokens']:.2f}", f"{row['simulated_tokens']:.2f}", f"{row['speedup']:.2f}")
        shown.add_row(*(mark.format(figure) for figure in (f"{row['tokens']}", *figures)))
    stdout().print(shown)


@app.command("measure")
def measure(
    ctx: typer.Context,
    model: Model,
    method: Annotated[str, typer.Option(help="prompt-lookup, draft-model or heads.")] = "prompt-lookup",
    path: Annotated[Path | None, typer.Option(help="The draft model, or the folder of heads.")] = None,
    num_tokens: Annotated[int | None, typer.Option("--k", min=1, help="Most tokens drafted per step.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with a prompt per line. \\[default: some here]")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    always: Annotated[bool, typer.Option("--always", help="Draft also where it does not seem worth it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer the same prompts with and without drafts: tokens per step, acceptance, time.

    Examples:
      [bold]wootz spec measure SmolLM2-135M-Instruct.Q4_1.gguf[/bold]
      [bold]wootz spec measure ./large --method draft-model --path ./small --k 6 --prompts asked.txt[/bold]
    """
    from pydantic import ValidationError

    from wootz.core import BadRequestError, SpeculationConfig
    from wootz.engine import SamplingParams, setup
    from wootz.engine.speculation import measure as measuring

    config = load(ctx).config.engine
    try:
        settings: dict[str, Any] = {"method": method, "path": path, "num_tokens": num_tokens}
        speculation = SpeculationConfig(**settings, row_cost=0 if always else None)
    except ValidationError as error:
        raise BadRequestError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    texts = _lines(prompts) if prompts else list(EXAMPLES)
    loaded, tokenizer = setup.load(model, None, config)
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, ignore_eos=True)
    measured = measuring.measure(loaded, tokenizer, config, speculation, texts, params)
    if as_json:
        print_json(measured.summary())
        return
    shown = table("", "plain", "with drafts", right=("plain", "with drafts"))
    shown.add_row("seconds", f"{measured.plain_seconds:.2f}", f"{measured.seconds:.2f}")
    rates = [f"{measured.tokens / seconds:.1f}" for seconds in (measured.plain_seconds, measured.seconds)]
    shown.add_row("tokens per second", *rates)
    shown.add_row("tokens per step of an answer drafted for", "1.00", f"{measured.tokens_per_draft:.2f}")
    shown.add_row("drafted tokens that were right", "", f"{measured.acceptance:.0%} of {measured.draft_tokens}")
    shown.add_row("answers that are the same", "", f"{measured.same_answers} of {measured.prompts}")
    stdout().print(shown)
    stdout().print(
        f"speed-up [bold]{measured.speedup:.2f}[/bold]; one more row takes {measured.row_cost:.3f} of reading the "
        f"weights, drafting a token {measured.draft_cost:.3f} of a step",
        style="dim",
    )


@app.command("train-heads")
def train_heads(
    ctx: typer.Context,
    model: Model,
    text: Text,
    out: Out,
    kind: Annotated[str, typer.Option(help="medusa, parallel, sequential or eagle.")] = "eagle",
    depth: Annotated[int, typer.Option(min=1, help="Tokens guessed beyond the next one.")] = 4,
    steps: Steps = 300,
    batch: Batch = 4,
    length: Length = 128,
    learning_rate: Rate = 1e-3,
    answers: Answers = 0,
    seed: int = 0,
    replace: Replace = False,
) -> None:
    """Train draft heads on a frozen model. They learn what the model says, not what the text says.

    Examples:
      [bold]wootz spec train-heads ./model --text answers.txt --out eagle[/bold]
      [bold]wootz spec train-heads ./model --text questions.txt --answers 256 --kind medusa --out medusa[/bold]
    """
    import torch

    from wootz.core import BadRequestError
    from wootz.models import load as load_model
    from wootz.models.draft_heads import KINDS, DraftHeads, save_heads
    from wootz.training import draft_heads as training
    from wootz.training.fit import FitConfig

    if kind not in KINDS:
        raise BadRequestError(f'--kind must be one of {", ".join(KINDS)}, not "{kind}"')
    torch.manual_seed(seed)
    rows_RT = _rows(ctx, model, text, length, answers, seed)
    base = load_model(model).requires_grad_(False)
    heads = DraftHeads(kind, depth, base)
    fit = FitConfig(steps=steps, learning_rate=learning_rate)
    with _progress(f"Training {kind} heads", steps) as progress:
        fitted = training.train_heads(heads, base, training.batches_of(rows_RT, batch, seed), fit, progress)
    save_heads(heads, out, base, replace=replace)
    _say(out, fitted)


@app.command("distill")
def distill(
    ctx: typer.Context,
    draft: Annotated[Path, typer.Argument(help="The small model's folder.")],
    target: Annotated[Path, typer.Option(help="The model it is to draft for: a folder or GGUF file.")],
    text: Text,
    out: Out,
    steps: Steps = 300,
    batch: Batch = 4,
    length: Length = 128,
    learning_rate: Rate = 3e-4,
    answers: Answers = 256,
    seed: int = 0,
    replace: Replace = False,
) -> None:
    """Train a draft model on what the target answers, so that more of its drafts are accepted.

    Example:
      [bold]wootz spec distill ./small --target ./large --text questions.txt --out small-drafter[/bold]
    """
    import torch

    from wootz.models import load as load_model
    from wootz.models.saving import save
    from wootz.training import draft_heads as training
    from wootz.training.fit import FitConfig

    torch.manual_seed(seed)
    rows_RT = _rows(ctx, target, text, length, answers, seed)
    small, large = load_model(draft), load_model(target).requires_grad_(False)
    fit = FitConfig(steps=steps, learning_rate=learning_rate)
    with _progress(f"Training {draft.name}", steps) as progress:
        fitted = training.distill(small, large, training.batches_of(rows_RT, batch, seed), fit, progress)
    save(small, out, beside=draft if draft.is_dir() else None, replace=replace)
    _say(out, fitted)


EXAMPLES = (
    "The list of primes is 2, 3, 5, 7, 11, 13. The list of primes again is 2, 3, 5,",
    "Alice: Where is the key? Bob: The key is under the mat by the door. Alice: So the key is under the mat by the",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef mul(a, b):\n",
    "Once upon a time there was a king who had three sons.",
)


def _rows(ctx: typer.Context, model: Path, text: Path, length: int, answers: int, seed: int) -> Tensor:
    """Texts ``(R, length + 1)`` of the file, or begun with it and gone on with by the model."""
    import torch

    from wootz.core import BadRequestError
    from wootz.engine import Engine
    from wootz.tokenization import load_tokenizer
    from wootz.training.draft_heads import own_answers

    text_N = torch.tensor(load_tokenizer(model).encode(_read(text)))
    if len(text_N) <= length:
        raise BadRequestError(
            f"{text}: {len(text_N)} tokens are too few", hint=f"give more, or --length below {length}"
        )
    if not answers:
        return text_N.unfold(0, length + 1, max(1, length // 2))
    engine, prompt = Engine(model, config=load(ctx).config.engine), max(4, length // 4)
    return own_answers(
        engine, text_N, num_rows=answers, prompt_length=prompt, answer_length=length + 1 - prompt, seed=seed
    )


def _read(file: Path) -> str:
    from wootz.core import BadRequestError

    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequestError(f"{file}: cannot be read ({error})") from None


def _lines(file: Path) -> list[str]:
    return [line for line in _read(file).splitlines() if line.strip()]


def _progress(title: str, steps: int) -> Any:
    from wootz.core import progress_bar

    return progress_bar(title, steps)


def _say(out: Path, fitted: Fitted) -> None:
    first, last = fitted.losses[0], fitted.losses[-1]
    stderr().print(f"[green]✓[/green] [bold]{out}[/bold]  loss {first:.3f} → {last:.3f}")
