"""Whatever is drafted, what is written stays what it was: token for token, or in distribution for drafts by chance."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from one_by_one import VOCAB_SIZE, one_at_a_time, tiny_engine, tiny_model
from test_batching import SCENARIO, check_against_one_at_a_time
from test_sampler import p_value, reference_distribution

from wootz.core import ConfigError, EngineConfig, SpeculationConfig, UnsupportedError
from wootz.engine import Engine, SamplingParams
from wootz.engine.output import NoText, TextStream
from wootz.engine.sampler import Logits, pick, sample
from wootz.engine.sequence import Request, Sequence
from wootz.engine.speculation.draft import ROOT, Draft
from wootz.engine.speculation.draft_model import DraftModel
from wootz.engine.speculation.methods import with_heads
from wootz.engine.speculation.pace import (
    PROBE_EVERY,
    best_length,
    checking_cost,
    expected_tokens,
    simulate,
    speedup,
)
from wootz.engine.speculation.prompt_lookup import PromptLookup
from wootz.engine.speculation.tree import Tree
from wootz.engine.speculation.verify import DRAFT_STREAM, Walk, choose, random_number
from wootz.models import Decoder, PackedContext, draft_heads, read_config
from wootz.models.draft_heads import DraftHeads
from wootz.models.run import Run

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


def random_heads(kind, depth=3) -> DraftHeads:
    torch.manual_seed(1)
    heads = DraftHeads(kind, depth, tiny_model()).double().requires_grad_(False)
    for parameter in heads.parameters():
        parameter.data += torch.randn_like(parameter) * (parameter.ndim > 1)
    return heads


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
        case _:
            return free(with_heads(random_heads(kind), tiny_model()))


KINDS = ["prompt lookup", "guesses", "good draft model", "bad draft model", *draft_heads.KINDS]
speculating = given(kind=st.sampled_from(KINDS), seed=st.integers(0, 9), num_tokens=st.integers(1, 9), **SCENARIO)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@speculating
def test_tokens_do_not_depend_on_drafts(kind, seed, num_tokens, **scenario):
    check_speculation(kind, seed, num_tokens, **scenario)


@pytest.mark.slow
@pytest.mark.timeout(3600)
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


def test_a_hopeless_draft_is_given_up_and_tried_again_now_and_then():
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    config = SpeculationConfig(row_cost=0.05)
    engine = tiny_engine(300, speculator=Guesser(rightness=0, depth=None), speculation=config)
    (answer,) = engine.generate([PROMPTS[0]], params)
    assert [answer.token_ids] == one_at_a_time(PROMPTS[0], params)
    assert 100 / PROBE_EVERY - 1 <= engine.stats().drafts < 30


def test_nothing_is_drafted_for_a_large_batch():
    config = SpeculationConfig(row_cost=0.2)
    for num_prompts, is_drafted in ((1, True), (40, False)):
        twin_draft = free(DraftModel(twin(), tiny_model()))
        engine = tiny_engine(600, speculator=twin_draft, speculation=config, max_running=40)
        engine.generate([[n % 30 + 1, 5] for n in range(num_prompts)], GREEDY)
        assert (engine.stats().draft_tokens > 0) == is_drafted


@pytest.mark.parametrize("kind", ["sequential", "eagle"])
def test_what_heads_keep_is_what_they_would_make_of_the_whole_text(kind):
    """Through shared prompts, forks, preemption, branches kept and branches thrown away."""
    heads, model = random_heads(kind), tiny_model()
    engine = tiny_engine(24, speculator=free(with_heads(heads, model)), speculation=ALWAYS, max_step_tokens=20)
    params = SamplingParams(seed=3, n=2, max_tokens=30, ignore_eos=True)
    engine.generate([[7] * 9], GREEDY)
    for prompt in ([7] * 9, [7] * 9 + [1], [7] * 9 + [2]):
        engine.submit(engine.make_request(prompt, params))
    for _ in range(14):
        engine.step()
    stats = engine.stats()
    assert 0 not in (stats.preemptions, stats.draft_tokens_accepted, stats.prompt_tokens_cached)
    with torch.inference_mode():
        for sequence in engine.scheduler.running:
            if sequence.num_remaining == 1 and engine.scheduler.make_room(sequence, 4):
                draft = engine.speculation.speculator.propose([sequence], [4])[0]
                wanted = first_guess(heads, sequence.token_ids)
                assert draft.token_ids[0] == wanted


def first_guess(heads: DraftHeads, token_ids: list[int]) -> int:
    model, run = tiny_model(), Run(torch.arange(len(token_ids)), PackedContext([len(token_ids)]))
    tokens_T = torch.tensor(token_ids)
    hidden_TD = model(tokens_T, run.positions_T, run.context)
    states = heads.sequential_states(
        hidden_TD, model.embedding(tokens_T), run, lambda _, s: torch.cat((0 * s[:1], s[:-1])), levels=1
    )
    return model.unembed(states[0])[-1].argmax().item()


@pytest.mark.parametrize("kind", ["good draft model", *draft_heads.KINDS])
def test_who_drafts_goes_on_after_a_sleep(kind):
    engine = tiny_engine(200, speculator=speculator_of(kind), speculation=ALWAYS)
    before = engine.generate([[3, 1, 4]], GREEDY)[0].token_ids
    accepted = engine.stats().draft_tokens_accepted
    engine.sleep()
    engine.wake()
    assert engine.generate([[3, 1, 4]], GREEDY)[0].token_ids == before
    assert engine.stats().draft_tokens_accepted == 2 * accepted


def test_each_node_of_a_tree_sees_the_text_and_its_own_way():
    engine, model = tiny_engine(50), tiny_model()
    engine.submit(engine.make_request([3, 1, 4, 1, 5], GREEDY))
    engine.step()
    (chunk,) = engine.scheduler.schedule()
    draft = Draft([5, 6, 7, 8, 9, 4], [ROOT, ROOT, 0, 1, 0, 2])
    assert engine.scheduler.make_room(chunk.sequence, len(draft)) == len(draft)
    with torch.inference_mode():
        logits_SV = engine.runner.run([replace(chunk, draft=draft)]).rows_SV
        texts = {ROOT: chunk.sequence.token_ids}
        for node, (token, parent) in enumerate(zip(draft.token_ids, draft.parents, strict=True)):
            texts[node] = [*texts[parent], token]
        for node, text in texts.items():
            torch.testing.assert_close(logits_SV[1 + node], model.logits(text)[-1])


def test_a_tree_keeps_its_likeliest_nodes_with_all_before_them():
    tree = Tree()
    first = torch.tensor([[0.6, 0.3, 0.1, 0.0]]).log()
    tree.grow(first, width=2)
    tree.grow(torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.9, 0.1, 0.0, 0.0]]).log(), width=2)
    draft = tree.best(4)
    assert list(zip(draft.token_ids, draft.parents, draft.depths, strict=True)) == [
        (0, ROOT, 1),
        (1, ROOT, 1),
        (0, 1, 2),
        (0, 0, 2),
    ]
    assert draft.ancestry_NN.tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, True, True, False],
        [True, False, False, True],
    ]


# --- by chance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft", ["good", "bad", "adversarial"])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_k=6, temperature=1.3, min_p=0.05)])
def test_drafts_by_chance_leave_the_distribution_as_it_is(draft, params):
    """Chi-square of a draft's first token and of its second, given the first; seeds are fixed."""
    torch.manual_seed(1)
    logits_V = torch.randn(9, dtype=torch.float64) * 1.5
    p_V = reference_distribution(logits_V[None], params)[0]
    q_V = {"good": p_V + 0.03, "bad": torch.ones(9), "adversarial": 1 / (p_V + 0.01)}[draft]
    q_V = q_V / q_V.sum()
    walks = []
    for seed in range(4000):
        answer = Sequence(Request("", [1], params, seed, frozenset(), 100), 0, [1], TextStream(NoText()))
        (token,) = pick(q_V[None], [random_number(answer, DRAFT_STREAM)])
        walks.append(Walk(answer, 2 * seed, Draft.chain([token], q_V[None])))
    chosen = [sampled.token_id for sampled in choose(Logits(logits_V.expand(8000, -1).clone()), walks)]
    counts = Counter(chosen)
    possible = [token for token in range(9) if p_V[token] > 0]
    assert set(counts) <= set(possible)
    assert p_value([counts[token] for token in possible], p_V[possible]) > 1e-3
    accepted = sum(token == walk.draft.token_ids[0] for token, walk in zip(chosen, walks, strict=True)) / len(walks)
    assert accepted == pytest.approx(torch.minimum(p_V, q_V).sum().item(), abs=0.03), "as often as any rule can"


