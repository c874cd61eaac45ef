"""The engine on Triton's kernels says what it says in plain PyTorch; and decoding steps survive being replayed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wootz.core import EngineConfig
from wootz.engine import Engine, SamplingParams
from wootz.engine.gpu import graphs
from wootz.engine.gpu.layers import GpuLayers
from wootz.kernels import triton as gpu
from wootz.models import Decoder, families

pytestmark = pytest.mark.skipif(not gpu.AVAILABLE, reason="Triton is not installed")

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
COMMON = {
    "llama": TINY | {"model_type": "llama", "attention_bias": True},
    "mistral": TINY | {"model_type": "mistral", "sliding_window": 5},
    "qwen3": TINY | {"model_type": "qwen3"},
    "gemma2": TINY
    | {
        "model_type": "gemma2",
        "sliding_window": 5,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 3.0,
    },
    "gemma3": TINY
    | {
        "model_type": "gemma3_text",
        "sliding_window": 5,
        "sliding_window_pattern": 2,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
    },
}
OTHERS = {
    "gpt_oss": TINY
    | {
        "model_type": "gpt_oss",
        "sliding_window": 5,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "bloom": {
        "model_type": "bloom",
        "vocab_size": 97,
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 2,
        "layer_norm_epsilon": 1e-5,
    },
}


class OnKernels:
    """Makes engines that run on the kernels, interpreted or on a GPU, for as long as it is entered."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Callable[..., Engine]:
        self.context = gpu.on_cpu() if self.device.type == "cpu" else nullcontext()
        self.context.__enter__()
        return lambda name, **config: Engine(
            random_model(name).to(self.device), config=EngineConfig(block_size=4, **config)
        )

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(None, None, None)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def on_kernels(request: pytest.FixtureRequest) -> OnKernels:
    device = torch.device(request.param)
    if (device.type == "cpu") != gpu.INTERPRETED:
        pytest.skip("set TRITON_INTERPRET=1 for a CPU, and 0 for a GPU")
    return OnKernels(device)


def random_model(name: str) -> Decoder:
    torch.manual_seed(0)
    model = families.read_config((COMMON | OTHERS)[name]).build()
    assert isinstance(model, Decoder)
    for parameter in model.parameters():
        parameter.data *= 6  # sharp, so that answers vary
    for module in model.modules():
        if isinstance(module, nn.Module) and "RMSNorm" in type(module).__name__:
            nn.init.normal_(module.weight, 1.0, 0.3)  # pyright: ignore[reportArgumentType]
    return model.eval().requires_grad_(False)


PROMPTS = [[5], [1, 2, 3], list(range(20, 33)), [*range(20, 29), 3]]
PARAMS = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=1)


@lru_cache
def in_pytorch(name: str, **config: Any) -> list[tuple[list[int], list[float]]]:
    engine = Engine(random_model(name), config=EngineConfig(block_size=4, **config))
    assert not isinstance(engine.model.layer_loop, GpuLayers)
    return answers(engine)


def answers(engine: Engine) -> list[tuple[list[int], list[float]]]:
    found = engine.generate(PROMPTS, PARAMS)
    return [(answer.token_ids, [token.logprob for token in answer.logprobs or []]) for answer in found]


def same(found: list[tuple[list[int], list[float]]], expected: list[tuple[list[int], list[float]]]) -> None:
    for (tokens, logprobs), (expected_tokens, expected_logprobs) in zip(found, expected, strict=True):
        assert tokens == expected_tokens
        assert logprobs == pytest.approx(expected_logprobs, abs=2e-4)


@pytest.mark.parametrize("name", [*OTHERS, *(pytest.param(name, marks=pytest.mark.slow) for name in COMMON)])
def test_tokens_are_those_of_plain_pytorch(name: str, on_kernels: OnKernels) -> None:
    """Prompts of several lengths in chunks, a shared prefix, and answers under way, in one step."""
    expected = in_pytorch(name)
    with on_kernels as make:
        engine = make(name, max_step_tokens=10)
        assert isinstance(engine.model.layer_loop, GpuLayers) == (name in COMMON)
        same(answers(engine), expected)


