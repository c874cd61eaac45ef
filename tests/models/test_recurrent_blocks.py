"""Recurrent layers are what their papers write, and the same however the tokens are cut: recurrence = scan = chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wootz.models import PackedContext
from wootz.models.attention.delta_rule import delta_rule
from wootz.models.attention.linear import decayed_sum
from wootz.models.blocks.linear_attention import GLAConfig, LinearAttentionConfig, RetentionConfig
from wootz.models.blocks.mamba import MambaConfig
from wootz.models.blocks.mamba2 import Mamba2Config
from wootz.models.blocks.rwkv4 import RWKV4ChannelMixConfig, RWKV4Config, weighted_mean
from wootz.models.blocks.rwkv7 import RWKV7Config
from wootz.models.blocks.s4d import S4DConfig
from wootz.models.blocks.selective_scan import selective_scan
from wootz.models.run import Remembering, Run, assign_slots

B, T, D = 2, 23, 16


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class ContinuedContext:
    """B equal documents, handed over in pieces: what an engine's cache does, without an engine."""

    remembers = True

    def __init__(self, num_sequences: int) -> None:
        self.num_sequences, self.states = num_sequences, {}

    def recur(self, slot, spec, advance, *inputs_T):
        inputs_BT = [x_T.unflatten(0, (self.num_sequences, -1)) for x_T in inputs_T]
        start = spec.start(self.num_sequences, inputs_T[0].dtype, inputs_T[0].device)
        out_BT, self.states[slot] = advance(self.states.get(slot, start), *inputs_BT)
        return out_BT.flatten(0, 1)


MIXERS = {
    "s4d": S4DConfig(state_size=5, chunk_size=8),
    "linear-attention": LinearAttentionConfig(2, 6),
    "performer": LinearAttentionConfig(2, 6, random_features=20),
    "retention": RetentionConfig(2, 6, 10),
    "gla": GLAConfig(2, 6, 10, gate_rank=3),
    "mamba": MambaConfig(intermediate_size=24, state_size=5, dt_rank=3, inner_norm_eps=1e-6),
    "mamba2": Mamba2Config(num_heads=4, head_dim=6, state_size=5, num_groups=2, chunk_size=8),
    "rwkv4": RWKV4Config(24, chunk_size=8),
    "rwkv4-channel-mix": RWKV4ChannelMixConfig(24),
    "rwkv7": RWKV7Config(head_dim=4, decay_rank=3, rate_rank=3, value_rank=3, gate_rank=3, first=True),
}


