"""Optimisers, from SGD to Prodigy, behind one config: see `build.py`."""

from wootz.training.optimizers.algorithms import ALGORITHMS, Algorithm, algorithm
from wootz.training.optimizers.build import (
    OptimizerConfig,
    build_optimizer,
    evaluation_mode,
    parameter_groups,
    set_rate,
)
from wootz.training.optimizers.hessian_diagonal import refresh_curvature

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "OptimizerConfig",
    "algorithm",
    "build_optimizer",
    "evaluation_mode",
    "parameter_groups",
    "refresh_curvature",
    "set_rate",
]
