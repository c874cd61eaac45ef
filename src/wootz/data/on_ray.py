"""The same steps on many machines: `ray_map` runs shards of a build as Ray Data transforms.

    build(recipe, Path("/shared/corpus"), mapper=ray_map)

What travels is the names of shards; their text lies in ``out``, which every node must see (NFS, or a bucket that is
mounted). A task that is lost with its node is run again by Ray, and does no harm: shards are written whole or not at
all. Only the decisions of whole-corpus steps are taken in one place, of sketches mapped from files.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from wootz.core.errors import MissingExtraError


def ray_map(function: Callable[..., Any], *arguments: Sequence[Any]) -> Iterable[Any]:
    """`map`, each call a Ray Data task; on the cluster that is connected, or a local one that is started."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("data.on_ray", "ray", "ray") from None
    calls = [*zip(*arguments, strict=True)]
    if not calls:
        return []
    if not ray.is_initialized():
        ray.init(log_to_driver=False)

    def run(row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "result": pickle.dumps(function(*calls[row["number"]]))}

    rows = ray.data.from_items([{"number": number} for number in range(len(calls))], override_num_blocks=len(calls))
    done = sorted(rows.map(run).take_all(), key=lambda row: row["number"])
    return [pickle.loads(row["result"]) for row in done]
