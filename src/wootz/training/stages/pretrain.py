"""The stage that makes the model: everything a recipe says of pretraining, put together around a `Trainer`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from wootz.core.errors import ConfigError
from wootz.data.batch import Batches
from wootz.data.packing import PackedBatches
from wootz.data.streaming import StreamedBatches, open_texts
from wootz.data.tokens import end_of_text, open_stores, weights_by_size, weights_of
from wootz.models import Decoder, load, read_config, save
from wootz.tokenization import load_tokenizer
from wootz.tokenization.fingerprint import write_fingerprint
from wootz.training.checkpoints import Checkpoints
from wootz.training.curvature_refresh import CurvatureRefresh
from wootz.training.guards import guards_of
from wootz.training.optimizers import OptimizerConfig, build_optimizer, evaluation_mode
from wootz.training.optimizers.sharded import ShardedState
from wootz.training.parallel import Layout, ParallelTrainer, parallelize
from wootz.training.parallel.state import load_whole
from wootz.training.parallel.taken_apart import is_apart, take_apart
from wootz.training.recipe import Recipe, model_config
from wootz.training.recompute import check_recompute, recompute_layers
from wootz.training.recording import Every, Recorder, TensorBoard, Watch
from wootz.training.runs import RunFolder
from wootz.training.schedules import ScheduleConfig, build_schedule
from wootz.training.stages.benchmarks import benchmarks_of, run_benchmarks
from wootz.training.stages.context import Part, Phases, finished_config, first_positions, parts
from wootz.training.stages.evaluate import HeldOut, bits_per_byte, sample
from wootz.training.trainer import Callback, Trainer, TrainerConfig, rank, world_size
from wootz.training.unfreezing import GradualUnfreezing

GLANCE = 64
"""Held-out documents that are looked at while training."""


def pretrain(
    recipe: Recipe,
    run: RunFolder,
    *,
    watch: Watch = lambda step, trainer: None,
    report: Callable[[str], None] = lambda line: None,
    extra: Sequence[Callback] = (),
) -> dict[str, Any]:
    trainer, checkpoints = build(recipe, run, watch=watch, report=report, extra=extra)
    if (step := checkpoints.restore(trainer)) is not None:
        report(f"going on from step {step:,}")
    elif recipe.pretrain.recompute:
        state = trainer.batches.state_dict()
        check_recompute(trainer.model, next(trainer.batches).to(trainer.device), trainer.objective)
        trainer.batches.load_state_dict(state)
    trainer.run()
    if rank() > 0:
        return {}
    with evaluation_mode(trainer.optimizer):
        model = export(recipe, run, trainer)
    rows = run.rows("metrics")
    seconds = sum(row["tokens"] / row["tokens_per_second"] for row in rows)
    return {
        "parameters": model.num_parameters,
        "steps": trainer.step,
        "tokens": sum(row["tokens"] for row in rows),
        "seconds": round(seconds, 1),
        "last_loss": rows[-1]["loss"],
    }


def export(recipe: Recipe, run: RunFolder, trainer: Trainer) -> Decoder:
    """The result as a folder that is served. What many ranks hold is read from their last checkpoint."""
    tokenizer, model = load_tokenizer(run.tokenizer), trainer.model
    if world_size() > 1 or is_apart(model):
        model = load_whole(
            run.checkpoints / f"step_{trainer.step}", start_model(recipe, tokenizer.vocab_size, end_of_text(tokenizer))
        )
    assert isinstance(model, Decoder)
    save(model, run.model, beside=run.tokenizer, replace=True)
    _finish_config(recipe, run.model, end_of_text(tokenizer))
    write_fingerprint(run.model, tokenizer)
    return model


def build(
    recipe: Recipe,
    run: RunFolder,
    *,
    watch: Watch = lambda step, trainer: None,
    report: Callable[[str], None] = lambda line: None,
    extra: Sequence[Callback] = (),
) -> tuple[Trainer, Checkpoints]:
    settings, dial, layout = recipe.pretrain, recipe.dial, layout_of(recipe)
    torch.manual_seed(recipe.seed)
    tokenizer, device = load_tokenizer(run.tokenizer), device_of(recipe)
    model = start_model(recipe, tokenizer.vocab_size, end_of_text(tokenizer)).to(device)
    if settings.compile:
        from wootz.training.compiling import compile_layers

        compile_layers(model)
    if settings.recompute:
        recompute_layers(model)
    parallel = parallelize(model, layout, device=device) if layout.num_ranks > 1 else None
    if parallel is None and Recipe.mesh_of(run.recipe).devices > 1:  # of which this process alone is left
        take_apart(model)
    how = OptimizerConfig(
        name=settings.optimizer,
        learning_rate=dial.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay,
        extra={"full_precision": True} if settings.optimizer == "muon" and recipe.mesh.device == "cpu" else {},
    )
    if parallel is not None and layout.zero == 1:
        optimizer = ShardedState(model, how, parallel.mesh["shard"])
    else:
        optimizer = build_optimizer(model, how)
    schedule = build_schedule(
        ScheduleConfig(name=settings.schedule, warmup=settings.warmup, minimum=settings.minimum), dial.steps
    )
    reader = parallel.mesh.reader if parallel else 0
    phases = Phases(parts(recipe), lambda part: batches(recipe, run, part, reader, layout.num_readers))
    checkpoints = Checkpoints(run.checkpoints, every=settings.checkpoint_every, keep=settings.keep)
    held_out = HeldOut.of(run)
    benchmarks = benchmarks_of(recipe, settings.benchmark_items)
    board = TensorBoard(run.path / "tensorboard")

    def glance(trainer: Trainer) -> dict[str, Any]:
        with evaluation_mode(optimizer):
            bits = bits_per_byte(model, held_out, most_documents=GLANCE, multiple=layout.tensor)
            scores = run_benchmarks(model, tokenizer, benchmarks, multiple=layout.tensor)
        return {"bits_per_byte": held_out.overall(bits), "sources": bits, "benchmarks": scores}

    def say(trainer: Trainer) -> dict[str, Any]:
        with evaluation_mode(optimizer):
            text = sample(model, tokenizer, settings.prompts[0], length=40, seed=trainer.step, multiple=layout.tensor)
        return {"prompt": settings.prompts[0], "text": text}

    def note(line: str) -> None:
        if rank() == 0:
            run.append("events", {"line": line})
            report(line)

    joining = [round(share * dial.steps) for share in settings.unfreeze]
    callbacks: list[Callback] = [
        phases,
        *([GradualUnfreezing(model, joining)] if joining else []),
        CurvatureRefresh(),
        *extra,
        *guards_of(
            run,
            checkpoints,
            vocab_size=tokenizer.vocab_size,
            whole=layout.pipeline == 1,
            hang_seconds=settings.hang_seconds,
        ),
        Recorder(run, watch),
        board,
    ]
    if layout.pipeline == 1:  # no rank of a pipeline can call the whole model: it is evaluated at the end
        callbacks += [
            Every(run, "evaluations", settings.evaluate_every, glance, told=board.evaluated),
            Every(run, "samples", settings.sample_every, say),
        ]
    config = TrainerConfig(
        steps=dial.steps,
        accumulate=dial.accumulate,
        max_grad_norm=settings.max_grad_norm,
        precision=settings.precision,
    )
    rest: dict[str, Any] = {"callbacks": [*callbacks, checkpoints], "report": note}
    if parallel is not None:
        return ParallelTrainer(parallel, optimizer, phases.rate(schedule), phases, config, **rest), checkpoints
    return Trainer(model, optimizer, phases.rate(schedule), phases, config, **rest), checkpoints


def layout_of(recipe: Recipe) -> Layout:
    mesh = recipe.mesh
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.pretrain.precision]
    return Layout(shard=mesh.data, zero=mesh.zero, tensor=mesh.tensor, pipeline=mesh.pipeline, compute_dtype=dtype)


def device_of(recipe: Recipe) -> torch.device:
    """This process's. Raises `ConfigError` where this machine is not what the recipe was made for."""
    mesh = recipe.mesh
    if mesh.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{recipe.name} asks for {mesh.devices} x {mesh.device}, and none is here", hint="--set mesh.device=cpu"
        )
    return torch.device("cuda", torch.cuda.current_device())


