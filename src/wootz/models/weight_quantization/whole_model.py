"""A whole model, from a folder or GGUF file of floats to a folder in a layout that others read: `quantize`.

Layer by layer: see what its projections get from the quantised layers before it, fold factors into what comes before
them (AWQ, SmoothQuant), round each projection, and go on with what it has become. Embedding, head, norms, routers and
whatever is too small or oddly shaped for the layout stay as they are. The folder is there as a whole or not at all; a
run that was cut off goes on at the layer it had reached.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wootz.core.atomic import atomic_folder
from wootz.core.errors import BadRequestError, ConfigError
from wootz.core.progress import SILENT, Progress
from wootz.models.blocks.experts import GroupedLinear
from wootz.models.decoder import Decoder, Layer
from wootz.models.linear import Linear
from wootz.models.loading import is_transposed, load
from wootz.models.model_folder import read_quantization
from wootz.models.names import checkpoint_pieces, checkpoint_views
from wootz.models.quantized_layouts import Layout
from wootz.models.quantized_weight import QuantizedWeight
from wootz.models.saving import copy_other_files, write_config, write_weights
from wootz.models.weight_quantization.calibration import Inputs, Key, Walk
from wootz.models.weight_quantization.folding import folds
from wootz.models.weight_quantization.methods import (
    FEWEST_TOKENS,
    METHODS,
    Settings,
    WholeModelMethod,
    awq_scale,
    smooth_scale,
)
from wootz.models.weight_quantization.report import perplexity
from wootz.models.weight_quantization.resuming import FinishedLayer, Run, described_source, described_texts

REPORT = "quantization_report.json"
GROUP_SIZES = (128, 64, 32)
_ROWS = 32
"""Layouts pack outputs too; what has no multiple of these stays as it is."""


@dataclass
class Report:
    """What was done, and what it cost. Also written into the folder (`REPORT`)."""

    method: str
    group_size: int | None
    calibration: dict[str, Any]
    bytes_before: int
    bytes_after: int = 0
    bits: float = 0.0
    """Of a quantised weight, scales included."""
    errors: dict[str, float] = field(default_factory=dict)
    """Of each projection: mean squared error of its outputs, relative to their mean square."""
    not_quantized: list[str] = field(default_factory=list)
    rarely_used: dict[str, int] = field(default_factory=dict)
    """Experts with too few calibration tokens, rounded as they are, and how many they had."""
    perplexity_before: float | None = None
    perplexity_after: float | None = None

    @property
    def mean_error(self) -> float | None:
        return sum(self.errors.values()) / len(self.errors) if self.errors else None


def quantize(
    source: Path | str,
    target: Path | str,
    method: str,
    *,
    calibration: Sequence[Sequence[int]] = (),
    test: Sequence[Sequence[int]] = (),
    described: Mapping[str, Any] | None = None,
    group_size: int | None = None,
    act_order: bool = False,
    clip: bool = True,
    dtype: torch.dtype | None = None,
    files: Mapping[str, bytes] | None = None,
    replace: bool = False,
    progress: Progress = SILENT,
) -> Report:
    """Write the model ``source`` to the folder ``target``, quantised by one of `METHODS`.

    ``calibration`` and ``test`` are token ids, pieces of one length: errors are measured on the first, perplexity on
    the second, where there are any. ``described`` says in the report where they come from. ``group_size`` is 128, or
    the largest below that divides every projection. ``dtype`` is that of what is not quantised, by default the source's
    if it has 16 bits, else bfloat16. ``files`` (a tokenizer) are put beside the model; those of a folder come along.

    Raises `BadRequestError` for what makes no sense, `ConfigError` for what cannot be read or written.
    """
    source, how = Path(source), METHODS.get(method)
    if how is None:
        raise BadRequestError(f'no method is called "{method}"', hint=f"there are {', '.join(METHODS)}")
    if how.calibrated and not calibration:
        raise BadRequestError(f"{method} needs texts to calibrate with", hint="name a file with --calib")
    if source.is_dir() and read_quantization(source) is not None:
        raise ConfigError(f"{source}: is quantised already", hint="start from the model as it was trained")
    with atomic_folder(target, replace_if=REPORT if replace else None) as folder, torch.inference_mode():
        model = load(source)
        if not isinstance(model, Decoder):
            raise ConfigError(f"{source}: models of this kind cannot be quantised (decoders can)")
        longest, limit = max(map(len, (*calibration, *test)), default=0), model.config.max_position_embeddings
        if longest > limit:
            raise BadRequestError(f"texts of {longest} tokens are longer than the model's longest, {limit}")
        projections = _projections(model)
        kept, settings = _settle(source, model, projections, how, group_size, act_order, clip, dtype)
        report = Report(
            method,
            settings.group_size if how.grouped else None,
            {**(described or {}), "texts": len(calibration), "tokens": sum(map(len, calibration))},
            bytes_of_weights(source),
            not_quantized=kept,
        )
        progress.set_total(len(model.layers) + 2)
        report.perplexity_before = perplexity(model, test) if test else None
        progress.advance()
        run = Run(
            Path(target),
            source=described_source(source),
            method=method,
            settings=asdict(settings),
            texts=described_texts(calibration),
        )
        quantized = dict(_layer_by_layer(model, projections, how, settings, calibration, run, report, progress))
        layout = how.layout(settings)
        if source.is_dir():
            copy_other_files(source, folder)
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        _write(folder, model, quantized, layout, settings.dtype, kept)
        num_weights = sum(prod(weight.shape) for weight in quantized.values())
        report.bits = 8 * sum(weight.num_bytes for weight in quantized.values()) / num_weights
        report.bytes_after = bytes_of_weights(folder)
        del model
        report.perplexity_after = perplexity(load(folder, keep_quantized="exact"), test) if test else None
        progress.advance()
        (folder / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n")
    run.forget()
    return report


@dataclass(frozen=True)
class _Projection:
    """A projection (or one expert's) of a layer, as the checkpoint has it."""

    key: Key
    name: str
    """Ours, for people."""
    modules: dict[str, tuple[int, int]]
    """The checkpoint's names, without ".weight", and the rows that each holds."""

    @property
    def weight_OI(self) -> Tensor:
        module, expert = self.key
        return module.weight if isinstance(module, Linear) else module.weight[expert]


def _projections(model: Decoder) -> list[_Projection]:
    """Those of the layers, whether or not they can be quantised; ``modules`` is empty where the checkpoint keeps them
    in a shape that no layout has."""
    pieces, found = checkpoint_pieces(model), []
    for name, module in model.named_modules():
        if not name.startswith("layers.") or not isinstance(module, Linear | GroupedLinear):
            continue
        views = pieces[f"{name}.weight"]
        weights = [module.weight] if isinstance(module, Linear) else [*module.weight]
        flat = all(view.ndim == 2 and view.shape[-1] in module.weight.shape for view in views.values())
        each = len(views) // len(weights) if flat else 0
        for expert, weight in enumerate(weights):
            own = [*views.items()][expert * each : (expert + 1) * each]
            rows = {theirs.removesuffix(".weight"): _rows(weight, view) for theirs, view in own}
            label = name if isinstance(module, Linear) else f"{name}.{expert}"
            whole = {theirs: span for theirs, span in rows.items() if span is not None}
            found.append(_Projection((module, expert), label, whole if len(whole) == len(rows) else {}))
    return found


def _rows(weight_OI: Tensor, view: Tensor) -> tuple[int, int] | None:
    """Which rows of the weight a view of it is; None if it is cut in another way."""
    view = view.T if is_transposed(view) else view
    if view.stride() != weight_OI.stride() or view.shape[1] != weight_OI.shape[1]:
        return None
    first = int(view.storage_offset() - weight_OI.storage_offset()) // weight_OI.shape[1]
    return first, first + len(view)


def _settle(
    source: Path,
    model: Decoder,
    projections: list[_Projection],
    how: WholeModelMethod,
    group_size: int | None,
    act_order: bool,
    clip: bool,
    dtype: torch.dtype | None,
) -> tuple[list[str], Settings]:
    """What stays as it is, by checkpoint name, and the settings for the rest. Drops the former from the list."""
    oddly = sorted({p.name for p in projections if not p.modules})
    if any(".experts." in name for name in oddly):
        raise ConfigError(
            f'{source}: "{model.config.family}" keeps its experts in one tensor, which no quantised layout knows',
            hint="convert it to GGUF, or serve it as it is",
        )
    fits = [p for p in projections if p.modules and p.weight_OI.shape[1] % GROUP_SIZES[-1] == 0]
    fits = [p for p in fits if all((stop - start) % _ROWS == 0 for start, stop in p.modules.values())]
    if not fits:
        raise BadRequestError(f"{source}: has no projection that is large enough to quantise")
    if group_size is not None and how.grouped:
        if group_size % 32 or group_size < 32:
            raise BadRequestError(f"groups of {group_size} weights are not supported", hint="use a multiple of 32")
        if odd := next((p for p in fits if p.weight_OI.shape[1] % group_size), None):
            columns = odd.weight_OI.shape[1]
            raise BadRequestError(f"{odd.name} has rows of {columns} weights, which are not groups of {group_size}")
    dividing = (size for size in GROUP_SIZES if all(p.weight_OI.shape[1] % size == 0 for p in fits))
    chosen = group_size or next(dividing)
    names = {theirs for p in fits for theirs in p.modules}
    kept = [
        name.removesuffix(".weight")
        for name, view in checkpoint_views(model).items()
        if view.ndim == 2 and name.endswith(".weight") and name.removesuffix(".weight") not in names
    ]
    if model.config.tie_embeddings:
        kept.append("lm_head")
    projections[:] = fits
    stored = dtype or _sixteen_bits(source)
    return kept, Settings(chosen, act_order=act_order, clip=clip, dtype=stored)


def _sixteen_bits(source: Path) -> torch.dtype:
    if source.is_dir():
        raw = json.loads((source / "config.json").read_text())
        named = str(raw.get("dtype") or raw.get("torch_dtype"))
        if named == "float16":
            return torch.float16
    return torch.bfloat16


def _layer_by_layer(
    model: Decoder,
    projections: list[_Projection],
    how: WholeModelMethod,
    settings: Settings,
    calibration: Sequence[Sequence[int]],
    run: Run,
    report: Report,
    progress: Progress,
) -> Iterator[tuple[str, QuantizedWeight]]:
    """Quantised weights by checkpoint module; the model is left with what they stand for."""
    walk, done = Walk(model, calibration), set[Key]()
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        modules = set(layer.modules())
        own = [p for p in projections if p.key[0] in modules and p.key not in done]  # weights may be shared by layers
        done |= {p.key for p in own}
        finished = run.layer(number)
        if finished is None:
            seen = walk.watch(layer, [p.key for p in own], hessian=how.hessian) if calibration else {}
            finished = _quantize_layer(layer, own, how, settings, seen)
            run.keep(number, finished)
        else:
            _restore(layer, own, finished)
        report.errors |= finished.errors
        report.rarely_used |= finished.rarely_used
        yield from finished.weights.items()
        walk.advance(layer)
        progress.advance()


def _quantize_layer(
    layer: Layer, own: list[_Projection], how: WholeModelMethod, settings: Settings, seen: Mapping[Key, Inputs]
) -> FinishedLayer:
    """The layer is left with what its quantised weights stand for."""
    finished = FinishedLayer()
    if how.fold and seen:
        _fold(layer, how, settings, seen)
    for projection in own:
        inputs = seen.get(projection.key)
        if inputs is not None and inputs.count < FEWEST_TOKENS:
            finished.rarely_used[projection.name] = inputs.count
            inputs = None
        parts = _round(projection, how, inputs, settings)
        if inputs is not None:
            found_NO = torch.cat([weight.multiply(inputs.rows_NI) for weight in parts.values()], -1)
            exact_NO = inputs.rows_NI @ projection.weight_OI.T
            error = (found_NO - exact_NO).square().mean() / exact_NO.square().mean().clamp(min=1e-30)
            finished.errors[projection.name] = error.item()
        projection.weight_OI.copy_(torch.cat([weight.dequantize() for weight in parts.values()]))
        finished.weights |= parts
    quantized = {projection.key[0].weight for projection in own}
    finished.others = {
        name: tensor for name, tensor in layer.state_dict(keep_vars=True).items() if tensor not in quantized
    }
    return finished


def _restore(layer: Layer, own: list[_Projection], finished: FinishedLayer) -> None:
    tensors = layer.state_dict(keep_vars=True)
    for name, tensor in finished.others.items():
        tensors[name].copy_(tensor)
    for projection in own:
        spans = sorted(projection.modules.items(), key=lambda item: item[1])
        projection.weight_OI.copy_(torch.cat([finished.weights[name].dequantize() for name, _ in spans]))


def _round(
    projection: _Projection, how: WholeModelMethod, inputs: Inputs | None, settings: Settings
) -> dict[str, QuantizedWeight]:
    """In the order of their rows. Rows are independent of each other, but for a scale that all of a tensor share."""
    weight_OI, spans = projection.weight_OI, sorted(projection.modules.items(), key=lambda item: item[1])
    if how.by_tensor:
        return {name: how.quantize(weight_OI[start:stop], inputs, settings) for name, (start, stop) in spans}
    whole = how.quantize(weight_OI, inputs, settings)
    return {name: whole.rows(start, stop) for name, (start, stop) in spans}


def _fold(layer: Layer, how: WholeModelMethod, settings: Settings, seen: Mapping[Key, Inputs]) -> None:
    for fold in folds(layer):
        known = [key for key in fold.readers if key in seen and seen[key].count >= FEWEST_TOKENS]
        if not known:
            continue
        weights = {key: key[0].weight if isinstance(key[0], Linear) else key[0].weight[key[1]] for key in known}
        if how.fold == "smoothquant":
            largest_I = torch.stack([seen[key].max_abs_I for key in known]).amax(0)
            scale_I = fold.tie(smooth_scale(largest_I, [*weights.values()], settings.alpha))
        else:
            mean_I = torch.stack([seen[key].mean_abs_I for key in known]).mean(0)
            readers = [(weights[key], seen[key].rows_NI) for key in known]
            scale_I, _ = awq_scale(mean_I, readers, settings.group_size, fold.tie)
        fold.apply(scale_I)
        for key in fold.readers:
            if key in seen:
                seen[key].divide(scale_I)


def _write(
    folder: Path,
    model: Decoder,
    quantized: Mapping[str, QuantizedWeight],
    layout: Layout,
    dtype: torch.dtype,
    kept: list[str],
) -> None:
    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, view in checkpoint_views(model).items():
            module = name.removesuffix(".weight")
            if module not in quantized:
                yield name, view.to(dtype) if view.is_floating_point() else view
                continue
            for ending, tensor in layout.write(quantized[module]).items():
                yield module + ending, tensor

    write_config(folder, dict(model.config.raw), dtype)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = layout.config(kept)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_weights(folder, tensors())


def bytes_of_weights(path: Path) -> int:
    """Of a folder's weight files, or of a GGUF file."""
    files = [*path.glob("*.safetensors")] or [*path.glob("pytorch_model*.bin")] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
