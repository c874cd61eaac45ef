"""Pictures of what tokenizers were measured to do; the file's suffix chooses the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from wootz.core.errors import MissingExtraError
from wootz.tokenization.fertility import Fertility
from wootz.tokenization.vocabulary_size import VocabularyPoint

try:
    from matplotlib.figure import Figure
except ImportError:
    raise MissingExtraError("tokenization.plots", "bench", "matplotlib") from None


def plot_fertility(measured: Mapping[str, Mapping[str, Fertility]], file: Path) -> None:
    """``measured[tokenizer][language]``: characters for a token, as dots, a row for each language."""
    languages = list(next(iter(measured.values())))
    figure = Figure(figsize=(7, 1.2 + 0.32 * len(languages)), layout="constrained")
    axes = figure.subplots()
    for name, by_language in measured.items():
        values = [1 / max(float(by_language[language].tokens_per_character), 1e-9) for language in languages]
        axes.plot(values, range(len(languages)), "o", label=name)
    axes.set_yticks(range(len(languages)), languages)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set(xlabel="characters per token")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def plot_vocabulary_sizes(points: Sequence[VocabularyPoint], file: Path) -> None:
    """Length and computation against vocabulary size."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    length, work = figure.subplots(1, 2)
    sizes = [point.vocab_size for point in points]
    length.plot(sizes, [point.bytes_per_token for point in points], marker="o", color="black")
    length.set(title="Length", ylabel="bytes per token")
    for label, style, values in (
        ("layers", "--", [point.layer_flops for point in points]),
        ("output head", ":", [point.head_flops for point in points]),
        ("together", "-", [point.flops for point in points]),
    ):
        work.plot(sizes, values, style, marker="o", color="black", label=label)
    work.set(title="Forward computation of the texts", ylabel="FLOPs")
    work.legend(frameon=False)
    for axes in (length, work):
        axes.set(xlabel="vocabulary size", xscale="log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
