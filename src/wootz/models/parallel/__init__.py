"""One model on several processes: which part of it a rank holds, and what the ranks say to each other in a pass.

Nothing in a model's files knows of this. A rank's share is cut out of the finished model by the types of its modules
(`cut`), read from the checkpoint slice by slice (`load_shard`), and joined to the other shares from outside, by hooks
(`connect`). What a rank then holds is called like the whole model, on every rank at once, and answers like it.
"""

from __future__ import annotations

from wootz.models.cut import Cut
from wootz.models.parallel.connect import TensorGroup, connect
from wootz.models.parallel.cut import Place, cut
from wootz.models.parallel.loading import check_divides, load_shard
from wootz.models.parallel.pipeline import bubble, run_stage, stage_layers

__all__ = [
    "Cut",
    "Place",
    "TensorGroup",
    "bubble",
    "check_divides",
    "connect",
    "cut",
    "load_shard",
    "run_stage",
    "stage_layers",
]
