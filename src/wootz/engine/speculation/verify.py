"""What becomes of a draft: the longest part of it that the model itself would have written.

One pass has computed the logits behind every token of a draft. From the root on, the next token is chosen as ever; if
the draft has that token there, its row chooses the token after it, and so on. So a draft can never change what is
written, only how much of it one pass brings: greedy text stays the same to the token, and so does a random choice,
which is a function of seed and position whether it was drafted or not.

A draft whose tokens were themselves drawn from probabilities q can be judged better than by "would I have drawn it
too?": accept it with probability min(1, p / q), else draw from what p has beyond q, max(0, p - q). That accepts as
often as any rule can and leaves p exactly (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318). p and q
are what temperature, truncation and penalties leave.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from wootz.engine.grammar import StepMasks
from wootz.engine.protocol import Output
from wootz.engine.sampler import Logits, Sampled, draw_tokens, pick, probability_weights, sample, uniform
from wootz.engine.scheduler import Chunk
from wootz.engine.sequence import Sequence
from wootz.engine.speculation.draft import ROOT, Draft

DRAFT_STREAM, JUDGE_STREAM = 1, 2
"""Random numbers beside those that choose (stream 0)."""


class Walk:
    """A choice on its way through its draft, if it has one, token by token."""

    def __init__(self, sequence: Sequence, row: int, draft: Draft | None = None) -> None:
        self.sequence, self.first_row, self.draft = sequence, row, draft
        self.path: list[int] = []
        """The draft's nodes that were right."""
        self.goes_on, self.has_ended = True, False

    @property
    def node(self) -> int:
        return self.path[-1] if self.path else ROOT

    @property
    def row(self) -> int:
        """The row whose logits choose the next token."""
        return self.first_row + 1 + self.node

    def follow(self, output: Output) -> None:
        """The next token is chosen and said: go where it leads."""
        self.has_ended = output.finish_reason is not None
        node = None if self.has_ended or self.draft is None else self.draft.child(self.node, output.token_ids[-1])
        self.goes_on = node is not None
        if node is not None:
            self.path.append(node)


def choosing(chunks: list[Chunk]) -> dict[int, Chunk]:
    """The chunks that choose, by the row of their last token's logits, behind which their draft's are."""
    found, row = {}, 0
    for chunk in chunks:
        if chunk.samples:
            found[row] = chunk
            row += 1 + chunk.num_drafted
    return found


def walks_of(chunks: list[Chunk], fork: Callable[[Sequence], list[Sequence]]) -> list[Walk]:
    """One for each chunk that chooses, and one for each fork of its sequence, all standing at its last token's row."""
    return [
        Walk(choice, row, chunk.draft)
        for row, chunk in choosing(chunks).items()
        for choice in (chunk.sequence, *fork(chunk.sequence))
    ]


def choose(logits: Logits, walks: list[Walk], masks: StepMasks | None = None) -> list[Sampled]:
    """The next token of each walk; ``masks`` are those of walks that follow a grammar."""
    walk_of = {walk.sequence: walk for walk in walks}
    sequences = [walk.sequence for walk in walks]

    def draw(logits_RV: Tensor, sequences: Rows[Sequence]) -> list[int]:
        proposals = {row: found for row, s in enumerate(sequences) if (found := _proposal(walk_of[s])) is not None}
        if not proposals:
            return draw_tokens(logits_RV, sequences)
        weights_RV = probability_weights(logits_RV, [s.request.params for s in sequences])
        for row, proposal in proposals.items():
            weights_RV[row] = judge(weights_RV[row], *proposal, random_number(sequences[row], JUDGE_STREAM))
        return pick(weights_RV, [random_number(sequence) for sequence in sequences])

    rows = [walk.row for walk in walks]
    logits_SV, likeliest_S = logits
    if rows != list(range(len(logits_SV))):
        logits_SV = logits_SV[torch.tensor(rows, device=logits_SV.device)]
    likeliest_S = likeliest_S and [likeliest_S[row] for row in rows]
    return sample(logits_SV, sequences, draw, masks and masks.forbidding(rows), likeliest_S)


def judge(weights_V: Tensor, token_id: int, q_V: Tensor, number: float) -> Tensor:
    """Weights to draw from, once ``token_id``, drawn from ``q``, was judged by a random number: all on that token, or
    what the weights' distribution p has beyond q."""
    p_V = weights_V / weights_V.sum()
    if number * q_V[token_id] < p_V[token_id]:
        return torch.zeros_like(p_V).index_fill_(0, torch.tensor([token_id], device=p_V.device), 1)
    beyond_V = (p_V - q_V).clamp_(min=0)
    return beyond_V if beyond_V.any() else p_V  # all zero only where p is q but for rounding


def random_number(sequence: Sequence, stream: int = 0) -> float:
    """Of this sequence at this position; other streams are independent of the one that chooses."""
    return uniform(sequence.request.seed, sequence.index + (stream << 32), sequence.num_output_tokens)


def _proposal(walk: Walk) -> tuple[int, Tensor] | None:
    """The token drafted next and the probabilities that it was drawn from, where it was."""
    draft, node = walk.draft, walk.node + 1
    if draft is None or draft.probabilities is None or node == len(draft):
        return None
    return draft.token_ids[node], draft.probabilities[node]