@pytest.mark.parametrize("name", MIXERS)
@settings(max_examples=10, deadline=None)
@given(cuts=st.sets(st.integers(1, T - 1), max_size=T - 1))
def test_however_a_text_is_cut_its_numbers_are_the_same(name, cuts):
    torch.manual_seed(0)
    mixer = MIXERS[name].build(D).double()
    for parameter in mixer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    assign_slots(mixer)
    x_BTD = numbers(B, T, D)
    positions = torch.arange(T).repeat(B)
    whole = mixer(x_BTD.flatten(0, 1), Run(positions, PackedContext([T] * B))).unflatten(0, (B, T))
    context, pieces = ContinuedContext(B), []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), T], strict=True):
        piece = x_BTD[:, start:end]
        run = Run(torch.arange(start, end).repeat(B), context)
        pieces.append(mixer(piece.flatten(0, 1), run).unflatten(0, (B, -1)))
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", MIXERS)
def test_documents_packed_together_do_not_see_each_other(name):
    torch.manual_seed(0)
    mixer = MIXERS[name].build(D).double()
    assign_slots(mixer)
    x_TD = numbers(10, D)

    def run(x_TD, lengths):
        return mixer(x_TD, Run(torch.cat([torch.arange(n) for n in lengths]), PackedContext(lengths)))

    together = run(x_TD, [3, 1, 6])
    apart = torch.cat([run(x_TD[:3], [3]), run(x_TD[3:4], [1]), run(x_TD[4:], [6])])
    torch.testing.assert_close(together, apart, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", MIXERS)
def test_a_state_does_not_grow(name):
    mixer = MIXERS[name].build(D)
    specs = assign_slots(mixer)
    assert [layer.slot for layer in mixer.modules() if isinstance(layer, Remembering)] == list(range(len(specs)))
    sizes = set()
    for length in (1, 2, 17):
        context = ContinuedContext(1)
        mixer(numbers(length, D, dtype=torch.float32), Run(torch.arange(length), context))
        sizes.add(tuple(sum(tensor.numel() for tensor in context.states[slot]) for slot in range(len(specs))))
    assert len(sizes) == 1


# --- against the papers, token by token ------------------------------------------------------------------------------


def test_s4d_is_a_linear_system_that_does_not_change_with_time():
    """Against the matrix exponential: zero-order hold of h' = A h + u over a time of dt."""
    torch.manual_seed(0)
    layer = S4DConfig(state_size=3, chunk_size=8).build(2).double()
    u_BTD = numbers(1, T, 2)
    y_BTD, _ = layer.advance(layer.state_spec.start(1, torch.float64, u_BTD.device), u_BTD)
    A = torch.complex(-layer.decay_log.exp(), layer.frequency)
    C, dt = torch.complex(*layer.C), layer.dt_log.exp()
    for channel in range(2):
        system = torch.zeros(4, 4, dtype=torch.complex128)  # [[A, 1], [0, 0]], whose exponential holds both matrices
        system[:3, :3], system[:3, 3] = A[channel].diag(), 1
        step = torch.linalg.matrix_exp(system * dt[channel])
        h = torch.zeros(3, dtype=torch.complex128)
        for t in range(T):
            u = u_BTD[0, t, channel]
            h = step[:3, :3] @ h + step[:3, 3] * u
            expected = 2 * (C[channel] @ h).real + layer.D[channel] * u
            torch.testing.assert_close(y_BTD[0, t, channel], expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("length", [1, 2, 10, 23])
def test_selective_scan_is_its_recurrence(length):
    inner, size = 6, 5
    x, dt = numbers(B, length, inner), numbers(B, length, inner, seed=1).exp() * 3
    a = -numbers(inner, size, seed=2).exp() * 5
    b, c, h = numbers(B, length, size, seed=3), numbers(B, length, size, seed=4), numbers(B, inner, size, seed=5)
    y, (after,) = selective_scan((h,), x, dt, a, b, c)
    for t in range(length):
        h = (dt[:, t, :, None] * a).exp() * h + dt[:, t, :, None] * x[:, t, :, None] * b[:, t, None]
        torch.testing.assert_close(y[:, t], torch.einsum("bin,bn->bi", h, c[:, t]), atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(after, h, atol=1e-10, rtol=1e-8)


def test_state_space_duality_recurrence_chunks_and_one_masked_matrix_are_equal():
    """Mamba-2: h_t = exp(dt_t a) h_(t-1) + dt_t B_t x_t as a scan, and (L ∘ C Bᵀ) X with L the products of decays."""
    heads, size, width = 3, 5, 4
    c, b = numbers(B, T, heads, size), numbers(B, T, heads, size, seed=1)
    x, log_decay = numbers(B, T, heads, width, seed=2), -numbers(B, T, heads, 1, seed=3).exp()
    zero = torch.zeros(B, heads, size, width, dtype=torch.float64)
    sums = log_decay[..., 0].cumsum(1).transpose(1, 2)
    mask = (sums[..., :, None] - sums[..., None, :]).exp().tril()
    expected = torch.einsum("bhts,bthn,bshn,bshp->bthp", mask, c, b, x)
    scanned, _ = selective_scan(
        (zero[:, 0].mT,),
        x[:, :, 0],
        -log_decay[:, :, 0].expand(-1, -1, width),
        -torch.ones(width, size, dtype=torch.float64),
        b[:, :, 0] / -log_decay[:, :, 0],
        c[:, :, 0],
    )
    torch.testing.assert_close(scanned, expected[:, :, 0], atol=1e-10, rtol=1e-8)
    for chunk in (1, 4, T):
        out, _ = decayed_sum((zero,), c, b, x, log_decay, chunk=chunk)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("chunk", [1, 7, T])
def test_rwkv4_is_a_mean_with_fading_weights(chunk):
    size = 6
    k, v = numbers(B, T, size) * 3, numbers(B, T, size, seed=1)
    decay, bonus = numbers(size, seed=2).exp(), numbers(size, seed=3)
    state = torch.zeros(B, size, dtype=torch.float64), torch.full((B, size), -torch.inf, dtype=torch.float64)
    out, (mean, log_weight) = weighted_mean(state, k, v, decay, bonus, chunk=chunk)
    total = weight = torch.zeros(B, size, dtype=torch.float64)
    for t in range(T):
        own = (bonus + k[:, t]).exp()
        torch.testing.assert_close(out[:, t], (total + own * v[:, t]) / (weight + own))
        total = (-decay).exp() * total + k[:, t].exp() * v[:, t]
        weight = (-decay).exp() * weight + k[:, t].exp()
    torch.testing.assert_close(mean, total / weight)
    torch.testing.assert_close(log_weight, weight.log())


def test_rwkv4_survives_keys_whose_exponential_is_infinite():
    state = torch.zeros(1, 1), torch.full((1, 1), -torch.inf)
    k = torch.tensor([200.0, -200.0, 210.0])[None, :, None].requires_grad_()
    v = torch.tensor([1.0, 2.0, 3.0])[None, :, None]
    out, (mean, _) = weighted_mean(state, k, v, torch.ones(1), torch.zeros(1), chunk=2)
    torch.testing.assert_close(out.flatten(), torch.tensor([1.0, 1.0, 3.0]), atol=1e-3, rtol=0)
    (out.sum() + mean.sum()).backward()
    assert k.grad is not None
    assert k.grad.isfinite().all()


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_generalised_delta_rule_is_rwkv7s_recurrence(chunk):
    """S_t = S_(t-1) (diag(w) - κ̂ᵀ(a ⊙ κ̂)) + vᵀ k̃ and y = S r, as in arXiv 2503.14456, equations 14 to 17."""
    heads, size, width = 3, 4, 5
    r, k, kappa = (numbers(B, T, heads, size, seed=seed) for seed in (0, 1, 2))
    v = numbers(B, T, heads, width, seed=3)
    kappa = torch.nn.functional.normalize(kappa, dim=-1)
    rate = numbers(B, T, heads, size, seed=4).sigmoid()
    w = torch.exp(-torch.exp(torch.tensor(-0.5)) * numbers(B, T, heads, size, seed=5).mul(4).sigmoid())
    start = numbers(B, heads, size, width, seed=6)
    y, (after,) = delta_rule((start,), r, w.log(), k, v, -kappa, kappa * rate, chunk=chunk)
    state = start.mT
    for t in range(T):
        change = w[:, t].diag_embed() - kappa[:, t].unsqueeze(-1) * (rate[:, t] * kappa[:, t]).unsqueeze(-2)
        state = state @ change + v[:, t].unsqueeze(-1) * k[:, t].unsqueeze(-2)
        torch.testing.assert_close(y[:, t], (state @ r[:, t].unsqueeze(-1)).squeeze(-1), atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(after, state.mT, atol=1e-9, rtol=1e-7)


def test_a_memory_that_corrects_itself_forgets_the_value_it_replaces():
    """Without decay, and with the whole of a key taken back, the last value of each key is what is found."""
    key, other = torch.eye(2)
    k = torch.stack((key, other, key))[None, :, None]
    v = torch.tensor([[1.0], [2.0], [3.0]])[None, :, None]
    zero = torch.zeros(1, 1, 2, 1)
    _, (state,) = delta_rule((zero,), k, torch.zeros_like(k), k, v, -k, k)
    torch.testing.assert_close(state.flatten(), torch.tensor([3.0, 2.0]))


@pytest.mark.parametrize("kind", ["scan", "mean", "delta"])
def test_gradients_are_right(kind):
    def leaf(*shape, seed):
        return numbers(*shape, seed=seed).requires_grad_()

    length, size = 5, 3
    if kind == "scan":
        inputs = [leaf(1, length, 2, seed=1), leaf(1, length, 2, seed=2), leaf(2, size, seed=3)]
        inputs += [leaf(1, length, size, seed=4), leaf(1, length, size, seed=5), leaf(1, 2, size, seed=6)]

        def run(x, dt, a, b, c, h):
            out, (after,) = selective_scan((h,), x, dt.exp(), -a.exp(), b, c)
            return out, after
    elif kind == "mean":
        inputs = [leaf(1, length, size, seed=1), leaf(1, length, size, seed=2), leaf(size, seed=3), leaf(size, seed=4)]

        def run(k, v, decay, bonus):
            state = torch.zeros(1, size).double(), torch.full((1, size), -torch.inf).double()
            out, after = weighted_mean(state, k, v, decay.exp(), bonus, chunk=2)
            return out, *after
    else:
        inputs = [leaf(1, length, 1, size, seed=seed) for seed in range(6)] + [leaf(1, 1, size, size, seed=7)]

        def run(r, w, k, v, a, b, start):
            out, (after,) = delta_rule((start,), r, -w.sigmoid(), k, v, a, b, chunk=2)
            return out, after

    assert torch.autograd.gradcheck(run, inputs)
