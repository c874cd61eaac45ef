"""`wootz quantize` on whole small models: what is folded changes nothing, what is written is loaded, served and read by
transformers, and the methods stand in the order that the field knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from parity import save_random
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from wootz.cli import app
from wootz.core.errors import BadRequestError, ConfigError, ModelFileError
from wootz.engine import Engine, SamplingParams
from wootz.models import Decoder, load
from wootz.models.blocks.experts import Experts
from wootz.models.blocks.moe import MoE
from wootz.models.weight_quantization import gptq, round_to_nearest
from wootz.models.weight_quantization.calibration import Inputs, Walk
from wootz.models.weight_quantization.folding import folds
from wootz.models.weight_quantization.gptq import output_error
from wootz.models.weight_quantization.methods import METHODS, Settings, awq_scale, best_clip, smooth_scale
from wootz.models.weight_quantization.rounding import round_from_minimum
from wootz.models.weight_quantization.whole_model import REPORT, quantize

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def texts(count: int, seed: int = 0) -> list[list[int]]:
    return torch.randint(96, (count, 32), generator=torch.Generator().manual_seed(seed)).tolist()


def qwen3_moe(**changes: int) -> transformers.PretrainedConfig:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16} | changes
    return transformers.Qwen3MoeConfig(**SIZES, num_key_value_heads=2, **sizes)


FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, num_key_value_heads=4),
    "qwen3-moe": qwen3_moe,
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=16, sliding_window=16),
    "cohere2": lambda: transformers.Cohere2Config(**SIZES, num_key_value_heads=2, sliding_window=16),
    "deepseek-v3": lambda: transformers.DeepseekV3Config(
        **SIZES, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        n_shared_experts=1, n_group=2, topk_group=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=32,
        qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, num_experts=4,
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=128),
    "mamba2": lambda: transformers.Mamba2Config(
        vocab_size=96, hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=16, state_size=16, n_groups=1
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_random(folder, FAMILIES["llama"]())
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fold_changes_nothing_before_rounding(family: str, tmp_path: Path) -> None:
    save_random(tmp_path, FAMILIES[family]())
    model = load(tmp_path, dtype="float64")
    ids = texts(1)[0]
    with torch.no_grad():
        before, count = model.logits(ids), 0
        for layer in model.layers:
            for fold in folds(layer):  # pyright: ignore[reportArgumentType]
                module, _ = fold.readers[0]
                generator = torch.Generator().manual_seed(count)
                scale = fold.tie(torch.rand(module.weight.shape[-1], generator=generator).double() * 4 + 0.25)
                fold.apply(scale)
                count += 1
        torch.testing.assert_close(model.logits(ids), before, atol=1e-9, rtol=1e-9)
    assert count >= (2 if family in ("gpt2", "cohere2") else 1) * len(model.layers)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_the_quantised_model(method: str, llama: Path, tmp_path: Path) -> None:
    report = quantize(llama, tmp_path / "q", method, calibration=texts(4), test=texts(2, 1), dtype=torch.float32)
    dense, held = load(tmp_path / "q"), load(tmp_path / "q", keep_quantized="exact")
    with torch.inference_mode():
        exact, found = dense.logits(texts(1)[0]).log_softmax(-1), held.logits(texts(1)[0]).log_softmax(-1)
    rounds_inputs = method in ("smoothquant", "llm-int8", "fp8", "fp8-static")
    torch.testing.assert_close(found, exact, atol=1.0 if rounds_inputs else 1e-5, rtol=0)
    written = json.loads((tmp_path / "q" / REPORT).read_text())
    assert written["method"] == method
    assert written["calibration"] == {"texts": 4, "tokens": 128}
    assert (
        written["errors"].keys()
        == report.errors.keys()
        == {f"layers.{i}.{part}" for i in range(2) for part in ("mixer.qkv", "mixer.output", "ffn.gate_up", "ffn.down")}
    )
    assert 0 < max(report.errors.values()) < (0.1 if report.bits <= 5 else 0.01)
    assert report.perplexity_after == pytest.approx(report.perplexity_before, rel=0.5)
    with pytest.raises(ConfigError, match="quantised already"):
        quantize(tmp_path / "q", tmp_path / "again", "int8")
    quantize(llama, tmp_path / "q", "int8", replace=True)


@pytest.mark.parametrize(
    ("method", "family"),
    [
        *((method, "llama") for method in ("rtn4", "int8", "smoothquant", "fp8", "fp8-static")),
        *((method, "qwen3-moe") for method in ("rtn4", "int8", "fp8")),  # of experts, it reads no int-quantized ones
    ],
)
def test_transformers_reads_what_we_write(method: str, family: str, tmp_path: Path) -> None:
    save_random(tmp_path / "m", FAMILIES[family]())
    quantize(tmp_path / "m", tmp_path / "q", method, calibration=texts(8), dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "q",
        dtype=torch.float32,
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
    )
    ids = torch.tensor(texts(1, 3)[0])
    with torch.inference_mode():
        expected = theirs(ids[None]).logits[0]
        torch.testing.assert_close(load(tmp_path / "q").logits(ids), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("method", ["awq", "gptq", "smoothquant"])
def test_the_engine_serves_it(method: str, llama: Path, tmp_path: Path) -> None:
    quantize(llama, tmp_path / "q", method, calibration=texts(4), dtype=torch.float32)
    from tiny_model import write_tiny_model

    write_tiny_model(tmp_path / "tokenizer")
    (tmp_path / "q" / "tokenizer.json").write_bytes((tmp_path / "tokenizer" / "tokenizer.json").read_bytes())
    engine = Engine(load(tmp_path / "q", keep_quantized="exact"))
    prompts = [text[:9] for text in texts(5)]
    answers = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=6, logprobs=1, ignore_eos=True))
    model = load(tmp_path / "q", keep_quantized="exact")
    for prompt, answer in zip(prompts, answers, strict=True):
        whole = [*prompt, *answer.token_ids]
        with torch.inference_mode():
            logprobs = model.logits(whole).log_softmax(-1)
        for place, token in enumerate(answer.token_ids, len(prompt) - 1):
            assert logprobs[place].max() - logprobs[place, token] < 1e-3


def test_architectures_without_a_fold_are_quantised_too(tmp_path: Path) -> None:
    for family in ("gpt2", "mamba2", "deepseek-v3"):
        save_random(tmp_path / family, FAMILIES[family]())
        report = quantize(tmp_path / family, tmp_path / f"{family}-q", "awq", calibration=texts(6), dtype=torch.float32)
        dense, held = load(tmp_path / f"{family}-q"), load(tmp_path / f"{family}-q", keep_quantized="exact")
        with torch.inference_mode():
            exact = load(tmp_path / family).logits(texts(1)[0])
            found = dense.logits(texts(1)[0])
            torch.testing.assert_close(held.logits(texts(1)[0]), found, atol=1e-4, rtol=1e-4)
        assert (found - exact).square().mean() < 0.3 * exact.var()
        assert max(report.errors.values()) < 0.1


def correlated(count: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)
    return torch.randn(count, columns, generator=generator) @ mixing.T


def inputs_of(rows: Tensor) -> Inputs:
    inputs = Inputs(rows.shape[1], hessian=True)
    inputs.add(rows)
    return inputs


def test_the_order_of_the_methods() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, rows = torch.randn(64, 256, generator=generator) * 0.02, correlated(400, 256)
    rows[:, [7, 90]] *= 8
    errors = {}
    for method in ("int8", "rtn4", "gptq", "awq"):
        inputs = inputs_of(rows)
        scale = torch.ones(256)
        if method == "awq":
            scale, exponent = awq_scale(inputs.mean_abs_I, [(weight, inputs.rows_NI)], 64, lambda s: s)
            inputs.divide(scale)
            assert exponent > 0
        held = METHODS[method].quantize(weight * scale, inputs, Settings(64, dtype=torch.float16))
        errors[method] = output_error(weight, held.dequantize() / scale, rows)
    assert 10 * errors["int8"] < errors["gptq"] < 0.5 * errors["rtn4"]
    assert 10 * errors["int8"] < errors["awq"] < 0.8 * errors["rtn4"]


def test_smoothquant_takes_outliers_of_a_hundred_times() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(64, 128, generator=generator) * 0.02, torch.randn(200, 128, generator=generator)
    x[:, [3, 50]] *= 100
    exact = x @ weight.T
    plain = METHODS["smoothquant"].quantize(weight, None, Settings(64, dtype=torch.float32))
    scale = smooth_scale(x.abs().amax(0), [weight], 0.5)
    smooth = METHODS["smoothquant"].quantize(weight * scale, None, Settings(64, dtype=torch.float32))
    errors = [(y - exact).square().mean() for y in (plain.multiply(x), smooth.multiply(x / scale))]
    assert errors[1] < 0.05 * errors[0]


def test_clipping_never_costs_on_its_own_texts() -> None:
    weight, rows = torch.randn(32, 128, generator=torch.Generator().manual_seed(0)) * 0.02, correlated(128, 128)
    weight[3, 7] = 0.5  # whose input is hardly ever large, so the group's step need not reach it
    rows[:, 7] = 1e-3
    clipped = round_from_minimum(weight, 4, group_size=64, shrink_OG=best_clip(weight, rows, 64))
    whole = round_from_minimum(weight, 4, group_size=64)
    error = [((held.dequantize() - weight)[3, :64] @ rows[:, :64].T).square().mean() for held in (clipped, whole)]
    assert error[0] < 0.5 * error[1]


def test_experts_with_factors_of_their_own_err_less_than_with_shared_ones() -> None:
    """Each expert's hidden channels are large in other places."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(64, 128, generator=generator) * 0.02 for _ in range(4)]
    rows = [torch.randn(200, 128, generator=generator) for _ in range(4)]
    for expert, own in enumerate(rows):
        own[:, 8 * expert : 8 * expert + 4] *= 60
    statistics = [inputs_of(own) for own in rows]

    def error(scales: list[Tensor]) -> float:
        off = [
            output_error(w, round_from_minimum(w * s, 4, group_size=64).dequantize() / s, x)
            for w, s, x in zip(weights, scales, rows, strict=True)
        ]
        return sum(off)

    each = [
        awq_scale(s.mean_abs_I, [(w, s.rows_NI)], 64, lambda s: s)[0] for w, s in zip(weights, statistics, strict=True)
    ]
    mean = torch.stack([s.mean_abs_I for s in statistics]).mean(0)
    shared, _ = awq_scale(mean, [(w, s.rows_NI) for w, s in zip(weights, statistics, strict=True)], 64, lambda s: s)
    assert error(each) < 0.7 * error([shared] * 4) < error([torch.ones(128)] * 4)


