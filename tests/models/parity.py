"""`prove`: one model definition equals its implementation in transformers, wherever it runs.

    prove(tmp_path, transformers.MixtralConfig(...))

saves a small model with random weights, loads it here, and compares: logits of one document and of packed ones,
gradients of every weight, what saving would write, and 50 steps of training with a falling loss; then it serves the
same model in the engine, in float64, with requests that arrive, share, are cut into chunks and preempted: each gets
the tokens it would get alone. Configs should be small: 2 or 3 layers, width 32 to 64, a vocabulary of about 100.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from random_reference import save_random
from safetensors.torch import load_file

from wootz.engine import SamplingParams
from wootz.models import Decoder, PackedContext, load, read_config
from wootz.models.families import family_of
from wootz.models.names import checkpoint_views

LENGTH = 45


def prove(folder: Path, config: transformers.PretrainedConfig, *, engine: bool = True, atol: float = 1e-4) -> None:
    reference = save_random(folder / "model", config)
    tokens = torch.randint(config.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(1))
    model = load(folder / "model")
    assert model.num_parameters == sum(parameter.numel() for parameter in reference.parameters())
    prove_logits(model, reference, tokens, atol)
    prove_gradients(folder, model, reference, tokens)
    prove_training(folder / "model")
    if engine:
        prove_engine(load(folder / "model", dtype="float64"))


@torch.inference_mode()
def prove_logits(model: Decoder, reference: transformers.PreTrainedModel, tokens: torch.Tensor, atol: float) -> None:
    expected = reference(tokens[None]).logits[0]
    torch.testing.assert_close(model.logits(tokens), expected, atol=atol, rtol=0)
    lengths = [7, 1, len(tokens) - 8]
    documents = tokens.split(lengths)
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed = model.unembed(model(tokens, positions, PackedContext(lengths)))
    separate = torch.cat([reference(document[None]).logits[0] for document in documents])
    torch.testing.assert_close(packed, separate, atol=atol, rtol=0)
    twice = model(tokens[:20].repeat(2), torch.arange(20).repeat(2), PackedContext([20, 20]))
    torch.testing.assert_close(model.unembed(twice)[20:], expected[:20], atol=atol, rtol=0)


def prove_gradients(
    folder: Path, model: Decoder, reference: transformers.PreTrainedModel, tokens: torch.Tensor
) -> None:
    """Relative difference of each gradient, as a whole tensor, at most 1e-3. Gradients are put in place of weights and
    compared as files, so this also shows that saving writes transformers' names, shapes and layouts."""
    F.cross_entropy(model.logits(tokens)[:-1], tokens[1:]).backward()
    F.cross_entropy(reference(tokens[None]).logits[0, :-1], tokens[1:]).backward()
    for either in (model, reference):
        for parameter in either.parameters():
            gradient = parameter.grad
            parameter.data = torch.zeros_like(parameter) if gradient is None else gradient
    reference.save_pretrained(folder / "gradients")
    expected = {}
    for file in (folder / "gradients").glob("*.safetensors"):
        expected |= load_file(file)
    prefix = family_of(model.config.family).prefix  # which checkpoints may leave out, as transformers itself does
    expected = {name.removeprefix(prefix): tensor for name, tensor in expected.items()}
    ours = checkpoint_views(model)
    trained = {name for name, tensor in ours.items() if tensor.requires_grad or tensor.is_floating_point()}
    for name in trained & expected.keys():
        difference = (ours[name] - expected[name]).norm() / expected[name].norm().clamp_min(1e-6)
        assert difference < 1e-3, f"{name}: {difference:.2e}"
    missing = {name for name in ours if name not in expected}
    assert not missing, f"not what transformers writes: {sorted(missing)[:3]}"


def prove_training(folder: Path, steps: int = 50) -> None:
    """From random weights: a text with a pattern in it is learnt."""
    torch.manual_seed(2)
    model = read_config(json.loads((folder / "config.json").read_text())).build()
    assert isinstance(model, Decoder)
    tokens = torch.randint(model.config.vocab_size, (12,)).repeat(4)
    positions, context = torch.arange(len(tokens) - 1), PackedContext([len(tokens) - 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(steps):
        logits = model.unembed(model(tokens[:-1], positions, context))
        loss = F.cross_entropy(logits, tokens[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


def prove_engine(model: Decoder, num_requests: int = 14, seed: int = 0) -> None:
    """Small blocks, short chunks, too little memory: every request's tokens equal those it gets alone."""
    from one_by_one import one_at_a_time, tiny_engine

    rng = random.Random(seed)
    model.eval().requires_grad_(False)
    shared = [rng.randrange(1, model.config.vocab_size) for _ in range(14)]
    for settings in (
        {"block_size": 4, "max_running": 5, "max_step_tokens": 7, "num_blocks": 14},
        {
            "block_size": 2,
            "max_running": 4,
            "max_step_tokens": 64,
            "num_blocks": 24,
            "preemption": "swap",
            "swap_bytes": 2**20,
        },
    ):
        engine = tiny_engine(settings.pop("num_blocks"), model, **settings)
        asked, answers = {}, {}
        for number in range(num_requests):
            tail = [rng.randrange(1, model.config.vocab_size) for _ in range(rng.randrange(1, 6))]
            prompt = shared[: rng.choice([0, 1, 9, 14])] + tail
            params = SamplingParams(seed=number, max_tokens=rng.randrange(1, 16), n=rng.choice([1, 1, 2]))
            asked[str(number)] = prompt, params
            answers[str(number)] = [[] for _ in range(params.n)]
        waiting = list(asked)
        while waiting or engine.has_work:
            for id in waiting[:3]:
                engine.submit(engine.make_request(*asked[id], id=id))
            del waiting[:3]
            for request, event in engine.step():
                if hasattr(event, "token_ids"):
                    answers[request.id][event.index] += event.token_ids
            engine.scheduler.check_integrity()
        assert engine.pool.num_available == engine.pool.num_blocks
        for id, (prompt, params) in asked.items():
            assert answers[id] == one_at_a_time(prompt, params, engine.max_model_len, model=model), (id, settings)
