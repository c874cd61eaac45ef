"""Masked diffusion against its own exact likelihood, which a tiny vocabulary lets us enumerate."""

from __future__ import annotations

import math
from itertools import combinations, permutations, product

import pytest
import torch

from wootz.data.batch import Batch
from wootz.models import read_config
from wootz.models.diffusion import (
    COSINE,
    LINEAR,
    MaskedDiffusion,
    diffusion_loss,
    hide,
    likelihood_bound,
    sample,
    score_entropy,
    score_entropy_loss,
)
from wootz.training.fit import FitConfig, fit

LENGTH, SYMBOLS = 4, 3
EVERY_TEXT = torch.tensor(list(product(range(SYMBOLS), repeat=LENGTH)))


def tiny(vocab_size: int = SYMBOLS + 1, width: int = 16, layers: int = 1, seed: int = 0, **settings) -> MaskedDiffusion:
    torch.manual_seed(seed)
    raw = {"model_type": "wootz", "causal": False, "vocab_size": vocab_size, "hidden_size": width, "ffn": "gelu"}
    raw |= {"num_hidden_layers": layers, "num_attention_heads": 2, "initializer_range": 0.5}
    return MaskedDiffusion(read_config(raw | settings).build())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.inference_mode()
def loss_under(model: MaskedDiffusion, text: torch.Tensor, hidden: set[int]) -> dict[int, float]:
    """-log p of what is under each of these masks."""
    masked = text.clone()
    masked[sorted(hidden)] = model.mask_id
    log_probs = model(masked[None])
    return {place: -log_probs[row, text[place]].item() for row, place in enumerate(sorted(hidden))}


def exact(model: MaskedDiffusion, text: torch.Tensor) -> tuple[float, float]:
    """-log p and its bound: one token is uncovered at a time, in an order of which each is as likely."""
    subsets = [set(places) for n in range(1, LENGTH + 1) for places in combinations(range(LENGTH), n)]
    losses = {frozenset(places): loss_under(model, text, places) for places in subsets}
    totals = []
    for order in permutations(range(LENGTH)):
        totals.append(sum(losses[frozenset(order[step:])][place] for step, place in enumerate(order)))
    return -math.log(sum(math.exp(-total) for total in totals) / len(totals)), sum(totals) / len(totals)


def test_the_bound_holds_for_every_text_of_a_distribution_that_sums_to_one() -> None:
    model = tiny()
    pairs = [exact(model, text) for text in EVERY_TEXT]
    assert sum(math.exp(-nll) for nll, _ in pairs) == pytest.approx(1, abs=1e-5)
    assert all(nll <= bound + 1e-6 for nll, bound in pairs)
    assert max(bound - nll for nll, bound in pairs) > 0.1  # And it is a bound, not the thing itself.


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
@torch.inference_mode()
def test_loss_estimates_the_exact_bound_whatever_the_schedule(schedule) -> None:
    model, text = tiny(), torch.tensor([2, 0, 1, 1])
    bound = exact(model, text)[1] / LENGTH
    estimate = diffusion_loss(model, text.expand(60_000, -1), schedule, seeded()).item()
    assert estimate == pytest.approx(bound, rel=0.02)
    assert score_entropy_loss(model, text.expand(10, -1), schedule, seeded()).isfinite()


@torch.inference_mode()
def test_measured_bound_is_unbiased_and_less_noisy() -> None:
    model, text = tiny(), torch.tensor([2, 0, 1, 1])
    rows = text.expand(10_000, -1)
    estimates = likelihood_bound(model, rows, draws=2, generator=seeded())
    assert estimates.mean().item() == pytest.approx(exact(model, text)[1] / LENGTH, rel=0.02)
    single = likelihood_bound(model, rows, draws=1, generator=seeded(1))
    losses = torch.stack([diffusion_loss(model, rows[:1], generator=seeded(seed)) for seed in range(1_000)])
    assert single.std() < 0.7 * losses.std()


def test_weights_are_minus_the_slope_of_what_is_kept_over_what_is_masked() -> None:
    time = torch.linspace(0.05, 0.95, 19, dtype=torch.float64, requires_grad=True)
    for schedule in (LINEAR, COSINE):
        kept = schedule.kept(time)
        (slope,) = torch.autograd.grad(kept.sum(), time)
        torch.testing.assert_close(schedule.weight(time), -slope / (1 - kept))
        ends = schedule.kept(torch.tensor([0.0, 1.0]))
        torch.testing.assert_close(ends, torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)


def test_forward_process_absorbs_at_its_rate() -> None:
    tokens = torch.randint(3, (2, 20_000), generator=seeded())
    hidden = hide(tokens, 9, torch.tensor([[0.8], [0.25]]), seeded(1))
    torch.testing.assert_close((hidden == 9).float().mean(-1), torch.tensor([0.2, 0.75]), atol=0.01, rtol=0)
    assert (hidden[hidden != 9] == tokens[hidden != 9]).all()


