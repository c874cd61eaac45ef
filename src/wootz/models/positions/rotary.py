"""Rotary position embedding (arXiv 2104.09864): pairs of dimensions turn by ``position * frequency``.

Which dimensions pair is a matter of layout: i with ``i + d/2`` ("rotate half", most checkpoints), or 2i with 2i + 1
("interleaved"); `wootz.models.positions.layout` converts weights from one to the other. Models that were stretched to
longer texts slow some frequencies down: `wootz.models.positions.scaling`.

Two of those rules depend on how long a text is. A key that was cached keeps the angle it was given, so the length must
not be read off a text that is still growing. It is decided in this order:

- `fix_length` fixed it: the engine does, once, to the longest text it will serve;
- without, in a pass over whole documents, each document's own length counts, as in transformers;
- without, where what is computed is kept for later, the longest text that the rule is meant for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wootz.kernels import training
from wootz.models.positions.scaling import LongRopeScaling, RopeScaling
from wootz.models.positions.xpos import XPosDecay


@dataclass(frozen=True)
class RotaryConfig:
    """Which dimensions turn how fast. With ``dim`` smaller than a head, only its first ``dim`` dimensions turn."""

    dim: int
    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    interleaved: bool = False
    """Turn dimension 2i together with 2i + 1, as the paper and GPT-J do, and not with ``i + dim/2``."""
    decay: XPosDecay | None = None

    def __post_init__(self) -> None:
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"rotary positions turn pairs of dimensions, and {self.dim} is not even")
        if not self.theta > 1:
            raise ValueError(f"the base of rotary positions must be above 1, not {self.theta!r}")

    def frequencies(self, length: int | None = None) -> Tensor:
        """Radians per position ``(dim / 2,)`` in float32 on the CPU, fastest first, for texts of ``length`` tokens."""
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float32, device="cpu") / self.dim
        frequencies = 1.0 / self.theta**exponents
        return self.scaling.scale(frequencies, length) if self.scaling else frequencies


@dataclass(frozen=True)
class Rotation:
    """The angles of one forward pass: ``(T, 1, dim)`` each, with the signs of "rotate half" in ``sin``. (With
    `XPosDecay`, ``(T, R, dim)``: each head has its own.)"""

    cos_T1d: Tensor
    sin_T1d: Tensor
    interleaved: bool = False

    def __call__(self, x_THd: Tensor) -> Tensor:
        """Every head turned by its token's angles."""
        if self._is_fused(x_THd):
            return training.rotate(x_THd, self.cos_T1d[:, 0], self.sin_T1d[:, 0])
        dim = self.cos_T1d.shape[-1]
        if dim < x_THd.shape[-1]:
            return torch.cat((self(x_THd[..., :dim]), x_THd[..., dim:]), -1)
        swapped = x_THd.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if self.interleaved else x_THd.roll(dim // 2, -1)
        return torch.addcmul(x_THd * self.cos_T1d, swapped, self.sin_T1d)

    def _is_fused(self, x_THd: Tensor) -> bool:
        alike = not self.interleaved and self.cos_T1d.shape[:2] == (len(x_THd), 1) and not self.cos_T1d.requires_grad
        return alike and training.can_take_heads(x_THd) and training.serves(x_THd, self.cos_T1d, self.sin_T1d)


class Rotary(nn.Module):
    """Positions to angles. There is no table: angles are made once per forward pass, for all layers."""

    def __init__(self, config: RotaryConfig) -> None:
        super().__init__()
        self.config = config
        self.length: int | None = None
        self.attention_factor = config.scaling.attention_factor if config.scaling else 1.0
        self.register_buffer("frequencies", config.frequencies(), persistent=False)
        self._plain = replace(config, scaling=None).frequencies()

    @property
    def depends_on_length(self) -> bool:
        return self.length is None and self.config.scaling is not None and self.config.scaling.longest is not None

    @property
    def unscaled_tokens(self) -> int:
        """So many first tokens of a text are turned by the frequencies of the training."""
        return self.config.scaling.unscaled_tokens if isinstance(self.config.scaling, LongRopeScaling) else 0

    def fix_length(self, length: int) -> None:
        """From now on every text is taken to be one of ``length`` tokens."""
        self.length = length
        self.frequencies = self.config.frequencies(length).to(self.frequencies.device)

    def forward(self, positions_T: Tensor, dtype: torch.dtype, lengths: Sequence[int] = ()) -> Rotation:
        """The angles at these positions, which may be fractions. ``lengths`` are those of the documents that the run
        consists of, where it is known to hold whole ones."""
        if lengths and self.depends_on_length:
            own = {length: self.config.frequencies(length) for length in set(lengths)}
            repeats = torch.tensor(lengths)
            frequencies_Tp = torch.stack([own[length] for length in lengths]).repeat_interleave(repeats, dim=0)
            angles = positions_T.float().unsqueeze(1) * frequencies_Tp.to(self.frequencies.device)
        else:
            angles = torch.outer(positions_T.float(), self.frequencies)
        if self.unscaled_tokens:
            plain = torch.outer(positions_T.float(), self._plain)
            angles = torch.where(positions_T.unsqueeze(1) < self.unscaled_tokens, plain, angles)
        cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
        if self.config.decay is not None:
            factors = self.config.decay(positions_T, angles.shape[-1])
            cos, sin = cos * factors, sin * factors
        if self.attention_factor != 1.0:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        cos, sin = cos.to(dtype), sin.to(dtype)
        if self.config.interleaved:
            cos, sin = torch.stack((cos, cos), -1).flatten(-2), torch.stack((-sin, sin), -1).flatten(-2)
        else:
            cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return Rotation(cos, sin, self.config.interleaved)

    def _apply(self, fn, recurse=True):  # pyright: ignore[reportMissingParameterType]
        # Frequencies move with the model but stay float32: rounded to bfloat16 they are whole turns off within a page.
        frequencies = self.frequencies
        super()._apply(fn, recurse)
        self.frequencies = frequencies.to(self.frequencies.device)
        self._plain = self._plain.to(self.frequencies.device)
        return self


def fix_length(modules: Iterable[nn.Module], length: int) -> None:
    """Fix what the `Rotary` layers among a model's ``modules()`` take a text's length to be; most do not depend on it.
    To be called before anything is cached, and not again while it is."""
    for module in modules:
        if isinstance(module, Rotary):
            module.fix_length(length)