def start_model(recipe: Recipe, vocab_size: int, end: int) -> Decoder:
    """With random weights, or with those of the model that the recipe goes on from."""
    if (folder := recipe.pretrain.start_from) is not None:
        model = load(folder, dtype=torch.float32)
        if not isinstance(model, Decoder):
            raise ConfigError(f"{folder}: is no decoder, and only decoders are pretrained")
        return model.requires_grad_(True)
    raw = model_config(recipe, vocab_size, end=end)
    model = replace(read_config(raw), initializer_range=raw["initializer_range"]).build()  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert isinstance(model, Decoder)
    return model


def batches(recipe: Recipe, run: RunFolder, part: Part, reader: int, num_readers: int) -> Batches:
    """Micro-batches of one phase, a reader's share of them. Sources are weighed as the phase says, or else as the
    recipe does. The seed differs by phase: none repeats the rows of the one before."""
    how: dict[str, Any] = {
        "seq_len": part.context,
        "batch_size": part.rows,
        "seed": recipe.seed + part.first_step,
        "rank": reader,
        "world_size": num_readers,
        "isolate": recipe.pretrain.isolate,
    }
    given = part.phase.weights
    if recipe.tokenizer.on_the_fly:
        texts = open_texts(run.data / "documents", load_tokenizer(run.tokenizer), how["seed"])
        weights = weights_by_size(run.data, {name: each.num_documents for name, each in texts.items()})
        return StreamedBatches(texts, weights if given is None else {n: given.get(n, 0.0) for n in texts}, **how)
    stores = open_stores(run.data / "tokens")
    weights = weights_of(run.data, stores)
    return PackedBatches(stores, weights if given is None else {n: given.get(n, 0.0) for n in stores}, **how)


def _finish_config(recipe: Recipe, folder: Path, end: int) -> None:
    """The config of what was learned: the positions of the last phase, and where an answer ends."""
    file = folder / "config.json"
    _, trained_length = first_positions(recipe)
    raw = finished_config(json.loads(file.read_text()), parts(recipe)[-1], trained_length)
    file.write_text(json.dumps(raw | {"eos_token_id": end}, indent=2) + "\n")
