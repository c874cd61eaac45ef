"""Killed with SIGKILL at random steps and taken up again, a run ends with the very same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import join, start, to_the_end, with_kills

STEPS = 24


def uninterrupted(ranks: int, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir()
    assert join(start(ranks, to_the_end, folder, STEPS, 0.0)) == [0] * ranks
    return torch.load(folder / "weights.pt")


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def losses(folder: Path) -> dict[int, str]:
    return dict(line.split() for line in (folder / "losses").read_text().splitlines())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ranks", "kills"),
    [(1, 2), (2, 1), pytest.param(1, 10, marks=pytest.mark.slow), pytest.param(2, 10, marks=pytest.mark.slow)],
)
def test_weights_after_kills_are_bit_identical(tmp_path: Path, ranks: int, kills: int) -> None:
    whole = uninterrupted(ranks, tmp_path / "whole")
    with_kills(ranks, tmp_path / "killed", STEPS, kills, seed=ranks + kills)
    assert_same(torch.load(tmp_path / "killed" / "weights.pt"), whole)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_another_number_of_ranks_goes_on_with_the_same_loss(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    uninterrupted(1, tmp_path / "whole")
    assert join(start(2, to_the_end, folder, 9, 0.0)) == [0, 0]
    assert join(start(1, to_the_end, folder, 15, 0.0)) == [0]
    assert join(start(2, to_the_end, folder, STEPS, 0.0)) == [0, 0]
    resharded, whole = losses(folder), losses(tmp_path / "whole")
    assert len(resharded) == STEPS
    assert max(abs(float(resharded[step]) - float(whole[step])) for step in whole) < 1e-4
