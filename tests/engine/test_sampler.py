from __future__ import annotations

from collections import Counter

import pytest
import torch
import transformers

from wootz.engine import SamplingParams
from wootz.engine.output import NoText, TextStream
from wootz.engine.sampler import probability_weights, sample, uniform
from wootz.engine.sequence import Request, Sequence


def sequence(params: SamplingParams, *, prompt=(1, 2), output=(), seed=0, index=0, ends=frozenset()) -> Sequence:
    request = Request("", list(prompt), params, seed, frozenset(ends), 1000)
    return Sequence(request, index, [*prompt, *output], TextStream(NoText()))


def chosen(logits_SV: torch.Tensor, *sequences: Sequence) -> list[int]:
    return [sampled.token_id for sampled in sample(logits_SV.clone(), sequences)]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.6, temperature=1.4),
        SamplingParams(min_p=0.2),
        SamplingParams(top_k=8, top_p=0.8, min_p=0.05, temperature=1.2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["by PyTorch", "by the kernels"])
def test_tokens_come_with_their_probabilities(params, dtype):
    """Chi-square against the distribution computed by hand; seeds are fixed, so this never flickers."""
    torch.manual_seed(1)
    logits_1V = torch.randn(1, 20, dtype=torch.float64) * 1.5
    wanted = reference_distribution(logits_1V, params)[0]
    logits_1V = logits_1V.to(dtype)
    num_draws = 20_000
    sequences = [sequence(params, seed=seed) for seed in range(num_draws)]
    counts = Counter(chosen(logits_1V.expand(num_draws, -1), *sequences))
    possible = [token for token in range(20) if wanted[token] > 0]
    assert set(counts) <= set(possible)
    observed = [counts[token] for token in possible]
    expected = torch.tensor([wanted[token] for token in possible], dtype=torch.float64)
    assert p_value(observed, expected / expected.sum()) > 1e-3


def test_choices_and_positions_of_one_seed_are_independent_and_even():
    draws = [uniform(7, index, position) for index in range(40) for position in range(500)]
    counts = Counter(int(20 * draw) for draw in draws)
    assert len(set(draws)) == len(draws)
    assert p_value([counts[bucket] for bucket in range(20)], torch.full((20,), 1 / 20)) > 1e-3


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 400])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
def test_truncation_equals_transformers(spread, top_k, top_p, min_p):
    """Over a vocabulary larger than the candidates looked at first, flat enough to need all of it, and peaked."""
    torch.manual_seed(2)
    logits_SV = torch.randn(3, 6000, dtype=torch.float64) * spread
    params = SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)
    weights_SV = probability_weights(logits_SV, [params] * 3)
    ours = weights_SV / weights_SV.sum(-1, keepdim=True)
    torch.testing.assert_close(ours, reference_distribution(logits_SV, params), rtol=1e-9, atol=1e-12)


def test_rows_of_different_parameters_do_not_disturb_each_other():
    torch.manual_seed(3)
    logits_SV = torch.randn(6, 3000, dtype=torch.float64)
    params = [
        SamplingParams(),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.5),
        SamplingParams(min_p=0.5),
        SamplingParams(temperature=0.1),
        SamplingParams(top_k=600, top_p=0.99),
    ]
    together = probability_weights(logits_SV, params)
    for row, each in enumerate(params):
        alone = probability_weights(logits_SV[row : row + 1], [each])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=0)


def test_penalties_equal_transformers():
    torch.manual_seed(4)
    logits_1V = torch.randn(1, 50)
    prompt, output = [3, 4, 5, 4], [7, 8, 7, 3]
    repetition = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    wanted = repetition(torch.tensor([prompt + output]), logits_1V.clone())
    for token in output:
        wanted[0, token] -= 0.25  # frequency: for each time
    for token in set(output):
        wanted[0, token] -= 0.5  # presence: once
    params = SamplingParams(
        temperature=0, repetition_penalty=1.7, presence_penalty=0.5, frequency_penalty=0.25, logprobs=0
    )
    changed = logits_1V.clone()
    raw = changed.log_softmax(-1)
    (sampled,) = sample(changed, [sequence(params, prompt=prompt, output=output)])
    torch.testing.assert_close(changed, wanted)
    assert sampled.token_id == int(wanted.argmax())
    assert sampled.logprob == pytest.approx(raw[0, sampled.token_id].item()), "not the model's own log-probability"


def test_logit_bias_forces_and_forbids():
    logits_1V = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    assert chosen(logits_1V, sequence(SamplingParams(temperature=0, logit_bias={3: 100.0}))) == [3]
    assert chosen(logits_1V, sequence(SamplingParams(temperature=0, logit_bias={0: -100.0}))) == [1]


def test_end_tokens_wait_for_min_tokens():
    logits_1V = torch.tensor([[9.0, 2.0, 1.0]])
    params = SamplingParams(temperature=0, min_tokens=2)
    assert chosen(logits_1V, sequence(params, output=(1,), ends={0})) == [1]
    assert chosen(logits_1V, sequence(params, output=(1, 1), ends={0})) == [0]


def test_logprobs_are_the_models_and_sorted():
    torch.manual_seed(6)
    logits_1V = torch.randn(1, 30)
    params = SamplingParams(temperature=2.0, top_k=4, logprobs=3)
    (sampled,) = sample(logits_1V.clone(), [sequence(params)])
    wanted = logits_1V.log_softmax(-1)[0]
    assert sampled.logprob == pytest.approx(wanted[sampled.token_id].item())
    assert [token for token, _ in sampled.top] == wanted.topk(3).indices.tolist()
    assert [logprob for _, logprob in sampled.top] == pytest.approx(wanted.topk(3).values.tolist())


def test_tiny_temperatures_are_greedy_not_nan():
    logits_1V = torch.tensor([[1000.0, 1001.0, -1000.0]])
    assert chosen(logits_1V, sequence(SamplingParams(temperature=1e-30))) == [1]


def p_value(observed: list[int], probabilities: torch.Tensor) -> float:
    """Of Pearson's chi-square test."""
    expected = probabilities.double() * sum(observed)
    statistic = ((torch.tensor(observed) - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2).double(), statistic / 2).item()


def reference_distribution(logits_SV: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    steps = [transformers.TemperatureLogitsWarper(params.temperature)]
    if params.top_k:
        steps.append(transformers.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(transformers.TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(transformers.MinPLogitsWarper(params.min_p))
    for step in steps:
        logits_SV = step(None, logits_SV.clone())
    return logits_SV.softmax(-1)