def test_an_expert_that_is_hardly_chosen_is_rounded_as_it_is(tmp_path: Path) -> None:
    save_random(tmp_path / "m", qwen3_moe())
    model = load(tmp_path / "m")
    part = model.layers[1].ffn
    assert isinstance(part, MoE)
    assert isinstance(part.experts, Experts)
    part.router.weight_ED.data[2] = 0
    part.router.weight_ED.data[:2] *= 1e-3
    walk = Walk(model, texts(1))
    walk.advance(model.layers[0])  # pyright: ignore[reportArgumentType]
    counts = [
        inputs.count
        for inputs in walk.watch(
            model.layers[1],
            [(part.experts.down, e) for e in range(4)],
            hessian=False,  # pyright: ignore[reportArgumentType]
        ).values()
    ]
    assert sum(counts) == 2 * 32
    report = quantize(tmp_path / "m", tmp_path / "q", "gptq", calibration=[text[:12] for text in texts(2)])
    assert report.rarely_used
    assert all(count < 16 for count in report.rarely_used.values())
    assert not report.rarely_used.keys() & report.errors.keys()
    stored = load_file(tmp_path / "q" / "model.safetensors")
    assert "model.layers.1.mlp.experts.3.down_proj.qweight" in stored


def test_zeros_stay_zero_and_a_singular_hessian_is_damped() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[3] = 0
    rows = torch.zeros(100, 64)
    rows[:, 0] = 1.0  # one direction only
    for method, how in METHODS.items():
        held = how.quantize(weight, inputs_of(rows), Settings(32, dtype=torch.float32))
        assert held.dequantize().isfinite().all(), method
        assert held.dequantize()[3].eq(0).all(), method
        assert held.multiply(rows).isfinite().all(), method
    solved = gptq(weight, rows, 4, group_size=32, damping=0.0)
    assert (
        output_error(weight, solved.weight_OI, rows)
        <= output_error(weight, round_to_nearest(weight, 4, group_size=32).weight_OI, rows) + 1e-9
    )


