"""Infini-attention (arXiv 2404.07143): full attention within a segment, a compressed memory of all before it.

When a segment is full, its keys and values are folded into one matrix per head, as linear attention does, and dropped.
A query reads both: the segment so far by softmax, and the memory by a product; a learned gate per head mixes the two.
So what is kept has one size, however long the text: the memory, and at most one segment.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wootz.models.attention.dense import attend
from wootz.models.attention.linear import elu_plus_one
from wootz.models.context import RecurrentState, State


def infini_state(num_kv_heads: int, head_dim: int, value_dim: int, segment: int) -> RecurrentState:
    """Memory ``(K, d, e)`` and its normaliser ``(K, d)``; the open segment's keys and values; how many those are."""
    return RecurrentState(
        (
            (num_kv_heads, head_dim, value_dim),
            (num_kv_heads, head_dim),
            (num_kv_heads, segment, head_dim),
            (num_kv_heads, segment, value_dim),
            (),
        )
    )


def attend_infini(
    state: State,
    q_BTHd: Tensor,
    k_BTKd: Tensor,
    v_BTKe: Tensor,
    *,
    scale: float,
    gate_logits_H: Tensor,
    delta_rule: bool = True,
) -> tuple[Tensor, State]:
    """``(out (B, T, H, e), state)``, the shape of `Context.recur`'s ``advance``; cut anywhere, the result is the same.

    ``sigmoid(gate_logits_H)`` is the memory's share. With ``delta_rule`` a segment adds only what the memory does not
    already answer to its keys. A memory that is still empty answers with zeros.
    """
    outputs, states = [], []
    for sequence in range(len(q_BTHd)):  # each may stand at another place of its segment
        memory = tuple(part[sequence] for part in state)
        q, k, v = (x_BTHd[sequence].transpose(0, 1).to(state[0].dtype) for x_BTHd in (q_BTHd, k_BTKd, v_BTKe))
        out_HTe, memory = _advance(memory, q, k, v, scale, gate_logits_H.to(state[0].dtype), delta_rule)
        outputs.append(out_HTe.transpose(0, 1))
        states.append(memory)
    return torch.stack(outputs).to(v_BTKe.dtype), tuple(map(torch.stack, zip(*states, strict=True)))


def _advance(
    memory: State,
    q_HTd: Tensor,
    k_KTd: Tensor,
    v_KTe: Tensor,
    scale: float,
    gate_logits_H: Tensor,
    delta_rule: bool,
) -> tuple[Tensor, State]:
    matrix_Kde, normaliser_Kd, keys_KSd, values_KSe, held = memory
    segment, start, num_held = keys_KSd.shape[1], 0, int(held)
    share_H11 = gate_logits_H.sigmoid()[:, None, None]
    keys_KSd, values_KSe = keys_KSd[:, :num_held], values_KSe[:, :num_held]
    outputs = []
    while start < q_HTd.shape[1]:
        stop = min(q_HTd.shape[1], start + segment - keys_KSd.shape[1])
        q_HCd = q_HTd[:, start:stop]
        keys_KSd = torch.cat((keys_KSd, k_KTd[:, start:stop]), dim=1)
        values_KSe = torch.cat((values_KSe, v_KTe[:, start:stop]), dim=1)
        local_HCe = attend(q_HCd, keys_KSd, values_KSe, scale=scale, is_causal=True)
        recalled_HCe = _recall(q_HCd, matrix_Kde, normaliser_Kd)
        outputs.append(share_H11 * recalled_HCe + (1 - share_H11) * local_HCe)
        if keys_KSd.shape[1] == segment:
            if delta_rule:
                values_KSe = values_KSe - _recall(keys_KSd, matrix_Kde, normaliser_Kd)
            features_KSd = elu_plus_one(keys_KSd)
            matrix_Kde = matrix_Kde + features_KSd.mT @ values_KSe
            normaliser_Kd = normaliser_Kd + features_KSd.sum(1)
            keys_KSd, values_KSe = keys_KSd[:, :0], values_KSe[:, :0]
        start = stop
    held = held.new_tensor(keys_KSd.shape[1])
    free = (0, 0, 0, segment - keys_KSd.shape[1])
    kept = torch.nn.functional.pad(keys_KSd, free), torch.nn.functional.pad(values_KSe, free)
    return torch.cat(outputs, dim=1), (matrix_Kde, normaliser_Kd, *kept, held)


def _recall(x_HCd: Tensor, matrix_Kde: Tensor, normaliser_Kd: Tensor) -> Tensor:
    """What the memory answers, ``(H, C, e)``; heads of a group read one memory."""
    features_KGCd = elu_plus_one(x_HCd).unflatten(0, (len(matrix_Kde), -1))
    weights_KGC1 = features_KGCd @ normaliser_Kd[:, None, :, None]
    recalled_KGCe = (features_KGCd @ matrix_Kde[:, None]) / weights_KGC1.masked_fill(weights_KGC1 == 0, 1)
    return recalled_KGCe.flatten(0, 1)
