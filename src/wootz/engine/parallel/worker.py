"""A rank but the first: holds its share, and does what it is told until there is nobody to tell it.

python -m wootz.engine.parallel.worker PATH CONFIG_JSON        # with torchrun's variables; the engine starts it so
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from wootz.core import EngineConfig, WootzError
from wootz.core.leash import hold
from wootz.engine import setup
from wootz.engine.attention import PagedCache
from wootz.engine.parallel.messages import Open, Pass, Report, Stop, Unembed, hear
from wootz.engine.parallel.ranks import loaded
from wootz.engine.parallel.share import Share, agree, load_share


def work(path: Path, config: EngineConfig) -> None:
    """Load, join, and obey until `Stop`. Raises `WootzError` for what keeps the share from being loaded."""
    rank = int(os.environ["RANK"])
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = setup.pick_device(config.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
    share_of_model = load_share(path, rank, config, setup.pick_dtype(config.dtype, device), device)
    loaded(rank, config.num_ranks)
    share = Share(share_of_model, rank, config)
    agree(setup.size_cache(share.model, share.model.cache_specs, config)[0])
    with torch.inference_mode():
        obey(share)
    dist.destroy_process_group()


def obey(share: Share) -> None:
    model, config = share.model, share.config
    while True:
        match hear():
            case Open(num_blocks, num_states, max_model_len):
                cache = PagedCache(
                    model.cache_specs,
                    num_blocks,
                    config.block_size,
                    num_states=num_states,
                    dtype=model.dtype,
                    device=model.device,
                )
                share.open(cache, max_model_len)
            case Pass() as step:
                share.copy(step.copies, step.state_copies)
                token_ids_T = torch.tensor(step.token_ids, device=model.device)
                positions_T = torch.tensor(step.positions, device=model.device)
                share.run(token_ids_T, positions_T, [place.chunk() for place in step.chunks], step.micro_batches)
            case Unembed(num_rows):
                if share.helps_unembed:
                    size = num_rows, model.config.hidden_size
                    share.unembed(torch.empty(size, dtype=model.dtype, device=model.device))
            case Report():
                busy = [torch.zeros(1, dtype=torch.float64) for _ in range(config.num_ranks)]
                dist.all_gather(busy, torch.tensor([share.busy_seconds], dtype=torch.float64))
            case Stop():
                return


def main() -> None:
    hold()
    path, config = Path(sys.argv[1]), EngineConfig.model_validate_json(sys.argv[2])
    try:
        work(path, config)
    except WootzError as error:
        print(f"rank {os.environ['RANK']}: {error}".replace("\n", " "), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
