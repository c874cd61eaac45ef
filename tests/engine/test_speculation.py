"""Whatever is drafted, what is written stays what it was: token for token, or in distribution for drafts by chance."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from one_by_one import VOCAB_SIZE, one_at_a_time, tiny_engine, tiny_model
from test_batching import SCENARIO, check_against_one_at_a_time
from test_sampler import p_value, reference_distribution

from wootz.core import ConfigError, SpeculationConfig, UnsupportedError
from wootz.engine import Engine, SamplingParams
from wootz.engine.sampler import sample
from wootz.engine.speculation.draft import ROOT, Draft
from wootz.engine.speculation.draft_model import DraftModel
from wootz.engine.speculation.prompt_lookup import PromptLookup
from wootz.models import Decoder, read_config

ALWAYS = SpeculationConfig(row_cost=0)
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


class Guesser(PromptLookup):
    """Trees at random, in which the right token is often among the wrong ones."""

    def __init__(self, seed: int = 0, rightness: float = 0.7, depth: int | None = 3) -> None:
        super().__init__()
        self.random, self.rightness, self.depth = random.Random(seed), rightness, depth

    def propose(self, sequences, limits):
        return [self.guess(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]

    def guess(self, sequence, limit):
        tokens, parents, texts = [], [], {ROOT: sequence.token_ids}
        while len(tokens) < limit and self.random.random() < 0.9:
            parent = self.random.choice(range(ROOT, len(tokens)))
            token = self.random.randrange(VOCAB_SIZE)
            if self.random.random() < self.rightness:
                token = next_token(sequence, texts[parent])
            if token not in [t for t, p in zip(tokens, parents, strict=True) if p == parent]:
                texts[len(tokens)] = [*texts[parent], token]
                tokens.append(token)
                parents.append(parent)
        return Draft(tokens, parents) if tokens else None


def next_token(sequence, token_ids):
    ahead = copy.copy(sequence)
    ahead.token_ids = token_ids
    return sample(tiny_model().logits(token_ids)[-1:].clone(), [ahead])[0].token_id


def another_model(seed: int, **changes) -> Decoder:
    torch.manual_seed(seed)
    raw = dict(tiny_model().config.raw) | {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16} | changes
    model = read_config(raw).build().double()
    for parameter in model.parameters():
        parameter.data *= 6
    return model.eval().requires_grad_(False)


def twin(noise: float = 0.0) -> Decoder:
    """The model again, so right in all that it says; or a little off."""
    model = copy.deepcopy(tiny_model())
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    return model


def free(speculator):
    """So that it is always asked."""
    speculator.cost = 0
    return speculator


def speculator_of(kind: str, seed: int = 0):
    match kind:
        case "prompt lookup":
            return PromptLookup()
        case "guesses":
            return Guesser(seed)
        case "good draft model":
            return free(DraftModel(twin(0.05), tiny_model()))
        case "bad draft model":
            return free(DraftModel(another_model(seed), tiny_model()))


KINDS = ["prompt lookup", "guesses", "good draft model", "bad draft model"]
speculating = given(kind=st.sampled_from(KINDS), seed=st.integers(0, 9), num_tokens=st.integers(1, 9), **SCENARIO)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@speculating
def test_tokens_do_not_depend_on_drafts(kind, seed, num_tokens, **scenario):
    check_speculation(kind, seed, num_tokens, **scenario)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@speculating
def test_tokens_do_not_depend_on_drafts_in_many_scenarios(kind, seed, num_tokens, **scenario):
    check_speculation(kind, seed, num_tokens, **scenario)


def check_speculation(kind, seed, num_tokens, **scenario):
    config = SpeculationConfig(row_cost=0, num_tokens=num_tokens)
    check_against_one_at_a_time(**scenario, speculator=speculator_of(kind, seed), speculation=config)


def answers(prompts, params, **options):
    engine = tiny_engine(num_blocks=300, speculation=ALWAYS, **options)
    return [answer.token_ids for answer in engine.generate(prompts, params)], engine.stats()


PROMPTS = [[n, n + 1, 2, n + 3, 5] for n in range(1, 6)]


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(seed=1, max_tokens=24, ignore_eos=True)])
def test_a_perfect_draft_is_always_right(params):
    drafted, stats = answers(PROMPTS, params, speculator=free(DraftModel(twin(), tiny_model())))
    assert drafted == [one_at_a_time(prompt, params)[0] for prompt in PROMPTS]
    assert stats.draft_tokens_accepted == stats.draft_tokens > 0
    assert stats.steps == 1 + -(-23 // 5), "each step brings four drafted tokens and one more"


def test_a_hopeless_draft_is_given_up():
    drafted, stats = answers(PROMPTS, GREEDY, speculator=Guesser(rightness=0, depth=None))
    assert drafted == [one_at_a_time(prompt, GREEDY)[0] for prompt in PROMPTS]
    assert stats.draft_tokens_accepted < stats.draft_tokens / 4
    print(stats)
