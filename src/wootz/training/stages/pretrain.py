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
from wootz.data.token_store import TokenStore
from wootz.data.tokens import end_of_text
from wootz.models import Decoder, load, read_config, save
from wootz.tokenization import load_tokenizer
from wootz.tokenization.fingerprint import write_fingerprint
from wootz.training.checkpoints import Checkpoints
from wootz.training.cross_entropy import sliced_language_loss
from wootz.training.curvature_refresh import CurvatureRefresh
from wootz.training.guards import guards_of
from wootz.training.optimizers import OptimizerConfig, build_optimizer, evaluation_mode
from wootz.training.recipe import Recipe, model_config
from wootz.training.recompute import check_recompute, recompute_layers
from wootz.training.recording import Every, Recorder, Watch
from wootz.training.runs import RunFolder
from wootz.training.schedules import ScheduleConfig, build_schedule
from wootz.training.stages.context import Part, Phases, parts
from wootz.training.stages.evaluate import bits_per_byte, sample
from wootz.training.trainer import Callback, Trainer, TrainerConfig, rank, world_size

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
    tokenizer = load_tokenizer(run.path / "tokenizer")
    assert isinstance(trainer.model, Decoder)
    with evaluation_mode(trainer.optimizer):
        if rank() == 0:
            save(trainer.model, run.model, beside=run.path / "tokenizer", replace=True)
            _finish_config(run.model, parts(recipe)[-1], end_of_text(tokenizer))
            write_fingerprint(run.model, tokenizer)
    rows = run.rows("metrics")
    seconds = sum(row["tokens"] / row["tokens_per_second"] for row in rows)
    return {
        "parameters": trainer.model.num_parameters,
        "steps": trainer.step,
        "tokens": sum(row["tokens"] for row in rows),
        "seconds": round(seconds, 1),
        "last_loss": rows[-1]["loss"],
    }


def build(
    recipe: Recipe,
    run: RunFolder,
    *,
    watch: Watch = lambda step, trainer: None,
    report: Callable[[str], None] = lambda line: None,
    extra: Sequence[Callback] = (),
) -> tuple[Trainer, Checkpoints]:
    settings, dial = recipe.pretrain, recipe.dial
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(run.path / "tokenizer")
    model = start_model(recipe, tokenizer.vocab_size, end_of_text(tokenizer)).to(device_of(recipe))
    if settings.recompute:
        recompute_layers(model)
    optimizer = build_optimizer(
        model,
        OptimizerConfig(
            name=settings.optimizer,
            learning_rate=dial.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            extra={"full_precision": True} if settings.optimizer == "muon" and recipe.mesh.device == "cpu" else {},
        ),
    )
    schedule = build_schedule(
        ScheduleConfig(name=settings.schedule, warmup=settings.warmup, minimum=settings.minimum), dial.steps
    )
    phases = Phases(parts(recipe), lambda part: batches(recipe, run, part))
    checkpoints = Checkpoints(run.checkpoints, every=settings.checkpoint_every, keep=settings.keep)
    held_out = TokenStore.open(run.path / "tokens" / "held_out")
    num_bytes = (run.finished("tokenize") or {})["held_out_bytes"]

    def glance(trainer: Trainer) -> dict[str, Any]:
        with evaluation_mode(optimizer):
            return {"bits_per_byte": bits_per_byte(model, held_out, num_bytes, most_documents=GLANCE)}

    def say(trainer: Trainer) -> dict[str, Any]:
        with evaluation_mode(optimizer):
            text = sample(model, tokenizer, settings.prompts[0], length=40, seed=trainer.step)
        return {"prompt": settings.prompts[0], "text": text}

    def note(line: str) -> None:
        if rank() == 0:
            run.append("events", {"line": line})
            report(line)

    trainer = Trainer(
        model,
        optimizer,
        phases.rate(schedule),
        phases,
        TrainerConfig(
            steps=dial.steps,
            accumulate=dial.accumulate,
            max_grad_norm=settings.max_grad_norm,
            precision=settings.precision,
        ),
        objective=sliced_language_loss,
        callbacks=[
            phases,
            CurvatureRefresh(),
            *extra,
            *guards_of(run, checkpoints, vocab_size=tokenizer.vocab_size),
            Recorder(run, watch),
            Every(run, "evaluations", settings.evaluate_every, glance),
            Every(run, "samples", settings.sample_every, say),
            checkpoints,
        ],
        report=note,
    )
    return trainer, checkpoints


def device_of(recipe: Recipe) -> str:
    """Raises `ConfigError` where this machine is not what the recipe was made for."""
    mesh = recipe.mesh
    if mesh.devices > 1:
        raise ConfigError(
            f"{recipe.name} is a recipe for {mesh.devices} devices, and `wootz run` uses one",
            hint="--dry-run prints its plan",
        )
    if mesh.device == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError(f"{recipe.name} asks for one {mesh.device}, and none is here", hint="--set mesh.device=cpu")
    return "cuda"


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


def batches(recipe: Recipe, run: RunFolder, part: Part) -> Batches:
    """Micro-batches of one phase. The seed differs by phase: none repeats the rows of the one before."""
    stores = {"text": TokenStore.open(run.path / "tokens" / "train")}
    return PackedBatches(
        stores,
        {name: part.phase.weights[name] for name in stores} if part.phase.weights else None,
        seq_len=part.context,
        batch_size=part.rows,
        seed=recipe.seed + part.first_step,
        rank=rank(),
        world_size=world_size(),
        isolate=recipe.pretrain.isolate,
    )


def _finish_config(folder: Path, last: Part, end: int) -> None:
    """The config of what was learned: the positions of the last phase, and where an answer ends."""
    file = folder / "config.json"
    raw = json.loads(file.read_text())
    raw |= {"rope_theta": last.rope_base, "max_position_embeddings": last.context, "eos_token_id": end}
    file.write_text(json.dumps(raw, indent=2) + "\n")
