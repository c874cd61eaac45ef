"""Model files into model files: read back by us, by transformers, and by llama.cpp, which also has to agree."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from reference_models import FAMILIES, LLAMA3_ROPE, SIZES, TOKENS, reference_logits, save_reference
from safetensors.torch import load_file
from test_gguf_models import llama3_rope_factors

from wootz.core import ConfigError, ModelFileError
from wootz.core.gguf import GGUFFile
from wootz.models import load
from wootz.models.converting import convert
from wootz.models.dequantize import dequantize
from wootz.models.gguf_export import type_for
from wootz.models.gguf_metadata import FILE_TYPES
from wootz.models.quantize_blocks import quantize
from wootz.tokenization import load_tokenizer
from wootz.tokenization.export import gguf_vocabulary, tokenizer_files

FAMILIES.setdefault(
    "gemma3-text",
    (
        transformers.Gemma3TextConfig,
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 40, "num_hidden_layers": 7},
    ),
)
GGUF_FAMILIES = ["llama2", "llama2-biases", "llama2-linear-rope", "llama3", "mistral-windowed", "qwen2", "qwen3"]


@torch.inference_mode()
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", [*GGUF_FAMILIES, "gemma3-text"])
def test_to_gguf_and_back_the_logits_stay(tmp_path: Path, family: str, tied: bool) -> None:
    reference = save_reference(tmp_path / "theirs", family, tied=tied)
    expected = reference_logits(reference)
    convert(tmp_path / "theirs", tmp_path / "model.gguf")
    torch.testing.assert_close(load(tmp_path / "model.gguf").logits(TOKENS), expected, atol=2e-4, rtol=0)
    convert(tmp_path / "model.gguf", tmp_path / "back")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert type(again) is type(reference)
    torch.testing.assert_close(reference_logits(again), expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(load(tmp_path / "back").logits(TOKENS), expected, atol=2e-4, rtol=0)
    assert load(tmp_path / "back").config.eos_token_ids == (2,)
    originals, back = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "back"))
    assert originals.keys() == back.keys()
    for name, tensor in originals.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=1e-6 if "norm" in name else 0)


def test_llama3_rope_is_written_as_llama_cpp_writes_it(tmp_path: Path) -> None:
    save_reference(tmp_path / "theirs", "llama3")
    convert(tmp_path / "theirs", tmp_path / "model.gguf")
    factors = torch.frombuffer(GGUFFile(tmp_path / "model.gguf").bytes_of("rope_freqs.weight"), dtype=torch.float32)
    torch.testing.assert_close(factors, torch.from_numpy(llama3_rope_factors(LLAMA3_ROPE, 16)))


def test_each_matrix_is_quantised_and_each_vector_is_not(tmp_path: Path) -> None:
    reference = save_reference(tmp_path / "theirs", "qwen2")
    convert(tmp_path / "theirs", tmp_path / "model.gguf", type="q8_0")
    file = GGUFFile(tmp_path / "model.gguf")
    assert file.metadata["general.file_type"] == FILE_TYPES["Q8_0"]
    for name, tensor in file.tensors.items():
        assert tensor.type == ("Q8_0" if len(tensor.shape) == 2 else "F32"), name
    down = torch.frombuffer(file.bytes_of("blk.1.ffn_down.weight"), dtype=torch.uint8)
    expected = quantize(reference.state_dict()["model.layers.1.mlp.down_proj.weight"], "Q8_0")
    assert torch.equal(down, expected.flatten())


def test_the_type_of_a_tensor_follows_llama_cpps_rules() -> None:
    assert type_for("blk.0.attn_q.weight", (64, 512), "Q4_K") == "Q4_K"
    assert type_for("blk.0.attn_q.weight", (64, 576), "Q4_K") == "Q5_0"
    assert type_for("blk.0.attn_q.weight", (64, 576), "Q6_K") == "Q8_0"
    assert type_for("blk.0.attn_q.weight", (64, 40), "Q4_K") == "F16"
    assert type_for("blk.0.attn_norm.weight", (512,), "Q4_K") == "F32"
    assert type_for("output.weight", (1000, 512), "Q4_K") == "Q6_K"
    assert type_for("token_embd.weight", (1000, 512), "Q4_K") == "Q4_K"
    assert type_for("token_embd.weight", (1000, 512), "Q4_0", tied=True) == "Q6_K"
    assert type_for("token_embd.weight", (1000, 576), "Q4_0", tied=True) == "Q8_0"


def test_the_output_matrix_may_have_a_type_of_its_own(tmp_path: Path) -> None:
    """llama.cpp's name for it is ``--output-tensor-type``."""
    save_reference(tmp_path / "theirs", "qwen2")
    convert(tmp_path / "theirs", tmp_path / "model.gguf", type="q8_0", output_type="q4_1")
    tensors = GGUFFile(tmp_path / "model.gguf").tensors
    output = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    assert tensors[output].type == "Q4_1"
    assert tensors["blk.0.attn_q.weight"].type == "Q8_0"
    with pytest.raises(ConfigError):
        convert(tmp_path / "theirs", tmp_path / "other.gguf", type="q8_0", output_type="q3_x")