def test_what_makes_no_sense_is_refused_in_one_line(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match='no method is called "awesome"'):
        quantize(llama, tmp_path / "q", "awesome")
    with pytest.raises(BadRequestError, match="needs texts"):
        quantize(llama, tmp_path / "q", "gptq")
    with pytest.raises(BadRequestError, match="not groups of 64"):
        quantize(llama, tmp_path / "q", "rtn4", group_size=64)  # rows of 96
    with pytest.raises(BadRequestError, match="multiple of 32"):
        quantize(llama, tmp_path / "q", "rtn4", group_size=48)
    result = CliRunner().invoke(app, ["quantize", str(llama), str(tmp_path / "q"), "--method", "q4_k"])
    assert result.exit_code == 2
    assert "q4_k is written to a .gguf file" in result.stderr
    assert not (tmp_path / "q").exists()
    assert not [*tmp_path.iterdir()]


def test_a_damaged_checkpoint_is_named(llama: Path, tmp_path: Path) -> None:
    quantize(llama, tmp_path / "q", "awq", calibration=texts(2))
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    from safetensors.torch import save_file

    name = "model.layers.0.self_attn.q_proj"
    save_file(
        {**tensors, f"{name}.qweight": tensors[f"{name}.qweight"][:, :-1].contiguous()},
        tmp_path / "q/model.safetensors",
    )
    with pytest.raises(ModelFileError, match=f"{name}: .* does not hold rows of 64"):
        load(tmp_path / "q", keep_quantized="exact")
    del tensors[f"{name}.scales"]
    save_file(tensors, tmp_path / "q/model.safetensors")
    with pytest.raises(ModelFileError, match=f"{name}: lacks .scales"):
        load(tmp_path / "q")
    assert config["quantization_config"]["quant_method"] == "awq"