def test_answers_by_chance_come_as_often_as_without_drafts():
    """Two tokens of the tiny model, thousands of times, with a draft model that is off."""
    params = SamplingParams(max_tokens=3, top_k=3, temperature=1.5, ignore_eos=True)
    prompt = [3, 1, 4]
    draft = free(DraftModel(twin(0.3), tiny_model()))
    engine = tiny_engine(3000, speculator=draft, speculation=ALWAYS, max_running=500, max_step_tokens=5000)
    answers = engine.generate([prompt] * 1500, params)
    assert 0 < engine.stats().draft_tokens_accepted < engine.stats().draft_tokens
    counts = Counter(tuple(answer.token_ids) for answer in answers)
    likelihood = {(): 1.0}
    for _ in range(3):
        likelihood = {
            (*text, token): before * p
            for text, before in likelihood.items()
            for token, p in enumerate(next_probabilities([*prompt, *text], params))
            if p > 0
        }
    assert set(counts) <= set(likelihood)
    frequent = [text for text, p in likelihood.items() if p * 1500 > 5]
    rest = 1500 - sum(counts[text] for text in frequent)
    shares = torch.tensor([likelihood[text] for text in frequent], dtype=torch.float64)
    observed = [*(counts[text] for text in frequent), rest]
    assert p_value(observed, torch.cat((shares, (1 - shares.sum())[None]))) > 1e-3


