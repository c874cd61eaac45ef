"""Preferred regions first, whatever the policy's order; within a region that order stays. Where a region is down, its
breakers are open, and the next region is what is left."""

from __future__ import annotations

from collections.abc import Sequence

from wootz.gateway.routing.candidate import Candidate


def by_region(candidates: Sequence[Candidate], regions: Sequence[str]) -> list[Candidate]:
    rank = {region: number for number, region in enumerate(regions)}
    return sorted(candidates, key=lambda one: rank.get(one.region or "", len(regions)))
