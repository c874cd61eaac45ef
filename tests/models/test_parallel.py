"""Models on two processes (gloo): their logits are those of one, and they say to each other what the plan says."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from wootz.core import ConfigError
from wootz.models import Decoder, PackedContext, load, read_config
from wootz.models.model_folder import FolderCheckpoint
from wootz.models.parallel import Place, TensorGroup, bubble, connect, cut, load_shard, run_stage, stage_layers
from wootz.models.parallel.sequence import HeadsContext, RingContext, own_places
from wootz.models.saving import save

LLAMA = {
    "model_type": "llama",
    "vocab_size": 51,  # so that the ranks' shares differ
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "one kv head for both": LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "phi3": LLAMA | {"model_type": "phi3", "attention_bias": False, "pad_token_id": 0},
    "gemma2": LLAMA | {"model_type": "gemma2", "attention_bias": False, "sliding_window": 8},
    "gpt2": {"model_type": "gpt2", "vocab_size": 51, "n_embd": 24, "n_head": 4, "n_layer": 2, "n_positions": 64},
    "bloom": {"model_type": "bloom", "vocab_size": 51, "hidden_size": 24, "n_head": 4, "n_layer": 2,
              "layer_norm_epsilon": 1e-5},
    "qwen2_moe": LLAMA | EXPERTS | {"model_type": "qwen2_moe", "num_experts": 4, "shared_expert_intermediate_size": 20},
    "gpt_oss": LLAMA | EXPERTS | {"model_type": "gpt_oss", "num_local_experts": 4, "sliding_window": 8,
                                  "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "deepseek": LLAMA | EXPERTS | {
        "model_type": "deepseek_v3", "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8,
        "n_group": 1, "topk_group": 1, "attention_bias": False,
    },
}  # fmt: skip
WITH_WHOLE_EXPERTS = ("qwen2_moe", "gpt_oss", "deepseek")
SPREAD = {"llama": True, "one kv head for both": False, "gemma2": True, "gpt_oss": True, "bloom": False,
          "deepseek": True}  # fmt: skip
"""Whose text is spread over the ranks; and whether its heads can be exchanged."""
TOKENS = (torch.arange(61) * 7 + 3).remainder(51)


def logits(model: Decoder) -> Tensor:
    positions = torch.arange(len(TOKENS))
    return model.unembed(model(TOKENS, positions, PackedContext([len(TOKENS)])))


@torch.inference_mode()
def one_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    exact = {"dtype": torch.float64, "device": torch.device("cpu")}

    for name in MODELS:
        for whole_experts in (False, True)[: 1 + (name in WITH_WHOLE_EXPERTS)]:
            numbers_read = count_numbers_read()
            model = load_shard(folder / name, Place(rank, tensor=2, split_experts=whole_experts), **exact)
            held = sum({id(x): x.numel() for x in model.state_dict(keep_vars=True).values()}.values())
            group = TensorGroup()
            connect(model, group)
            key = f"{name}, whole experts" if whole_experts else name
            found[key] = logits(model)
            facts[key] = {"sums": group.num_sums, "gathers": group.num_gathers, "layers": len(model.layers),
                          "held": held, "read": numbers_read[0], "whole": model.num_parameters}  # fmt: skip

    # A pipeline of two stages, by hand: the second's hidden states come back to the first, which has the head.
    stage = load_shard(folder / "llama", Place(rank, pipeline=2), **exact)
    positions, context = torch.arange(len(TOKENS)), PackedContext([len(TOKENS)])
    if rank == 0:
        dist.send(run_stage(stage, stage.embed(TOKENS, positions), positions, context), 1)
        hidden = torch.empty(len(TOKENS), 24, dtype=torch.float64)
        dist.recv(hidden, 1)
        assert stage.norm is not None
        found["pipeline"] = stage.unembed(stage.norm(hidden))
    else:
        hidden = torch.empty(len(TOKENS), 24, dtype=torch.float64)
        dist.recv(hidden, 0)
        dist.send(run_stage(stage, hidden, positions, context), 0)
        assert not stage.embedding.weight.numel()

    for name, heads_divide in SPREAD.items():
        model = load(folder / name, dtype="float64")
        for kind in (RingContext, HeadsContext)[: 1 + heads_divide]:
            own = own_places(len(TOKENS), rank, 2)
            context = kind(own)
            found[f"{name}, {kind.__name__}"] = context.gather(model.unembed(model(TOKENS[own], own, context)))
            facts[f"{name}, {kind.__name__}"] = context.exchange.bytes_sent
    torch.save(found, folder / f"{rank}.pt")
    (folder / f"{rank}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()


def count_numbers_read() -> list[int]:
    """Counts from now on what is read of folders, as a list of one number."""
    count = [0]
    whole, part = FolderCheckpoint.tensor, FolderCheckpoint.part
    whole = getattr(whole, "counted", whole)
    part = getattr(part, "counted", part)

    def tensor_(self: FolderCheckpoint, name: str) -> Tensor:
        tensor = whole(self, name)
        count[0] += tensor.numel()
        return tensor

    def part_(self: FolderCheckpoint, name: str, cut: Any) -> Tensor:
        tensor = part(self, name, cut)
        count[0] += tensor.numel()
        return tensor

    tensor_.counted, part_.counted = whole, part  # pyright: ignore
    FolderCheckpoint.tensor, FolderCheckpoint.part = tensor_, part_
    return count


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, and what two processes made of them."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, raw in MODELS.items():
        torch.manual_seed(0)
        model = read_config(raw).build()
        assert isinstance(model, Decoder)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        save(model, folder / name)
    mp.spawn(one_rank, (folder,), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
    return [(torch.load(folder / f"{rank}.pt"), json.loads((folder / f"{rank}.json").read_text())) for rank in (0, 1)]


def test_two_ranks_give_the_logits_of_one(folder: Path, ranks) -> None:
    found = ranks[0][0]
    assert len(found) == len(MODELS) + len(WITH_WHOLE_EXPERTS) + 1 + len(SPREAD) + sum(SPREAD.values())
    for name, theirs in found.items():
        whole = load(folder / ("llama" if name == "pipeline" else name.partition(", ")[0]), dtype="float64")
        torch.testing.assert_close(theirs, logits(whole).detach(), msg=lambda text, name=name: f"{name}: {text}")


def test_ranks_speak_twice_a_layer(ranks) -> None:
    """And once for the embedding, once for the logits."""
    for _, facts in ranks:
        for name in MODELS:
            assert (facts[name]["sums"], facts[name]["gathers"]) == (2 * facts[name]["layers"] + 1, 1), name
        # With whole experts, a layer that has any has one sum and one gather, around two all-to-alls.
        whole = facts["qwen2_moe, whole experts"]
        assert (whole["sums"], whole["gathers"]) == (whole["layers"] + 1, whole["layers"] + 1)


def test_a_rank_reads_its_share_and_no_more(ranks) -> None:
    for _, facts in ranks:
        for name in MODELS:
            assert facts[name]["held"] == facts[name]["read"], name
            assert facts[name]["held"] < 0.62 * facts[name]["whole"], name
    both = sum(facts["phi3"]["held"] for _, facts in ranks)
    norms = (2 * 3 + 1) * 24
    assert both == ranks[0][1]["phi3"]["whole"] + norms  # all but norms is on one rank only


def test_a_ring_sends_keys_and_values_once_per_hop(ranks) -> None:
    for rank, (_, facts) in enumerate(ranks):
        own = len(own_places(len(TOKENS), rank, 2))
        layer = own * (2 * 2 * 8 * 8 + 8)  # keys and values of two heads of 8, and where they stand
        assert facts["llama, RingContext"] == 3 * layer


def test_places_are_shared_out_evenly() -> None:
    shares = [own_places(1000, rank, 4) for rank in range(4)]
    assert torch.cat(shares).sort().values.tolist() == list(range(1000))
    work = [int((share + 1).sum()) for share in shares]  # keys that each token looks at
    assert max(work) - min(work) <= 1000


def test_what_does_not_divide_is_refused_in_one_line() -> None:
    def refusal(raw: dict[str, Any], place: Place) -> str:
        with torch.device("meta"):
            model = read_config(raw).build()
        assert isinstance(model, Decoder)
        with pytest.raises(ConfigError) as error:
            cut(model, place)
        return str(error.value)

    assert refusal(LLAMA, Place(tensor=3)) == "4 attention heads do not divide among 3 ranks"
    three = LLAMA | {"num_attention_heads": 6, "num_key_value_heads": 3}
    assert refusal(three, Place(tensor=2)) == "3 key/value heads do not divide among 2 ranks"
    assert "feed-forward units" in refusal(LLAMA | {"intermediate_size": 41}, Place(tensor=2))
    assert "norm over all heads" in refusal(LLAMA | {"model_type": "olmo2"}, Place(tensor=2))
    mamba = {"model_type": "mamba", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4,
             "conv_kernel": 4, "intermediate_size": 32, "time_step_rank": 4, "layer_norm_epsilon": 1e-5}  # fmt: skip
    assert refusal(mamba, Place(tensor=2)).startswith("tensor parallelism cannot cut Mamba")
    assert refusal(LLAMA, Place(pipeline=4)) == "3 layers do not make 4 stages"


def test_stages_and_their_bubble() -> None:
    assert stage_layers(7, 3) == [range(2), range(2, 4), range(4, 7)]
    assert bubble(1, 8) == 0
    assert bubble(4, 1) == 3 / 4
    # By simulation: a stage starts a micro-batch when it is done with the last one and has got this one.
    for stages, batches in ((2, 3), (4, 5), (3, 12)):
        done = [[0] * (batches + 1) for _ in range(stages + 1)]
        for stage in range(1, stages + 1):
            for batch in range(1, batches + 1):
                done[stage][batch] = max(done[stage - 1][batch], done[stage][batch - 1]) + 1
        total = done[-1][-1] * stages
        assert bubble(stages, batches) == pytest.approx(1 - stages * batches / total)


def test_the_pages_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "parallel.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(example, {})
    # Two of four heads of 16 dimensions, and one key/value head of two.
    rows = "Cut(dim=0, ranges=((32, 64), (80, 96), (112, 128)))"
    assert capsys.readouterr().out == f"Linear(64, 64, bias=False) {rows}\n"
