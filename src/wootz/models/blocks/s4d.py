"""S4D (arXiv 2206.11893): a state-space layer that treats every token alike, the baseline that Mamba made selective.

    h_t = exp(dt A) h_(t-1) + u_t        y_t = 2 Re(C h_t) + D u_t

Each channel has N complex numbers of state, with A diagonal. As nothing depends on the token, y is a convolution of u
with one long kernel, ``2 Re(C exp(dt A)^t)``: a Fourier transform computes it for many tokens, the recurrence for one.
A layer is that convolution, and a gated product that mixes channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.blocks.recurrent import Recurrent
from wootz.models.blocks.sizes import check_sizes
from wootz.models.context import State
from wootz.models.linear import Linear
from wootz.models.run import Run


@dataclass(frozen=True)
class S4DConfig:
    state_size: int = 32
    """N, complex numbers per channel."""
    chunk_size: int = 256
    """How many tokens one Fourier transform takes in."""

    def __post_init__(self) -> None:
        check_sizes(self, "state_size", "chunk_size")

    def build(self, hidden_size: int) -> nn.Module:
        return S4D(self, hidden_size)


class S4D(Recurrent):
    def __init__(self, config: S4DConfig, hidden_size: int) -> None:
        size, number = hidden_size, config.state_size
        super().__init__((2, size, number))
        self.config = config
        self.dt_log = nn.Parameter(torch.rand(size) * math.log(100.0) + math.log(1e-3))  # from 0.001 to 0.1
        self.decay_log = nn.Parameter(torch.full((size, number), 0.5).log())
        self.frequency = nn.Parameter((math.pi * torch.arange(number)).repeat(size, 1))  # "S4D-Lin"
        self.C = nn.Parameter(torch.randn(2, size, number) * 0.5**0.5)
        self.D = nn.Parameter(torch.ones(size))
        self.output = Linear(size, (size, size), into_residual=True)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        y_TD, gate_TD = self.output(F.gelu(self.recur(run, x_TD))).chunk(2, dim=-1)
        return y_TD * gate_TD.sigmoid()

    def advance(self, state: State, u_BTD: Tensor) -> tuple[Tensor, State]:
        dtype = state[0].dtype
        h_BDN = torch.complex(*state[0].unbind(1))
        A_DN = torch.complex(-self.decay_log.to(dtype).exp(), self.frequency.to(dtype))
        log_step_DN = A_DN * self.dt_log.to(dtype).exp()[:, None]
        C_DN = 2 * torch.complex(*self.C.to(dtype).unbind()) * torch.expm1(log_step_DN) / A_DN  # zero-order hold
        outputs = []
        for u_BSD in u_BTD.to(dtype).split(self.config.chunk_size, dim=1):
            y_BSD, h_BDN = _convolve(h_BDN, u_BSD, log_step_DN, C_DN)
            outputs.append(torch.addcmul(y_BSD, u_BSD, self.D.to(dtype)))
        return torch.cat(outputs, dim=1).to(u_BTD.dtype), (torch.stack((h_BDN.real, h_BDN.imag), dim=1),)


def _convolve(h_BDN: Tensor, u_BSD: Tensor, log_step_DN: Tensor, C_DN: Tensor) -> tuple[Tensor, Tensor]:
    length = u_BSD.shape[1]
    ages_S = torch.arange(length + 1, device=u_BSD.device)
    steps_DNS = (log_step_DN.unsqueeze(-1) * ages_S).exp()  # how much of a state is left after 0, 1, …, S tokens
    from_before_BSD = torch.einsum("bdn,dn,dns->bsd", h_BDN, C_DN, steps_DNS[..., 1:]).real
    inputs_BNSD = u_BSD.to(h_BDN.dtype)
    h_BDN = steps_DNS[..., -1] * h_BDN + torch.einsum("dns,bsd->bdn", steps_DNS[..., :-1].flip(-1), inputs_BNSD)
    if length == 1:
        kernel_1D = (C_DN * steps_DNS[..., 0]).sum(-1).real
        return from_before_BSD + u_BSD * kernel_1D, h_BDN
    kernel_SD = torch.einsum("dn,dns->sd", C_DN, steps_DNS[..., :-1]).real
    # Twice the length, so that the end of the convolution does not come round to its beginning.
    spectrum = torch.fft.rfft(u_BSD, 2 * length, dim=1) * torch.fft.rfft(kernel_SD, 2 * length, dim=0)
    return from_before_BSD + torch.fft.irfft(spectrum, 2 * length, dim=1)[:, :length], h_BDN
