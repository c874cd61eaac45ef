"""Training on many processes: FSDP, tensor, sequence, pipeline, expert and context parallelism on one device mesh."""

from wootz.training.parallel.clipping import clip_gradients
from wootz.training.parallel.counting import CountedTraffic, Traffic
from wootz.training.parallel.layout import Layout, Mesh
from wootz.training.parallel.parallelize import Parallel, parallelize
from wootz.training.parallel.taken_apart import put_together, take_apart
from wootz.training.parallel.training import ParallelTrainer

__all__ = [
    "CountedTraffic",
    "Layout",
    "Mesh",
    "Parallel",
    "ParallelTrainer",
    "Traffic",
    "clip_gradients",
    "parallelize",
    "put_together",
    "take_apart",
]
