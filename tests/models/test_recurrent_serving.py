"""Recurrent mixers of our own in one decoder: they learn and are served; what is kept does not grow with the text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from one_by_one import one_at_a_time, tiny_engine
from parity import prove_engine

from wootz.engine import SamplingParams
from wootz.engine.attention import PagedCache
from wootz.engine.protocol import Output
from wootz.models import Decoder, PackedContext
from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.linear_attention import GLAConfig, LinearAttentionConfig, RetentionConfig
from wootz.models.blocks.mamba import MambaConfig
from wootz.models.blocks.mamba2 import Mamba2Config
from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.s4d import S4DConfig
from wootz.models.decoder import DecoderConfig, LayerConfig, PartConfig
from wootz.models.positions.rotary import RotaryConfig

WINDOW = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, rotary=RotaryConfig(8), window=6)
OTHERS = (LinearAttentionConfig(2, 8), RetentionConfig(2, 8, 16), GLAConfig(2, 8, 16, gate_rank=4), S4DConfig(4))
SAMBA = (MambaConfig(intermediate_size=48, state_size=4, dt_rank=2), WINDOW)
PURE = (Mamba2Config(num_heads=4, head_dim=8, state_size=4),)


def decoder(mixers: tuple[PartConfig, ...]) -> Decoder:
    torch.manual_seed(3)
    layers = tuple(LayerConfig(mixer=mixer, ffn=GatedMLPConfig(48)) for mixer in mixers)
    config = DecoderConfig(
        family="wootz",
        vocab_size=53,
        hidden_size=32,
        layers=layers,
        max_position_embeddings=96,
        eos_token_ids=(0,),
    )
    return config.build()


@pytest.mark.parametrize("mixers", [OTHERS, SAMBA], ids=["linear attention and S4D", "Samba"])
def test_mixers_of_our_own_learn_and_are_served(mixers):
    model = decoder(mixers)
    tokens = torch.randint(53, (12,)).repeat(4)
    positions, context = torch.arange(len(tokens) - 1), PackedContext([len(tokens) - 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(50):
        loss = F.cross_entropy(model.unembed(model(tokens[:-1], positions, context)), tokens[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model = model.double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    prove_engine(model)


@pytest.mark.parametrize("mixers", [SAMBA, PURE], ids=["hybrid", "purely recurrent"])
def test_a_running_state_is_not_shared_between_requests(mixers):
    """Asked for prefix caching, the engine computes the second request anew: no state of the prefix is left."""
    engine = tiny_engine(64, decoder(mixers).double(), prefix_caching=True)
    assert not engine.pool.prefix_caching
    answers = []
    for _ in range(2):
        request = engine.make_request(list(range(1, 30)), SamplingParams(seed=1, max_tokens=8))
        engine.submit(request)
        tokens = []
        while engine.has_work:
            tokens += [token for _, event in engine.step() for token in getattr(event, "token_ids", ())]
        answers.append(tokens)
    assert answers[0] == answers[1]
    assert engine.num_prompt_tokens == 2 * 29
    assert len(engine.pool.free_states) == engine.pool.num_states


def test_a_decode_state_is_as_large_for_a_thousand_tokens_as_for_one():
    attention, recurrent = decoder((WINDOW, WINDOW)), decoder(PURE * 2)
    assert PagedCache.block_bytes(recurrent.cache_specs, 16, torch.float32) == 0
    per_layer = 4 * (4 * 8 * 4 + 3 * (4 * 8 + 2 * 4))  # H * P * N numbers, and three inputs of the convolution
    assert PagedCache.state_bytes(recurrent.cache_specs, torch.float32) == 2 * per_layer
    assert PagedCache.state_bytes(recurrent.cache_specs, torch.bfloat16) == 2 * per_layer  # states stay float32
    assert PagedCache.state_bytes(attention.cache_specs, torch.float32) == 0
    assert PagedCache.block_bytes(attention.cache_specs, 16, torch.float32) == 2 * 16 * 4 * 2 * 2 * 8

    cache = PagedCache(recurrent.cache_specs, 0, 16, num_states=3, dtype=torch.float32, device=torch.device("cpu"))
    assert sum(state.nbytes for states in cache.layers for state in states) == 3 * 2 * per_layer


def test_a_text_costs_a_recurrent_model_the_same_memory_however_long():
    engine = tiny_engine(1, decoder(PURE).double(), max_running=2)
    before = [tensor.data_ptr() for states in engine.runner.cache.layers for tensor in states]
    engine.submit(engine.make_request([1, 2], SamplingParams(max_tokens=80, ignore_eos=True)))
    while engine.has_work:
        engine.step()
    assert engine.num_generated == 80
    assert before == [tensor.data_ptr() for states in engine.runner.cache.layers for tensor in states]


def test_the_example_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]):
    page = (Path(__file__).parents[2] / "docs" / "recurrent.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(example, {})
    slots, equal = capsys.readouterr().out.splitlines()
    assert slots.count("RecurrentState(") == 2
    assert equal == "tensor(True)"


@pytest.mark.parametrize("mixers", [SAMBA, PURE], ids=["hybrid", "purely recurrent"])
def test_running_states_are_swapped_with_the_blocks(mixers):
    model = decoder(mixers).double().eval().requires_grad_(False)
    for parameter in model.parameters():  # so that the answers depend on what was read
        parameter.data += 0.3 * torch.randn_like(parameter)
    engine = tiny_engine(40, model, preemption="swap", swap_bytes=2**20)
    params = SamplingParams(seed=1, max_tokens=12, ignore_eos=True)
    requests = [engine.make_request([n, n + 1, 5], params, id=str(n)) for n in range(1, 4)]
    answers: dict[str, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for request, event in engine.step():
            if isinstance(event, Output):
                answers[request.id] += event.token_ids
        if engine.num_steps % 3 == 0:
            for sequence in list(engine.scheduler.running):  # they come back in each other's places
                engine.scheduler.preempt(sequence, {})
        engine.scheduler.check_integrity()
    assert engine.stats().swapped_in == engine.stats().preemptions > 2
    assert engine.stats().prompt_tokens_computed == 9
    for request in requests:
        assert [answers[request.id]] == one_at_a_time(request.prompt_token_ids, params, model=model)
