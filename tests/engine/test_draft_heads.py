"""Heads that are trained on a finished model, written to a folder, and then draft for it."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from wootz.core import ConfigError, EngineConfig, ModelFileError, SpeculationConfig
from wootz.data.batch import Batch
from wootz.engine import Engine, SamplingParams
from wootz.engine.speculation.draft_model import DraftModel
from wootz.engine.speculation.methods import with_heads
from wootz.models import Decoder, read_config
from wootz.models.draft_heads import KINDS, DraftHeads, base_fingerprint, load_heads, save_heads
from wootz.models.multi_token import MultiTokenConfig, multi_token_loss
from wootz.training.draft_heads import batches_of, distill, own_answers, train_heads
from wootz.training.fit import FitConfig, fit

VOCAB = 11
PROMPTS = [[start, (start + stride) % VOCAB] for start in range(4) for stride in (1, 2, 3)]
PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
ALWAYS = EngineConfig(cache_bytes=2**21, block_size=4, speculation=SpeculationConfig(row_cost=0))


def strides(seed: int = 0):
    """Rows that step by one of three strides: two tokens tell all that follow."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(VOCAB, (16, 1), generator=generator)
        steps = torch.randint(1, 4, (16, 1), generator=generator)
        yield Batch.of((starts + steps * torch.arange(15)) % VOCAB)


def new_model(layers: int = 1, size: int = 32) -> Decoder:
    torch.manual_seed(0)
    raw = {"model_type": "wootz", "vocab_size": VOCAB, "hidden_size": size, "num_hidden_layers": layers}
    return read_config(raw | {"num_attention_heads": 2, "initializer_range": 0.2}).build()


@pytest.fixture(scope="module")
def base() -> Decoder:
    model = new_model()
    fit(model, strides(), FitConfig(steps=100, learning_rate=1e-2))
    return model.requires_grad_(False)


def drafted(base: Decoder, speculator) -> tuple[list[list[int]], float]:
    """Answers, and how many tokens of a draft were right on average."""
    speculator.cost = 0
    engine = Engine(copy.deepcopy(base), config=ALWAYS, speculator=speculator)
    answers = [answer.token_ids for answer in engine.generate(PROMPTS, PARAMS)]
    return answers, engine.stats().draft_tokens_accepted / engine.stats().drafts


@pytest.fixture(scope="module")
def plain(base) -> list[list[int]]:
    config = ALWAYS.model_copy(update={"speculation": None})
    return [answer.token_ids for answer in Engine(copy.deepcopy(base), config=config).generate(PROMPTS, PARAMS)]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "eagle" else pytest.mark.slow) for kind in KINDS]
)
def test_trained_heads_guess_more_than_one_token_ahead(kind, base, plain, tmp_path):
    torch.manual_seed(1)
    heads, weights = DraftHeads(kind, 3, base), copy.deepcopy(base.state_dict())
    untrained = drafted(base, with_heads(copy.deepcopy(heads), base))
    train_heads(heads, base, strides(1), FitConfig(steps=60, learning_rate=1e-2))
    assert all(torch.equal(weights[name], tensor) for name, tensor in base.state_dict().items()), "the base has changed"
    save_heads(heads, tmp_path / "heads", base)
    answers, accepted = drafted(base, with_heads(load_heads(tmp_path / "heads", base), base))
    assert answers == untrained[0] == plain
    assert accepted > max(1.0, untrained[1])


def test_multi_token_heads_draft_for_their_trunk(base):
    """Trained together with the trunk, as for pretraining, and used as they are."""
    model = MultiTokenConfig(depth=2).build(new_model())

    def loss(model, batch: Batch):
        return multi_token_loss(model, torch.cat((batch.tokens_BT, batch.labels_BT[:, -1:]), 1), 0.5)

    fit(model, strides(), FitConfig(steps=100, learning_rate=1e-2), loss_of=loss)
    model.requires_grad_(False)
    _, accepted = drafted(model.trunk, with_heads(DraftHeads.of(model), model.trunk))
    assert accepted > 1


def test_heads_are_named_by_config_and_belong_to_one_model(base, tmp_path):
    save_heads(DraftHeads("medusa", 2, base), tmp_path / "heads", base)
    fingerprint = json.loads((tmp_path / "heads/config.json").read_text())["base_fingerprint"]
    assert fingerprint == base_fingerprint(copy.deepcopy(base).bfloat16()), "whatever dtype it is loaded in"
    assert fingerprint == base_fingerprint(copy.deepcopy(base).prepare_for_inference())
    config = SpeculationConfig(method="heads", path=tmp_path / "heads")
    engine = Engine(copy.deepcopy(base), config=ALWAYS.model_copy(update={"speculation": config}))
    assert len(engine.generate([[1, 2]], PARAMS)[0].token_ids) == 12
    with pytest.raises(ConfigError, match="another model"):
        load_heads(tmp_path / "heads", new_model())
    (tmp_path / "heads/model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelFileError, match="damaged"):
        load_heads(tmp_path / "heads", base)
    with pytest.raises(ModelFileError, match="no folder of draft heads"):
        load_heads(tmp_path, base)


def test_distillation_raises_acceptance(base, plain):
    """A draft of a quarter of the width, taught by what the target writes."""
    draft, engine = new_model(size=16), Engine(copy.deepcopy(base), config=ALWAYS)
    before = drafted(base, DraftModel(copy.deepcopy(draft), base))
    text = torch.cat([next(strides(2)).tokens_BT.flatten() for _ in range(2)])
    rows = own_answers(engine, text, num_rows=48, prompt_length=2, answer_length=12)
    assert rows.shape == (48, 14)
    distill(draft, base, batches_of(rows, 16), FitConfig(steps=80, learning_rate=1e-2))
    after = drafted(base, DraftModel(draft.requires_grad_(False), base))
    assert before[0] == after[0] == plain
    assert after[1] > before[1] + 0.5
