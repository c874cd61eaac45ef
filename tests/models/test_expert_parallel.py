"""Experts on two processes (gloo): forward pass and every gradient equal one process, and bytes are as planned."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from wootz.models import Decoder, PackedContext, read_config
from wootz.models.blocks.moe import MoE, MoEConfig
from wootz.models.blocks.router import RouterConfig
from wootz.models.expert_parallel import Exchange, all_to_all_volume, shard_experts
from wootz.models.run import Run

RAW = {
    "model_type": "mixtral",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
}
TOKENS = (torch.arange(30) * 7 + 3).remainder(50)
SHARES = (11, 19)
"""Tokens of each rank, as one document."""


def random_model() -> Decoder:
    torch.manual_seed(0)
    model = read_config(RAW).build().double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert isinstance(model, Decoder)
    return model


def logits_and_gradients(model: Decoder, tokens: Tensor, lengths: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    positions = torch.cat([torch.arange(length) for length in lengths])
    logits = model.unembed(model(tokens, positions, PackedContext(lengths)))
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def one_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), len(SHARES))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(SHARES), timeout=timedelta(seconds=60))
    exchange = Exchange()
    model = shard_experts(random_model(), exchange)
    assert isinstance(model, Decoder)
    logits, gradients = logits_and_gradients(model, TOKENS.split(list(SHARES))[rank], [SHARES[rank]])
    for name, gradient in gradients.items():
        if ".experts." not in name:
            dist.all_reduce(gradient)
    torch.save((logits, gradients), folder / f"{rank}.pt")

    # A mixture by itself, whose tokens all want the other rank's experts: the plan's worst case, known exactly.
    torch.manual_seed(1)
    moe = MoEConfig(router=RouterConfig(num_experts=4, top_k=1, bias=True), intermediate_size=8).build(16)
    assert isinstance(moe, MoE)
    assert moe.router.bias_E is not None
    moe.router.bias_E.data[3 if rank == 0 else 0] = 100.0
    lonely = Exchange()
    shard_experts(moe, lonely)
    moe(torch.randn(10, 16, requires_grad=True), Run(torch.arange(10), PackedContext([10]))).sum().backward()
    (folder / f"{rank}.json").write_text(json.dumps([exchange.bytes_sent, lonely.bytes_sent]))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Tensor, dict[str, Tensor], list[int]]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_rank, (folder,), nprocs=len(SHARES))
    numbers = range(len(SHARES))
    return [(*torch.load(folder / f"{r}.pt"), json.loads((folder / f"{r}.json").read_text())) for r in numbers]


def test_two_ranks_equal_one(ranks: list[tuple[Tensor, dict[str, Tensor], list[int]]]) -> None:
    logits, gradients = logits_and_gradients(random_model(), TOKENS, list(SHARES))
    torch.testing.assert_close(torch.cat([theirs for theirs, _, _ in ranks]), logits)
    for name, expected in gradients.items():
        theirs = [found.get(name.replace(".experts.", ".experts.local.")) for _, found, _ in ranks]
        assert theirs[0] is not None, name
        if ".experts." in name:
            torch.testing.assert_close(torch.cat(theirs), expected, msg=name)
        else:
            torch.testing.assert_close(theirs[0], expected, msg=name)


def test_bytes_are_counted(ranks: list[tuple[Tensor, dict[str, Tensor], list[int]]]) -> None:
    for _, _, (whole_model, all_elsewhere) in ranks:
        row_counts = 2 * 8  # two experts' counts, as int64, to the other rank
        assert all_elsewhere == row_counts + 10 * 16 * 4 * 4  # there and back, and the gradients there and back
        assert 0 < whole_model < 2 * (3 * 8 + 30 * 2 * 16 * 8 * 4)


def test_volume_is_what_even_routing_costs() -> None:
    router = RouterConfig(num_experts=8, top_k=2)
    plan = all_to_all_volume(router, 16, tokens_per_rank=1000, num_ranks=4, bytes_per_number=4, training=True)
    assert plan.dispatch == plan.combine == 1000 * 2 * 16 * 4 * 3 / 4
    assert plan.total == 4 * plan.dispatch
    once = all_to_all_volume(router, 16, tokens_per_rank=1000, num_ranks=4, bytes_per_number=4, one_copy_per_rank=True)
    # Both experts are on one rank in 4 of 28 pairs, so a token touches 2 - 4/28 ranks.
    assert once.dispatch == pytest.approx(plan.dispatch * (2 - 4 / 28) / 2)
    choices = torch.rand(20_000, 8, generator=torch.Generator().manual_seed(0)).topk(2).indices
    touched = torch.zeros(20_000, 4).scatter(1, choices // 2, 1.0)
    assert touched[:, 1:].sum().item() / 20_000 * 16 * 4 * 1000 == pytest.approx(once.dispatch, rel=0.01)


def test_experts_must_divide() -> None:
    with pytest.raises(ValueError, match="8 experts do not divide among 3 ranks"):
        all_to_all_volume(RouterConfig(num_experts=8, top_k=2), 16, tokens_per_rank=1, num_ranks=3)
