"""`Tree`: a draft that branches where it is not sure (EAGLE-2, arXiv 2406.16858).

It grows level by level, each time from its likeliest leaves. In the end the likeliest nodes of all are kept: a node is
as likely as its whole text, so no node is ever kept without those before it.
"""

from __future__ import annotations

from torch import Tensor

from wootz.engine.speculation.draft import ROOT, Draft

BRANCHES = 4
"""Candidates for each next token."""


class Tree:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.scores: list[float] = []
        """Log-probability of each node's text, by who drafts."""
        self.leaves = [ROOT]
        """The nodes whose next tokens are asked for."""
        self.asked: list[int] = []
        """The leaves of earlier levels and of this one, but for the root."""

    def grow(self, logprobs_LV: Tensor, width: int) -> None:
        """Each leaf's likeliest next tokens, of one row each; the ``width`` likeliest new nodes are the next leaves."""
        first = len(self.tokens)
        values, ids = logprobs_LV.topk(min(BRANCHES, logprobs_LV.shape[-1]))
        for leaf, scores, tokens in zip(self.leaves, values.tolist(), ids.tolist(), strict=True):
            before = 0.0 if leaf == ROOT else self.scores[leaf]
            self.tokens += tokens
            self.parents += [leaf] * len(tokens)
            self.scores += [before + score for score in scores]
        self.leaves = self._likeliest(range(first, len(self.tokens)), width)
        self.asked += self.leaves

    def so_far(self) -> Draft:
        """The nodes that were or are leaves, in the order in which they came to be."""
        return self._draft(self.asked)

    def best(self, num_tokens: int) -> Draft:
        return self._draft(self._likeliest(range(len(self.tokens)), num_tokens))

    def _likeliest(self, nodes: range, count: int) -> list[int]:
        """Parents before their children, also where a child is certain."""
        return sorted(nodes, key=lambda node: (-self.scores[node], node))[:count]

    def _draft(self, nodes: list[int]) -> Draft:
        place = {node: index for index, node in enumerate(nodes)} | {ROOT: ROOT}
        return Draft([self.tokens[node] for node in nodes], [place[self.parents[node]] for node in nodes])