@torch.inference_mode()
def test_score_entropy_of_normalised_scores_is_the_diffusion_loss() -> None:
    model, rows = tiny(), EVERY_TEXT.repeat(4, 1)
    ours = diffusion_loss(model, rows, generator=seeded())
    raw_logits = model.logits
    model.logits = lambda tokens: raw_logits(tokens)[:, : model.mask_id].log_softmax(-1)  # type: ignore[method-assign]
    torch.testing.assert_close(score_entropy_loss(model, rows, generator=seeded()), ours, rtol=1e-4, atol=0)


def test_score_entropy_is_least_at_the_true_ratios() -> None:
    truth, ratio = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor(1.7, dtype=torch.float64)
    log_score = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_score], max_iter=50)

    def expected() -> torch.Tensor:
        optimizer.zero_grad()
        every = score_entropy(log_score.expand(3, -1), torch.arange(3), ratio.expand(3))
        (loss := (truth * every).sum()).backward()
        return loss

    optimizer.step(expected)
    torch.testing.assert_close(log_score.exp()[0], ratio * truth, atol=1e-4, rtol=0)
    certain = (ratio * torch.tensor([1.0, 0.0, 0.0])).log()[None]
    assert score_entropy(certain, torch.tensor([0]), ratio[None]).item() == pytest.approx(0, abs=1e-6)


def test_one_token_at_a_time_in_random_order_samples_the_exact_distribution() -> None:
    model, draws = tiny(seed=3), 20_000
    texts = sample(model, model.masks(draws, LENGTH), steps=LENGTH, order="random", generator=seeded())
    place = SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)
    seen = torch.bincount((texts * place).sum(-1), minlength=len(EVERY_TEXT)) / draws
    expected = torch.tensor([math.exp(-exact(model, text)[0]) for text in EVERY_TEXT])
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((seen - expected).abs() < 4.5 * deviation).all()


@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("steps", [1, 3, 7, 30])
def test_sampler_uncovers_everything_changes_nothing_and_calls_once_per_step(order, steps) -> None:
    model = tiny(vocab_size=12, width=32)
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    start = torch.randint(11, (3, 20), generator=seeded())
    start[0], start[1, 4:17] = model.mask_id, model.mask_id
    end = sample(model, start, steps=steps, order=order, generator=seeded(2))
    assert len(seen) == steps
    assert (end != model.mask_id).all()
    for before, after in zip(seen, [*seen[1:], end], strict=True):
        known = before != model.mask_id
        assert (before[known] == after[known]).all()
    left = torch.stack([(tokens == model.mask_id).sum(-1) for tokens in [*seen, end]])
    assert (left[:-1] - left[1:]).amax(0).tolist() <= [math.ceil(20 / steps), math.ceil(13 / steps), 0]


def test_confidence_order_uncovers_the_surest_first() -> None:
    model = tiny(vocab_size=12, width=32)
    start = model.masks(1, 6)
    with torch.inference_mode():
        log_probs = model(start)
    first = sample(model, start, steps=1, temperature=0)
    assert (first[0] == log_probs.argmax(-1)).all()
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    sample(model, start, steps=6, temperature=0)
    assert (seen[1][0] != model.mask_id).nonzero().item() == log_probs.amax(-1).argmax()


@pytest.mark.slow
def test_learns_a_toy_language_and_writes_it_in_few_steps() -> None:
    """Rows count up from any start, modulo 8: one visible token tells all the others."""
    model, generator = tiny(vocab_size=9, width=32, layers=2, initializer_range=0.2), seeded()

    def rows():
        while True:
            starts = torch.randint(8, (32, 1), generator=generator)
            row = (starts + torch.arange(13)) % 8
            yield Batch.of(row)

    config = FitConfig(steps=250, learning_rate=5e-3)
    fitted = fit(
        model,
        rows(),
        config,
        loss_of=lambda model, batch: diffusion_loss(model, batch.tokens_BT, generator=generator),
    )
    bound = likelihood_bound(model, next(rows()).tokens_BT, draws=8, generator=generator).mean().item()
    assert sum(fitted.losses[:10]) / 10 > 1.5 > 0.35 > bound
    assert bound > math.log(8) / 12  # The entropy of a row, per token.
    texts = sample(model, model.masks(64, 12), steps=12, generator=generator)
    right = ((texts[:, 1:] - texts[:, :-1]) % 8 == 1).float().mean()
    assert right > 0.95
    infill = model.masks(1, 12)
    infill[0, 5] = 3
    assert (sample(model, infill, steps=3, temperature=0)[0] == (torch.arange(12) + 6) % 8).all()


def test_a_model_that_only_looks_back_is_refused() -> None:
    with pytest.raises(ValueError, match='"causal": false'):
        tiny(causal=True)
    with pytest.raises(ValueError, match="at least one step"):
        sample(tiny(), tiny().masks(1, 4), steps=0)