@pytest.mark.parametrize(
    "cache_dtype", ["int8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fp8", "int4"))]
)
def test_a_cache_in_codes_is_read_by_the_kernels(cache_dtype: str, on_kernels: OnKernels) -> None:
    """Four bits are not, and fall back."""
    expected = in_pytorch("llama", cache_dtype=cache_dtype)
    with on_kernels as make:
        same(answers(make("llama", cache_dtype=cache_dtype)), expected)


# --- graphs ---------------------------------------------------------------------------------------------------------


class FakeCapture:
    """What a graph does, as far as its caller can see: it runs again on whatever lies at the same addresses, and leaves
    its result in the same place. What was captured can look at nothing else."""

    def __init__(self) -> None:
        self.num_captured = self.num_replayed = 0

    def __call__(self, launch: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        self.num_captured += 1
        logits = launch().clone()

        def replay() -> None:
            self.num_replayed += 1
            logits.copy_(launch())

        return replay, logits


def test_replayed_steps_say_the_same(on_kernels: OnKernels) -> None:
    """Answers end at different times: batches of 3, 2 and 1 in graphs of 4, 2 and 1."""
    prompts = PROMPTS[:3]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (3, 4, 5)]
    with on_kernels as make:
        engine = make("mistral")
        loop = engine.model.layer_loop
        loop.graphs.capture = None
        expected = [answer.token_ids for answer in engine.generate(prompts, params)]
        capture = loop.graphs.capture = FakeCapture()
        assert [answer.token_ids for answer in engine.generate(prompts, params)] == expected
    assert set(loop.graphs._graphs) == {(size, 256) for size in (1, 2, 4)}
    assert capture.num_captured == 3
    assert capture.num_replayed == 4
    engine.scheduler.check_integrity()


def chunk(token_ids: list[int], blocks: list[int]) -> Any:
    """The last token of a sequence, as far as `Inputs` looks."""
    sequence = SimpleNamespace(token_ids=token_ids, table=SimpleNamespace(blocks=blocks))
    return SimpleNamespace(sequence=sequence, start=len(token_ids) - 1)


def test_inputs_stay_where_they_are_and_are_padded_with_the_first() -> None:
    inputs = graphs.Inputs(4, 256, 4, torch.device("cpu"))
    addresses = [inputs.numbers_3B.data_ptr(), inputs.tables_BN.data_ptr()]
    for length in (9, 3):
        inputs.fill([chunk([7] * (length - 1) + [8], [5, 3, 9]), chunk([6], [2]), chunk([4, 5], [11])])
        slots = [[5, 3, 9][(length - 1) // 4] * 4 + (length - 1) % 4, 8, 45]
        expected = [[8, 6, 5, 8], [length - 1, 0, 1, length - 1], [*slots, slots[0]]]
        assert inputs.numbers_3B.tolist() == expected
        used = (length - 1) // 4 + 1
        assert inputs.tables_BN[:, :used].tolist() == [
            row[:used] for row in ([5, 3, 9], [2, 0, 0], [11, 0, 0], [5, 3, 9])
        ]
    assert [inputs.numbers_3B.data_ptr(), inputs.tables_BN.data_ptr()] == addresses


@pytest.mark.slow
def test_a_graph_that_cannot_be_captured_is_done_without(on_kernels: OnKernels) -> None:
    def fail(launch: Callable[[], Tensor]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    expected = in_pytorch("llama")
    with on_kernels as make:
        engine = make("llama")
        engine.model.layer_loop.graphs.capture = fail
        same(answers(engine), expected)
    assert engine.model.layer_loop.graphs.capture is None


@pytest.mark.parametrize(("number", "size"), [(1, 1), (2, 2), (3, 4), (9, 16), (33, 48), (65, 96), (256, 256)])
def test_batches_are_padded_to_the_next_size(number: int, size: int) -> None:
    assert graphs.padded_size(number) == size


@pytest.mark.parametrize(("length", "padded"), [(1, 256), (256, 256), (257, 512), (513, 1024), (1024, 1024)])
def test_lengths_are_padded_to_powers_of_two_runs(length: int, padded: int) -> None:
    assert graphs.padded_length(length) == padded