def test_a_folder_keeps_its_type_and_can_be_given_another(tmp_path: Path, tiny_model_folder: Path) -> None:
    convert(tiny_model_folder, tmp_path / "half", type="bf16", max_shard_bytes=100_000)
    convert(tmp_path / "half", tmp_path / "same")
    assert len(list((tmp_path / "half").glob("model-*.safetensors"))) > 1
    same = load_file(tmp_path / "same" / "model.safetensors")
    assert {tensor.dtype for tensor in same.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "same" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    originals = load_file(tiny_model_folder / "model.safetensors")
    assert all(torch.equal(same[name], tensor.bfloat16()) for name, tensor in originals.items())
    assert (tmp_path / "same" / "tokenizer.json").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_becomes_a_folder(tmp_path: Path, tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder)
    dcp.save({"model": model.state_dict(), "step": 3}, checkpoint_id=tmp_path / "run", no_dist=True)
    convert(tmp_path / "run", tmp_path / "model", config=tiny_model_folder)
    with torch.inference_mode():
        torch.testing.assert_close(load(tmp_path / "model").logits([1, 2, 3]), model.logits([1, 2, 3]))
    assert load_tokenizer(tmp_path / "model").encode("wootz") == load_tokenizer(tiny_model_folder).encode("wootz")


TEXTS = [
    "Permission is hereby granted",
    "  two  spaces, 3.14159\n\n\tÄpfel 苹果 👩‍💻",
    "<|im_start|>user\nhi<|im_end|>",
]


def test_the_tokenizer_survives_the_way_to_gguf_and_back(tmp_path: Path, tiny_model_folder: Path) -> None:
    there, back = tmp_path / "model.gguf", tmp_path / "back"
    convert(tiny_model_folder, there, vocabulary=gguf_vocabulary(tiny_model_folder))
    convert(there, back, files=tokenizer_files(there))
    originals = load_tokenizer(tiny_model_folder)
    theirs = transformers.AutoTokenizer.from_pretrained(back)
    for tokenizer in (load_tokenizer(there), load_tokenizer(back)):
        assert tokenizer.eos_token_ids >= originals.eos_token_ids
        assert tokenizer.bos_token_id == originals.bos_token_id
        assert tokenizer.chat_template is not None
        for text in TEXTS:
            assert tokenizer.encode(text) == originals.encode(text)
            assert theirs(text).input_ids == originals.encode(text)
    assert theirs.chat_template == originals.chat_template.source


def test_gguf_to_gguf_keeps_the_tokenizer_and_the_licence(tmp_path: Path, tiny_model_folder: Path) -> None:
    vocabulary = gguf_vocabulary(tiny_model_folder) | {"general.license": "mit", "general.name": "Tiny"}
    convert(tiny_model_folder, tmp_path / "a.gguf", vocabulary=vocabulary)
    convert(tmp_path / "a.gguf", tmp_path / "b.gguf", type="q8_0")
    before, after = GGUFFile(tmp_path / "a.gguf").metadata, GGUFFile(tmp_path / "b.gguf").metadata
    assert after == before | {"general.file_type": FILE_TYPES["Q8_0"]}


def test_what_cannot_be_converted_is_one_line(tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(ConfigError, match='"q3" is not a type of weights in a GGUF file; use one of F32'):
        convert(tiny_model_folder, tmp_path / "a.gguf", type="q3")
    with pytest.raises(ConfigError, match='"q8_0" is not a type of weights in a folder'):
        convert(tiny_model_folder, tmp_path / "a", type="q8_0")
    with pytest.raises(ModelFileError, match="neither a model folder"):
        convert(tiny_model_folder / "config.json", tmp_path / "a")
    (tmp_path / "there.gguf").write_text("x")
    with pytest.raises(ConfigError, match="exists already"):
        convert(tiny_model_folder, tmp_path / "there.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["there.gguf"]


def test_a_tokenizer_that_gguf_has_no_name_for_is_refused(tmp_path: Path, tiny_model_folder: Path) -> None:
    raw = json.loads((tiny_model_folder / "tokenizer.json").read_text())
    for change, says in (
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"no name for \(Whitespace\)"),
        ({"normalizer": {"type": "Lowercase"}}, "no name for"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw | change))
        with pytest.raises(ModelFileError, match=says):
            gguf_vocabulary(tmp_path)


@contextmanager
def llama_cpp(model: Path) -> Iterator[Callable[[list[int], int], list[dict]]]:
    """Its greedy tokens after a prompt, each with the log-probabilities of the five best."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity = str(model), -1
    params.n_ctx, params.n_gpu_layers, params.warmup, params.cpuparams.n_threads = 512, 0, False, 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        params.port = free.getsockname()[1]
    server = xllamacpp.Server(params)

    def ask(prompt: list[int], num_tokens: int) -> list[dict]:
        request = {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0.0, "logprobs": 5, "ignore_eos": True}
        logprobs = server.handle_completions(request)["choices"][0]["logprobs"]
        return logprobs["content"] if logprobs else []

    yield ask


def assert_as_probable(step: dict, logits_V: torch.Tensor, tolerance: float) -> None:
    """The five tokens that llama.cpp finds best are, to us, as probable; its choice is ours, but for near ties."""
    ours_V = logits_V.log_softmax(-1)
    theirs = {token["id"]: token["logprob"] for token in step["top_logprobs"]}
    torch.testing.assert_close(ours_V[list(theirs)], torch.tensor(list(theirs.values())), atol=tolerance, rtol=0)
    assert ours_V.max() - ours_V[step["id"]] < 2 * tolerance


@pytest.mark.parametrize(
    ("family", "type", "tolerance"),
    [
        ("llama2", "F32", 0.03),
        ("llama2", "Q8_0", 0.15),
        ("llama2", "Q4_K", 0.4),
        ("llama3", "BF16", 0.15),
        ("mistral", "Q6_K", 0.4),
        ("qwen2", "F16", 0.1),
        ("qwen3", "Q5_0", 0.4),
    ],
)
def test_llama_cpp_computes_what_we_do(
    tmp_path: Path, tiny_model_folder: Path, family: str, type: str, tolerance: float
) -> None:
    """It also rounds activations to eight bits where weights are quantised: hence the tolerance."""
    vocabulary = gguf_vocabulary(tiny_model_folder)
    config_class, settings = FAMILIES[family]
    torch.manual_seed(0)
    wide = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": len(vocabulary["tokenizer.ggml.tokens"])}
    head = {"head_dim": 64} if family != "qwen2" else {}
    config = config_class(**(SIZES | settings | wide | head))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.get_output_embeddings().weight.data.mul_(10)  # so that it has preferences
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "model.gguf", type=type, vocabulary=vocabulary)
    prompt = load_tokenizer(tiny_model_folder).encode("Permission is hereby granted, free of charge")
    with torch.inference_mode(), llama_cpp(tmp_path / "model.gguf") as ask:
        logits_TV = load(tmp_path / "model.gguf").logits(prompt)
        answers = [(n, step) for n in range(2, len(prompt) + 1) for step in ask(prompt[:n], 1)]
        assert len(answers) > 5  # a token that is no whole character is kept to itself
        for n, step in answers:
            assert_as_probable(step, logits_TV[n - 1], tolerance)


QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "folder"
    convert(smollm2_gguf, folder, type="bf16", files=tokenizer_files(smollm2_gguf))
    return folder


@pytest.mark.real
@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("type", ["Q4_K", "Q8_0"])
def test_the_real_model_through_a_folder_and_back(tmp_path: Path, smollm2_folder: Path, type: str) -> None:
    """Q4_1 to a folder to GGUF: llama.cpp still knows the answer, token by token as surely as we do."""
    file = tmp_path / "smol.gguf"
    convert(smollm2_folder, file, type=type, vocabulary=gguf_vocabulary(smollm2_folder))
    prompt = load_tokenizer(file).encode(QUESTION)
    with llama_cpp(file) as ask:
        answer = ask(prompt, 7)
    assert "".join(token["token"] for token in answer) == "The capital of France is Paris."
    tokens = [token["id"] for token in answer]
    logits_TV = load(file).logits(prompt + tokens)[len(prompt) - 1 :]
    assert logits_TV[:-1].argmax(-1).tolist() == tokens
    chosen = logits_TV[:-1].log_softmax(-1)[range(7), tokens]
    torch.testing.assert_close(chosen, torch.tensor([token["logprob"] for token in answer]), atol=0.2, rtol=0)


@pytest.mark.real
@pytest.mark.slow
@torch.inference_mode()
def test_the_real_tokenizer_and_weights_in_transformers(smollm2_folder: Path, smollm2_gguf: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_folder)
    ids = tokenizer(QUESTION).input_ids
    assert ids == load_tokenizer(smollm2_gguf).encode(QUESTION)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    answer = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_quantising_and_reading_back_is_what_dequantize_says(tmp_path: Path) -> None:
    reference = save_reference(tmp_path / "theirs", "llama2")
    convert(tmp_path / "theirs", tmp_path / "model.gguf", type="q5_1")
    weight = reference.state_dict()["model.layers.0.mlp.gate_proj.weight"]
    expected = dequantize(quantize(weight, "Q5_1").flatten(), "Q5_1").view_as(weight)
    gate = load(tmp_path / "model.gguf").layers[0].ffn.gate_up.weight[: len(weight)]
    assert torch.equal(gate, expected)