def test_the_command_says_what_it_cost(tiny_model_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "texts.jsonl"
    license = (Path(__file__).parents[2] / "LICENSE").read_text()
    rows = [{"text": license}, {"messages": [{"role": "user", "content": license}]}]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["quantize", str(tiny_model_folder), str(tmp_path / "q"), "--method", "awq", "--calib", str(text)]
    result = CliRunner().invoke(app, [*command, "--seq", "64", "--samples", "16"])
    assert result.exit_code == 0, result.output
    assert "perplexity" in result.stdout
    assert (tmp_path / "q" / "tokenizer.json").exists()
    report = json.loads((tmp_path / "q" / REPORT).read_text())
    assert report["calibration"]["source"] == str(text)
    assert report["perplexity_after"] == pytest.approx(report["perplexity_before"], rel=0.2)
    answer = Engine(tmp_path / "q").generate(["The license"], SamplingParams(max_tokens=4))[0]
    assert len(answer.token_ids) == 4
    gguf = [*command[:2], str(tmp_path / "q.gguf"), "--method", "q8_0", "--calib", str(text), "--seq", "64", "--json"]
    found = json.loads(CliRunner().invoke(app, gguf).stdout)
    assert found["bytes_after"] < 0.5 * found["bytes_before"]
    assert found["perplexity_after"] == pytest.approx(found["perplexity_before"], rel=0.05)
    assert isinstance(load(tmp_path / "q.gguf"), Decoder)
