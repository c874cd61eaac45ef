"""What one part of a model is worth: streaming caches, balanced experts, fewer key/value heads, larger vocabularies."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.models import Decoder
from wootz.models.attention.streaming import StreamingContext
from wootz.models.routing import RoutingReport, balance_loss, update_balance_bias, watch_routing
from wootz.training.fit import FitConfig, fit, losses_by_position
from wootz.training.studies.positions import Size, build, train
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import HELD_OUT, corpus, held_out_rows, training_rows

# --- streaming --------------------------------------------------------------------------------------------------------


def streaming_study(
    *, size: Size = Size(), window: int = 64, sinks: int = 4, tokens: int = 2048, text: Path | None = None
) -> Study:
    """Read one long text: with everything kept, with a window, and with a window and sinks (arXiv 2309.17453)."""
    policies = {
        "full cache": partial(StreamingContext, capacity=tokens),
        f"window {window}": partial(StreamingContext, window=window),
        f"window {window - sinks} + {sinks} sinks": partial(StreamingContext, window=window - sinks, sinks=sinks),
    }
    trained: dict[int, Decoder] = {}
    edges = [0, *(window * 2**power for power in range(int(math.log2(tokens / window)) + 1))]

    def run(variant: str, seed: int) -> Curve:
        if seed not in trained:
            torch.manual_seed(seed)
            trained[seed] = build(size)
            train(trained[seed], size, seed, text)
        context = policies[variant](trained[seed], slack=16)
        losses = streaming_losses(trained[seed], context, tokens, text)
        return {str(end): math.exp(min(losses[start:end].mean().item(), 20)) for start, end in pairwise(edges)}

    return Study(
        name="stream",
        question=f"One text of {tokens} bytes, trained on {size.length}",
        variants=tuple(policies),
        x="bytes read so far",
        y="perplexity per byte",
        settings={**vars(size), "window": window, "sinks": sinks, "tokens": tokens, "text": _named(text)},
        run=run,
        log_y=True,
    )


@torch.inference_mode()
def streaming_losses(model: Decoder, context: StreamingContext, tokens: int, text: Path | None) -> torch.Tensor:
    """Cross-entropy of each token ``(tokens - 1,)`` of the held-out text, read chunk by chunk."""
    text_N = corpus(text)
    text_N = text_N[int(len(text_N) * (1 - HELD_OUT)) :][:tokens]
    logits = [
        model.unembed(model(part_T, context.next_positions(len(part_T)), context))
        for part_T in text_N.split(context.slack)
    ]
    return F.cross_entropy(torch.cat(logits)[:-1], text_N[1:], reduction="none")


# --- experts ----------------------------------------------------------------------------------------------------------

BALANCING = ("nothing", "auxiliary loss", "bias")


def balancing_study(
    *, experts: int = 8, top_k: int = 2, size: Size = Size(), text: Path | None = None, every: int = 20
) -> Study:
    """How evenly experts are used while a mixture of experts learns, and what the balance costs."""

    def run(variant: str, seed: int) -> Curve:
        torch.manual_seed(seed)
        model = build(
            size,
            ffn=f"moe:{experts}x{top_k}",
            intermediate_size=size.width,
            router_gates="softmax",
            router_balance_bias=variant == "bias",
        )
        curve: Curve = {}
        with watch_routing(model) as routings:

            def after_step(step: int) -> None:
                if variant == "bias":
                    for router, routing in routings.items():
                        update_balance_bias(router, routing.load_E, rate=1e-2)
                if step % every == 0:
                    reports = [RoutingReport.of(routing) for routing in routings.values()]
                    curve[str(step + 1)] = sum(report.max_over_mean for report in reports) / len(reports)

            fit(
                model,
                training_rows(corpus(text), size.batch_size, size.length, seed),
                FitConfig(steps=size.steps),
                extra_loss=(lambda: 0.01 * balance_loss(routings)) if variant == "auxiliary loss" else None,
                after_step=after_step,
            )
        return curve

    return Study(
        name="balance",
        question=f"{experts} experts, {top_k} per token: the busiest one's load",
        variants=BALANCING,
        x="step",
        y="load of the busiest expert / mean",
        settings={**vars(size), "experts": experts, "top_k": top_k, "text": _named(text)},
        run=run,
        log_x=False,
    )


# --- key/value heads --------------------------------------------------------------------------------------------------


def kv_heads_study(*, size: Size = Size(heads=8), text: Path | None = None) -> Study:
    """From multi-head to multi-query attention: what is lost when the cache gets smaller."""
    groups = [heads for heads in (1, 2, 4, 8, 16) if size.heads % heads == 0]

    def run(variant: str, seed: int) -> Curve:
        curve = {}
        for heads in groups:
            torch.manual_seed(seed)
            model = build(size, attention=f"gqa:{heads}")
            train(model, size, seed, text)
            curve[str(heads)] = held_out_bits(model, size, text)
        return curve

    return Study(
        name="kv-heads",
        question=f"{size.heads} query heads: how many key/value heads?",
        variants=("held-out text",),
        x="key/value heads",
        y="bits per byte",
        settings={**vars(size), "groups": groups, "text": _named(text)},
        run=run,
    )


def held_out_bits(model: Decoder, size: Size, text: Path | None, num_rows: int = 64) -> float:
    """Per byte of rows of the training length."""
    return bits_of_rows(model, held_out_rows(corpus(text), num_rows, size.length))


def bits_of_rows(model: Decoder, rows_BT: Tensor) -> float:
    """Per token, all but the first of each row."""
    return losses_by_position(model, rows_BT).mean().item() / math.log(2)


def _named(text: Path | None) -> str:
    return str(text or "standard library")
