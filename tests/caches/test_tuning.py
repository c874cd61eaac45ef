"""The threshold tuner: against scipy, on pairs whose answer is known, and on real pairs with a real encoder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from caches_on import Directions

from wootz.core import BadRequestError
from wootz.gateway.caches.tuning import Pair, plot, read_pairs, tune, upper_bound

PAIRS = Path(__file__).parent / "pairs.jsonl"


@pytest.mark.parametrize(("events", "trials"), [(0, 10), (0, 300), (1, 10), (3, 40), (9, 10), (5, 1000)])
def test_the_bound_is_clopper_pearsons(events: int, trials: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(events, trials, alternative="less").proportion_ci(0.95, "exact").high
    assert upper_bound(events, trials) == pytest.approx(expected, abs=1e-9)


async def test_it_picks_the_lowest_threshold_without_too_many_false_hits() -> None:
    """Same questions at cosines 0.99 … 0.80, others at 0.90 and below: 0.91 is the lowest that serves only the same."""
    pairs, table = [], {}
    for number, (cosine, same) in enumerate([(0.99, True), (0.95, True), (0.92, True), (0.80, True), (0.905, False)]):
        a, b = f"question a{'x' * number}", f"question b{'x' * number}"
        table |= {a: [1.0, 0.0], b: [cosine, math.sqrt(1 - cosine**2)]}
        pairs.append(Pair(a, b, same))
    tuning = await tune(pairs, Directions("d", table))
    best = tuning.best(guard=False)
    assert best is not None
    assert (best.threshold, best.hits, best.hit_rate) == (0.91, 3, 0.75)
    loose = (await tune(pairs, Directions("d", table), target=0.5)).best(guard=False)
    assert loose is not None
    assert loose.threshold == 0.70


async def test_it_says_when_no_threshold_will_do(tmp_path: Path) -> None:
    table = {"on": [1.0, 0.0], "of": [1.0, 0.0]}
    tuning = await tune([Pair("on", "of", False), Pair("on", "on", True)], Directions("d", table))
    assert tuning.best(guard=False) is None
    plot(tuning, tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"a": "1", "b": "2", "same": True}) + '\n{"a": 1}\n')
    with pytest.raises(BadRequestError, match="line 2"):
        read_pairs(file)
    file.write_text(json.dumps({"a": "1", "b": "2", "same": True}))
    with pytest.raises(BadRequestError, match="both kinds"):
        read_pairs(file)


def test_the_guard_stops_most_near_misses_and_few_paraphrases() -> None:
    from wootz.gateway.caches.guard import difference

    pairs = read_pairs(PAIRS)
    stopped = {
        same: [pair for pair in pairs if pair.same is same and difference(pair.a, pair.b)] for same in (True, False)
    }
    num = {same: sum(pair.same is same for pair in pairs) for same in (True, False)}
    assert len(stopped[False]) / num[False] > 0.8
    assert len(stopped[True]) / num[True] < 0.15