def next_probabilities(token_ids, params):
    with torch.inference_mode():
        return reference_distribution(tiny_model().logits(token_ids)[-1:], params)[0].tolist()


# --- how far --------------------------------------------------------------------------------------------------


def test_the_model_of_speed():
    assert expected_tokens(0.8, 4) == pytest.approx((1 - 0.8**5) / (1 - 0.8))
    assert expected_tokens(1, 4) == 5
    assert speedup(0.8, 4, 0.1) == pytest.approx((1 - 0.8**5) / (1 - 0.8) / 1.4)
    assert best_length(0.7, 0.05, 20) == max(range(21), key=lambda k: (1 - 0.7 ** (k + 1)) / 0.3 / (0.05 * k + 1))
    assert best_length(0.2, 0.3, 8) == 0
    assert checking_cost(0.1, 1) < 0.1 < checking_cost(0.1, 1000) < 1


def test_simulated_drafts_are_as_fast_as_the_model_says():
    simulated = simulate(0.7, 4, 20_000, seed=0)
    assert simulated == pytest.approx(expected_tokens(0.7, 4), rel=0.02)


# --- what is refused ------------------------------------------------------------------------------------------


def test_a_draft_of_another_vocabulary_is_refused(tiny_folder, tmp_path):
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    first, second = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)[500:502]
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="another vocabulary"):
        Engine(tiny_folder, config=EngineConfig(speculation=SpeculationConfig(method="draft-model", path=other)))


def test_a_model_drafts_for_itself_by_config(tiny_folder):
    params = SamplingParams(temperature=0, max_tokens=12, stop=("the",), logprobs=1)
    plain = Engine(tiny_folder).generate(["Licensed under the", "You may"], params)
    config = SpeculationConfig(method="draft-model", path=tiny_folder, row_cost=0)
    engine = Engine(tiny_folder, config=EngineConfig(speculation=config))
    engine.speculation.pace.draft_cost = 0
    drafted = engine.generate(["Licensed under the", "You may"], params)
    assert [(a.text, a.token_ids, a.finish_reason) for a in drafted] == [
        (a.text, a.token_ids, a.finish_reason) for a in plain
    ]
    assert [a.logprobs[-1].token_id for a in drafted] == [a.token_ids[-1] for a in plain]
    assert engine.stats().draft_tokens_accepted > 10


def test_a_recurrent_model_is_refused():
    raw = {"model_type": "wootz", "vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 2, "layers": "MA"}
    hybrid = read_config(raw | {"num_attention_heads": 2}).build()
    with pytest.raises(UnsupportedError, match="recurrent"):
        Engine(hybrid, speculator=PromptLookup())


def test_a_method_says_what_it_needs():
    for settings_ in ({"method": "heads"}, {"method": "prompt-lookup", "path": "x"}):
        with pytest.raises(ValueError, match="path"):
            SpeculationConfig(**settings_)


def test_prompt_lookup_goes_on_as_the_text_did():
    def draft(text: list[int], limit: int = 4):
        answer = Sequence(Request("", text[:1], GREEDY, 0, frozenset(), 100), 0, text, TextStream(NoText()))
        (draft,) = PromptLookup().propose([answer], [limit])
        return draft and draft.token_ids

    assert draft([1, 2, 3, 4, 9, 1, 2]) == [3, 4, 9, 1]
    assert draft([5, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3]) == [8, 1, 2, 3], "the longest match counts, and the latest of those"
    assert draft([4, 5, 4, 5, 4, 5]) == [4, 5, 4, 5], "a period goes on"
    assert draft([1, 2, 3, 4]) is None


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_repeats_a_list_several_tokens_at_a_time(smollm2_gguf):
    text = "Name: Ada, Town: London\\nName: Alan, Town: Manchester\\nThe same list again:\\nName: Ada,"
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    config = EngineConfig(threads=1, cache_bytes=2**27)
    (plain,) = Engine(smollm2_gguf, config=config).generate([text], params)
    engine = Engine(smollm2_gguf, config=config.model_copy(update={"speculation": SpeculationConfig()}))
    (drafted,) = engine.generate([text], params)
    assert drafted.token_ids == plain.token_ids
    assert engine.stats().steps <= 20
