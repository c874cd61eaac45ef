"""Position schemes by name: what each of them plugs into a model's three places.

    embedding    learned, sinusoidal, multiplicative, floater      added to or multiplied with token embeddings
    queries/keys rope, rope-interleaved, xpos                      turned before they meet
    scores       alibi, t5, shaw, deberta                          biased after they met
                 nope                                              nothing: a causal mask alone tells places apart

Names combine with "+": ``rope+t5`` turns and biases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from wootz.models.blocks.attention import ScoreBiasConfig
from wootz.models.decoder import EmbeddingPositionsConfig
from wootz.models.positions.alibi import ALiBiConfig
from wootz.models.positions.deberta import DisentangledConfig
from wootz.models.positions.floater import FloaterConfig
from wootz.models.positions.learned import LearnedConfig
from wootz.models.positions.multiplicative import MultiplicativeConfig
from wootz.models.positions.rotary import RotaryConfig
from wootz.models.positions.shaw import ShawConfig
from wootz.models.positions.sinusoidal import SinusoidalConfig
from wootz.models.positions.t5 import T5BucketsConfig
from wootz.models.positions.xpos import XPosDecay


@dataclass(frozen=True)
class Heads:
    """What schemes need to know of the attention they are for."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary: Callable[[], RotaryConfig]
    num_positions: int
    causal: bool = True


@dataclass(frozen=True)
class Scheme:
    embedding: EmbeddingPositionsConfig | None = None
    rotary: RotaryConfig | None = None
    score_bias: ScoreBiasConfig | None = None
    scale: float | None = None
    """Of the scores, where the scheme asks for one."""


_SCHEMES: dict[str, Callable[[Heads], Scheme]] = {
    "nope": lambda heads: Scheme(),
    "learned": lambda heads: Scheme(embedding=LearnedConfig(heads.num_positions)),
    "sinusoidal": lambda heads: Scheme(embedding=SinusoidalConfig()),
    "multiplicative": lambda heads: Scheme(embedding=MultiplicativeConfig(heads.num_positions)),
    "floater": lambda heads: Scheme(embedding=FloaterConfig()),
    "rope": lambda heads: Scheme(rotary=heads.rotary()),
    "rope-interleaved": lambda heads: Scheme(rotary=dataclasses.replace(heads.rotary(), interleaved=True)),
    "xpos": lambda heads: Scheme(
        rotary=dataclasses.replace(heads.rotary(), decay=XPosDecay(heads.num_heads, heads.num_kv_heads))
    ),
    "alibi": lambda heads: Scheme(score_bias=ALiBiConfig()),
    "t5": lambda heads: Scheme(score_bias=T5BucketsConfig(bidirectional=not heads.causal)),
    "shaw": lambda heads: Scheme(score_bias=ShawConfig()),
    "deberta": lambda heads: Scheme(score_bias=DisentangledConfig(), scale=DisentangledConfig().scale(heads.head_dim)),
}
SCHEMES = tuple(_SCHEMES)


def scheme(names: str, heads: Heads) -> Scheme:
    """Raises ValueError for an unknown name, or for two that want the same place."""
    parts: dict[str, object] = {}
    for name in names.split("+"):
        if name not in _SCHEMES:
            raise ValueError(f'positions "{name}" are not known ({", ".join(SCHEMES)} are)')
        for field, part in vars(_SCHEMES[name](heads)).items():
            if part is not None and field in parts:
                raise ValueError(f'positions "{names}" cannot be combined: two of them want the {field}')
            if part is not None:
                parts[field] = part
    return Scheme(**parts)  # pyright: ignore[reportArgumentType]
