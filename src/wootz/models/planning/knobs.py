"""An engine's two knobs from a latency goal, and the weights' format from the device.

*Most sequences at once* (``max_num_seqs``): every one more makes a decoding step longer, so the goal for the time
between tokens says how many. *Most tokens in a step* (``max_num_batched_tokens``): a prompt is computed in pieces
between decoding steps, and a piece may take what the goal leaves of a full batch's step. By roofline, as `roofline`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wootz.models.decoder import Decoder
from wootz.models.planning.accounting import token_flops
from wootz.models.planning.hardware import Device
from wootz.models.planning.roofline import Plan, Workload, plan

SMALLEST_PIECE = 256
MOST_SEQUENCES = 1024
FP8_DEVICES = {"b200", "h200", "h100", "l40s", "l4", "rtx4090", "mi300x"}
"""Whose matrix units multiply FP8 (Hopper, Ada, Blackwell; CDNA 3 in a format of its own)."""
NARROW = 1e12
"""Bytes per second of memory under which decoding gains more from four-bit weights than from FP8."""


@dataclass(frozen=True)
class Knobs:
    max_num_seqs: int
    max_num_batched_tokens: int
    inter_token_seconds: float
    """Of a full batch."""
    first_token_seconds: float
    """Of one prompt on an engine that has nothing else to do."""
    plan: Plan


def tune(
    model: Decoder, device: Device, work: Workload, *, inter_token: float, efficiency: float = 0.6
) -> Knobs | None:
    """The largest batch, in powers of two, that fits the device and keeps the goal; None where not even one does."""
    best: Plan | None = None
    batch = 1
    while batch <= MOST_SEQUENCES:
        made = plan(model, device, replace(work, batch=batch), efficiency=efficiency)
        alone = best.fit if best else made.fit
        if made.fit is None or made.fit != alone or made.step_seconds / efficiency > inter_token:
            break
        best, batch = made, 2 * batch
    if best is None or best.fit is None:
        return None
    batch //= 2
    step = best.step_seconds / efficiency
    a_token = token_flops(model, work.context).total / (best.fit.tensor * device.flops) / efficiency
    piece = max(SMALLEST_PIECE, int((inter_token - step) / a_token) // 256 * 256)
    return Knobs(batch, min(batch + piece, 16_384), step, best.prefill_seconds / efficiency, best)


@dataclass(frozen=True)
class Format:
    weights: str
    name: str
    why: str


def advise_weights(device: Device) -> Format:
    """What weights to serve there, when quality allows: measure that with `wootz eval` before and after."""
    if device.name in FP8_DEVICES and device.bandwidth >= NARROW:
        return Format("fp8", "FP8", f"{device.name} multiplies FP8, so reading and computing both take half the time")
    if device.name in FP8_DEVICES:
        why = f"{device.name} multiplies FP8, but its memory is slow: four bits halve what a step reads once more"
        return Format("int4", "AWQ INT4", why)
    why = f"{device.name} has no FP8 units: four bits are read in a quarter of the time and computed in bfloat16"
    return Format("int4", "AWQ INT4", why)
