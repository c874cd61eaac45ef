"""Encoders equal transformers and sentence-transformers, whatever they are batched with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from minilm import minilm_folder
from safetensors.torch import load_file

from wootz.core.errors import BadRequestError, ConfigError, UnsupportedError
from wootz.models import load, read_config
from wootz.models.encoder import Encoder
from wootz.models.loading import load_encoder
from wootz.models.pooling import read_pooling, shorten
from wootz.models.saving import save

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
BASES = {
    "bert": (transformers.BertConfig, {}),
    "bert-gelu-new": (transformers.BertConfig, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "num_labels": 1}),
    "roberta": (transformers.RobertaConfig, {"pad_token_id": 1, "type_vocab_size": 1}),
    "deberta-v3": (
        transformers.DebertaV2Config,
        {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pooler_hidden_size": 48,
        },
    ),
    "deberta-v2": (
        transformers.DebertaV2Config,
        {
            "relative_attention": True,
            "pos_att_type": "c2p|p2c",
            "max_relative_positions": 12,
            "type_vocab_size": 2,
            "pooler_hidden_size": 48,
        },
    ),
    "deberta-one-term": (
        transformers.DebertaV2Config,
        {"relative_attention": True, "pos_att_type": "p2c", "type_vocab_size": 1, "pooler_hidden_size": 48},
    ),
    "xlm-roberta": (transformers.XLMRobertaConfig, {"pad_token_id": 1, "type_vocab_size": 1, "num_labels": 5}),
}


def random_texts(seed: int = 0, vocab_size: int = 97) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(5, vocab_size, (length,), generator=generator).tolist() for length in (7, 1, 30, 12, 30, 2, 19)
    ]


def saved(folder: Path, case: str, auto_class: type) -> tuple[Encoder, transformers.PreTrainedModel]:
    """A model with random weights, norms and biases moved from one and zero: ours and theirs."""
    config_class, settings = BASES[case]
    torch.manual_seed(0)
    model = auto_class.from_config(config_class(**(SIZES | settings)), attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder)
    return load_encoder(folder), model


def hidden_of(model: transformers.PreTrainedModel, text: list[int]) -> torch.Tensor:
    return model(torch.tensor([text])).last_hidden_state[0]


@pytest.mark.parametrize("case", BASES)
def test_packed_texts_have_the_hidden_states_of_transformers(tmp_path: Path, case: str) -> None:
    ours, theirs = saved(tmp_path, case, transformers.AutoModel)
    texts = random_texts()
    with torch.no_grad():
        expected = torch.cat([hidden_of(theirs, text) for text in texts])
        torch.testing.assert_close(ours.hidden(texts), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            ours.embed(texts, max_batch_tokens=40), torch.stack([hidden_of(theirs, text).mean(0) for text in texts])
        )


@pytest.mark.parametrize("case", BASES)
def test_cross_encoder_scores_equal_transformers(tmp_path: Path, case: str) -> None:
    ours, theirs = saved(tmp_path, case, transformers.AutoModelForSequenceClassification)
    texts = random_texts()
    types = [[0] * (len(text) // 2) + [1] * (len(text) - len(text) // 2) for text in texts]
    if theirs.config.type_vocab_size < 2:
        types = [[0] * len(text) for text in texts]
    with torch.no_grad():
        expected = [
            theirs(torch.tensor([text]), token_type_ids=torch.tensor([kind])).logits[0]
            for text, kind in zip(texts, types, strict=True)
        ]
    assert ours.config.num_labels == theirs.config.num_labels
    torch.testing.assert_close(ours.score(texts, types), torch.stack(expected), atol=1e-5, rtol=1e-5)
    if case == "bert":
        assert not torch.allclose(ours.score(texts), ours.score(texts, types), atol=1e-3)


@pytest.mark.parametrize("case", ["bert", "roberta", "deberta-v2", "deberta-v3"])
def test_gradients_equal_transformers_and_are_written_under_its_names(tmp_path: Path, case: str) -> None:
    ours, theirs = saved(tmp_path / "model", case, transformers.AutoModelForSequenceClassification)
    text = random_texts()[2]
    ours.scored([text]).square().sum().backward()
    theirs(torch.tensor([text])).logits.square().sum().backward()
    for model in (ours, theirs):
        for parameter in model.parameters():
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    save(ours, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    prefix = theirs.base_model_prefix + "."
    written = load_file(next((tmp_path / "ours").glob("*.safetensors")))
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    assert written.keys() == {name.removeprefix(prefix) for name in expected}
    for name, tensor in expected.items():
        mine = written[name.removeprefix(prefix)]
        # (A bias on keys has no gradient: it moves all of a query's scores alike.)
        assert (mine - tensor).norm() <= 1e-3 * tensor.norm().clamp_min(1e-3), name


@pytest.mark.parametrize("case", ["bert", "roberta", "deberta-v3"])
def test_transformers_reads_what_we_write(tmp_path: Path, case: str) -> None:
    ours, theirs = saved(tmp_path / "model", case, transformers.AutoModelForSequenceClassification)
    save(ours, tmp_path / "ours")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)


def test_an_embedding_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    ours, _ = saved(tmp_path, "bert", transformers.AutoModel)
    texts = random_texts()
    alone = torch.cat([ours.embed([text]) for text in texts])
    for tokens in (1, 33, 10_000):
        torch.testing.assert_close(ours.embed(texts, max_batch_tokens=tokens), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("spelled", ["new", "old"])
def test_pooling_is_what_sentence_transformers_wrote(tmp_path: Path, mode: str, spelled: str) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Normalize, Pooling, Transformer

    saved(tmp_path / "model", "bert", transformers.AutoModel)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(92))]
    words = {word: number for number, word in enumerate(vocabulary)}
    transformers.BertTokenizerFast(vocab=words).save_pretrained(tmp_path / "model")
    model = sentence_transformers.SentenceTransformer(
        modules=[Transformer(str(tmp_path / "model"), max_seq_length=20), Pooling(48, pooling_mode=mode), Normalize()]
    )
    model.save_pretrained(str(tmp_path / "st"))
    if spelled == "old":
        file = tmp_path / "st" / "1_Pooling" / "config.json"
        names = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "lasttoken": "lasttoken"}
        file.write_text(json.dumps({f"pooling_mode_{name}": key == mode for key, name in names.items()}))
    ours = load(tmp_path / "st")
    sentences = ["w1 w2 w3", "w9", "w5 " * 15]
    texts = [model.tokenizer(sentence)["input_ids"] for sentence in sentences]
    torch.testing.assert_close(ours.embed(texts), model.encode(sentences, convert_to_tensor=True).cpu())
    assert ours.config.pooling.normalize


def test_texts_that_are_too_long_are_refused_or_cut_before_their_last_token(tmp_path: Path) -> None:
    ours, _ = saved(tmp_path, "roberta", transformers.AutoModel)
    assert ours.config.max_length == 38
    text = list(range(5, 55))
    with pytest.raises(BadRequestError, match="text 1 has 50 tokens, and this model reads at most 38"):
        ours.embed([[5], text])
    torch.testing.assert_close(ours.embed([text], truncate=True), ours.embed([[*text[:37], 54]]))


@pytest.mark.parametrize(
    ("texts", "message"), [([[]], "no tokens"), ([[97]], "holds token 97"), ([[-1, 3]], "holds token")]
)
def test_what_cannot_be_embedded_is_refused(tmp_path: Path, texts: list[list[int]], message: str) -> None:
    ours, _ = saved(tmp_path, "bert", transformers.AutoModel)
    with pytest.raises(BadRequestError, match=message):
        ours.embed(texts)


def test_an_encoder_refuses_to_write_and_a_model_without_a_head_to_score(tmp_path: Path) -> None:
    ours, _ = saved(tmp_path, "bert", transformers.AutoModel)
    with pytest.raises(UnsupportedError, match="is an encoder"):
        ours.logits([1, 2])
    with pytest.raises(UnsupportedError, match="is an encoder"):
        _ = ours.cache_specs
    with pytest.raises(UnsupportedError, match="no head that scores"):
        ours.score([[1, 2]])


def test_an_engine_refuses_an_encoder_with_one_clear_error(tmp_path: Path) -> None:
    from wootz.core import EngineConfig
    from wootz.engine.setup import size_cache

    ours, _ = saved(tmp_path, "bert", transformers.AutoModel)
    with pytest.raises(UnsupportedError, match="cannot write any"):
        size_cache(ours, ours.cache_specs, EngineConfig())


def test_what_needs_an_encoder_refuses_a_decoder(tmp_path: Path) -> None:
    sizes = {"num_key_value_heads": 4, "rms_norm_eps": 1e-6, **SIZES}
    save(read_config({"model_type": "llama", **sizes}).build(), tmp_path / "llama")
    with pytest.raises(ConfigError, match='"llama" is not an encoder'):
        load_encoder(tmp_path / "llama")


def test_a_pipeline_that_does_more_than_pool_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "bert", transformers.AutoModel)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": "2"}]))
    with pytest.raises(ConfigError, match='"Dense" after the model is not supported'):
        load(tmp_path)


def test_norms_named_as_in_the_first_checkpoints_are_found(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    ours, _ = saved(tmp_path, "bert", transformers.AutoModel)
    file = tmp_path / "model.safetensors"
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(old, file)
    texts = random_texts()
    torch.testing.assert_close(load(tmp_path).embed(texts), ours.embed(texts))


def test_shortened_embeddings_have_length_one() -> None:
    embeddings = torch.randn(3, 8)
    torch.testing.assert_close(shorten(embeddings, 5).norm(dim=-1), torch.ones(3))
    with pytest.raises(ValueError, match="between 1 and 8"):
        shorten(embeddings, 9)


@pytest.mark.real
def test_minilm_similarities_equal_sentence_transformers() -> None:
    minilm = minilm_folder()
    sentence_transformers = pytest.importorskip("sentence_transformers")
    sentences = [
        "A man is eating food.",
        "Someone has a meal.",
        "Steel was refined over and over in one crucible.",
        "Wie heißt die Hauptstadt von Frankreich?",
        "The quick brown fox jumps over the lazy dog. " * 40,
        "x",
    ]
    theirs = sentence_transformers.SentenceTransformer(str(minilm), device="cpu")
    expected = theirs.encode(sentences, convert_to_tensor=True)
    ours = load(minilm)
    assert read_pooling(minilm) == {"max_length": 256, "mode": "mean", "normalize": True}
    texts = [theirs.tokenizer(sentence, truncation=False)["input_ids"] for sentence in sentences]
    embeddings = ours.embed(texts, truncate=True)
    torch.testing.assert_close(embeddings @ embeddings.T, expected @ expected.T, atol=1e-4, rtol=0)
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0)
    assert embeddings[0] @ embeddings[1] > 0.5 > embeddings[0] @ embeddings[2]
